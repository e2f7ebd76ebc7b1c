"""An exposure: what was shown to whom, at which position, with which scores, in which context, for later models to learn from.

Made by serving/exposure_recorder.py, encoded by writer_process.py. The columns are dataset/exposure_schema.py's, which ingest reads.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa

from recsys_batch.ids import parse_id
from recsys_batch.online.exposure_log.arrow_columns import LogId, flatten, make_record_batch, offsets_of, string_map_column
from recsys_batch.schemas import TIMESTAMP, IdTypes

_NO_ATTRIBUTES: Mapping[str, Any] = {}


class Exposure(NamedTuple):
    """An answer that was sent.

    Attributes:
        shown_at: with its time zone. user_id, session_item_ids: as the request spells them.
        source: ranker, batch or popular. degraded: why the answer is not all that it could be, or None.
        item_ids, scores: plain lists, best first: position is the index in them, from 1.
        batch_scores, candidate_ranks: of the same items; None (or None inside) where there are none.
        context_ts: the context's time, with its time zone.
    """

    request_id: str
    shown_at: dt.datetime
    user_id: LogId
    snapshot_id: str | None
    model_version: str | None
    source: str
    degraded: str | None
    item_ids: Sequence[LogId]
    scores: Sequence[float]
    batch_scores: Sequence[float | None] | None = None
    candidate_ranks: Sequence[int | None] | None = None
    context_ts: dt.datetime | None = None
    device: str | None = None
    session_item_ids: Sequence[LogId] = ()
    attributes: Mapping[str, Any] = _NO_ATTRIBUTES


def encode_exposures(rows: Sequence[Exposure], ids: IdTypes, schema: pa.Schema) -> pa.RecordBatch:
    """Encode exposures as Arrow, user ids and session items in the warehouse's types; session items that fit none are left out.

    Raises:
        ValueError, TypeError, pa.ArrowException: a row does not fit the schema.
    """
    requests, shown, users, snapshots, models, sources, degraded, items, scores, batch, ranks, when, devices, sessions, more = zip(
        *rows, strict=True
    )
    user_ids = [parse_id(user, ids.user) for user in users]
    session = [[item for item in (parse_id(one, ids.item) for one in each) if item is not None] if each else () for each in sessions]
    leading = (requests, shown, user_ids, snapshots, models, sources, degraded)
    arrays = [pa.array(column, schema.field(number).type) for number, column in enumerate(leading)]
    arrays.append(_items_column(items, scores, batch, ranks, schema.field("items").type))
    arrays += [pa.array(when, TIMESTAMP), pa.array(devices, pa.string())]
    arrays.append(pa.ListArray.from_arrays(offsets_of(list(map(len, session))), flatten(session, ids.item_arrow)))
    arrays.append(string_map_column(more, schema.field("attributes").type))
    return make_record_batch(arrays, schema)


def _items_column(
    items: Sequence[Sequence[LogId]],
    scores: Sequence[Sequence[float]],
    batch_scores: Sequence[Sequence[float | None] | None],
    ranks: Sequence[Sequence[int | None] | None],
    kind: pa.ListType,
) -> pa.Array:
    lengths = list(map(len, items))
    optional = [[row or [None] * n for row, n in zip(column, lengths, strict=True)] for column in (batch_scores, ranks)]
    for column in (scores, *optional):
        if list(map(len, column)) != lengths:
            raise ValueError("an exposure has lists of different lengths")
    fields = [kind.value_type.field(number) for number in range(kind.value_type.num_fields)]
    positions = list(chain.from_iterable(range(1, n + 1) for n in lengths))
    flat = (list(chain.from_iterable(items)), positions, *(list(chain.from_iterable(column)) for column in (scores, *optional)))
    values = [pa.array(column, field.type) for column, field in zip(flat, fields, strict=True)]
    if values[0].null_count:
        raise ValueError("an item_id is null")
    return pa.ListArray.from_arrays(offsets_of(lengths), pa.StructArray.from_arrays(values, fields=fields), kind)
