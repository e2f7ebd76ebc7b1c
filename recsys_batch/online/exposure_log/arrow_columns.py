"""Arrow columns of many Python rows at once: flat lists, no object per item. Used by exposure.py and feedback.py."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa

LogId = int | str


def offsets_of(lengths: Sequence[int]) -> pa.Array:
    """Compute the offsets of lists in their values: int32, one more than there are lists."""
    return pa.array([0, *accumulate(lengths)], pa.int32())


def flatten(lists: Sequence[Iterable[Any]], kind: pa.DataType) -> pa.Array:
    """Concatenate lists to one array."""
    return pa.array(list(chain.from_iterable(lists)), kind)


def string_map_column(mappings: Sequence[Mapping[str, Any]], kind: pa.MapType) -> pa.Array:
    """Make a MAP<STRING,STRING> column: text as it is, other values as JSON, null as null."""
    keys = flatten(mappings, kind.key_type)
    texts = flatten([[_text(value) for value in mapping.values()] for mapping in mappings], kind.item_type)
    return pa.MapArray.from_arrays(offsets_of(list(map(len, mappings))), keys, texts, kind)


def make_record_batch(columns: Sequence[pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    """Make a record batch of columns in the schema's order.

    Raises:
        ValueError: a column that must not be null is, or lengths or types differ.
    """
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    for field, column in zip(schema, columns, strict=True):
        if column.null_count and not field.nullable:
            raise ValueError(f"{field.name} is null in {column.null_count} of {len(column)} rows")
    return batch


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
