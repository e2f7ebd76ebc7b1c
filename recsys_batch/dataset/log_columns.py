"""Rows of the online side's log as Arrow columns, of which dataset/exposure_schema.py has the schema: many rows at once in flat lists."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa

from recsys_batch.dataset.log_rows import Exposure, FeedbackEvent, LogId
from recsys_batch.ids import parse_id
from recsys_batch.schemas import TIMESTAMP, IdTypes


def encode_exposures(rows: Sequence[Exposure], ids: IdTypes, schema: pa.Schema) -> pa.RecordBatch:
    """Encode exposures as Arrow, ids in these types; session items that fit none are left out.

    Raises:
        ValueError, TypeError, pa.ArrowException: a row does not fit the schema.
    """
    (
        requests,
        shown,
        users,
        snapshots,
        models,
        sources,
        degraded,
        items,
        scores,
        batch,
        ranks,
        when,
        devices,
        sessions,
        more,
        lists,
        propensities,
        ranker_positions,
        batch_positions,
        candidates,
        candidate_scores,
    ) = zip(*rows, strict=True)
    shown_items = [[None if item is None else parse_id(item, ids.item) for item in each] for each in items]
    user_ids = [parse_id(user, ids.user) for user in users]
    session = [[item for item in (parse_id(one, ids.item) for one in each) if item is not None] if each else () for each in sessions]
    leading = (requests, shown, user_ids, snapshots, models, sources, degraded)
    arrays = [pa.array(column, schema.field(number).type) for number, column in enumerate(leading)]
    optional = (batch, ranks, propensities, ranker_positions, batch_positions, candidate_scores)
    arrays.append(_items_column(shown_items, scores, optional, schema.field("items").type))
    arrays += [pa.array(when, TIMESTAMP), pa.array(devices, pa.string())]
    arrays.append(pa.ListArray.from_arrays(_offsets_of(list(map(len, session))), _flatten(session, ids.item_arrow)))
    arrays += [_string_map_column(more, schema.field("attributes").type), pa.array(lists, pa.string()), pa.array(candidates, pa.string())]
    return _make_record_batch(arrays, schema)


def encode_feedback(rows: Sequence[FeedbackEvent], ids: IdTypes, schema: pa.Schema) -> pa.RecordBatch:
    """Encode feedback events as Arrow, ids in these types. Raises as ``encode_exposures``."""
    requests, users, items, when, kinds, weights = zip(*rows, strict=True)
    columns = (requests, [parse_id(user, ids.user) for user in users], [parse_id(item, ids.item) for item in items], when, kinds, weights)
    return _make_record_batch([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)


def _items_column(
    items: Sequence[Sequence[LogId | None]],
    scores: Sequence[Sequence[float]],
    optional_columns: Iterable[Sequence[Sequence[float | None] | None]],
    kind: pa.ListType,
) -> pa.Array:
    lengths = list(map(len, items))
    positions = [range(1, n + 1) for n in lengths]
    optional = [[row or [None] * n for row, n in zip(column, lengths, strict=True)] for column in optional_columns]
    if any(list(map(len, column)) != lengths for column in (scores, *optional)):
        raise ValueError("an exposure has lists of different lengths")
    fields = list(kind.value_type)
    values = [_flatten(column, field.type) for column, field in zip((items, positions, scores, *optional), fields, strict=True)]
    if values[0].null_count:
        raise ValueError("an item_id is null")
    return pa.ListArray.from_arrays(_offsets_of(lengths), pa.StructArray.from_arrays(values, fields=fields), kind)


def _offsets_of(lengths: Sequence[int]) -> pa.Array:
    """Compute the offsets of lists in their values: int32, one more than there are lists."""
    return pa.array([0, *accumulate(lengths)], pa.int32())


def _flatten(lists: Sequence[Iterable[Any]], kind: pa.DataType) -> pa.Array:
    """Concatenate lists to one array."""
    return pa.array(list(chain.from_iterable(lists)), kind)


def _string_map_column(mappings: Sequence[Mapping[str, Any]], kind: pa.MapType) -> pa.Array:
    """Make a MAP<STRING,STRING> column: text as it is, other values as JSON, null as null."""
    keys = _flatten(mappings, kind.key_type)
    texts = _flatten([[_text(value) for value in mapping.values()] for mapping in mappings], kind.item_type)
    return pa.MapArray.from_arrays(_offsets_of(list(map(len, mappings))), keys, texts, kind)


def _make_record_batch(columns: Sequence[pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    """Make a record batch of columns in the schema's order. Raises ValueError: a null that must not be, or other lengths or types."""
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    for field, column in zip(schema, columns, strict=True):
        if column.null_count and not field.nullable:
            raise ValueError(f"{field.name} is null in {column.null_count} of {len(column)} rows")
    return batch


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
