"""Python rows to Arrow columns with as little time under the interpreter's lock as can be: flat lists, no object per item."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa

LogId = int | str


def offsets_of(lengths: Sequence[int]) -> pa.Array:
    """int32, one more than there are lists."""
    return pa.array([0, *accumulate(lengths)], pa.int32())


def flatten(lists: Sequence[Iterable[Any]], kind: pa.DataType) -> pa.Array:
    """All values of all lists."""
    return pa.array(list(chain.from_iterable(lists)), kind)


def string_map_column(values: Sequence[Mapping[str, Any]], kind: pa.MapType) -> pa.Array:
    """MAP<STRING,STRING>: text as it is, other values as JSON, null as null."""
    keys = flatten(values, kind.key_type)
    texts = flatten([[_text(value) for value in each.values()] for each in values], kind.item_type)
    return pa.MapArray.from_arrays(offsets_of(list(map(len, values))), keys, texts, kind)


def make_record_batch(columns: Sequence[pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    """The columns by place.

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
