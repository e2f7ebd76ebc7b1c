"""The users who are erased, and where their ids stand: in rows, in raw rows, in what a log says of files."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.ids import parse_bigint
from recsys_batch.schemas import IdType
from recsys_batch.tables.raw_rows import iterate_values

_FEW = 20
"""Up to so many ids raw rows are searched for each of them, before any is parsed."""
_STATS_CHARACTERS = 32
"""Spark's log keeps so many characters of a text's bounds."""


@dataclass(frozen=True)
class ErasedUsers:
    """Ids as they were given, as text; in the tables they are BIGINT or STRING."""

    ids: frozenset[str] = field(repr=False)

    def keys(self, kind: IdType) -> list[int] | list[str]:
        """List the ids in the tables' type, ascending; what is no id of that type is left out."""
        if kind == "STRING":
            return sorted(self.ids)
        return sorted({number for text in self.ids if (number := parse_bigint(text)) is not None})

    def values(self, kind: pa.DataType) -> pa.Array:
        """Make the ids an array of a column's type, ascending."""
        return pa.array(self.keys("BIGINT" if pa.types.is_integer(kind) else "STRING"), kind)

    def mark_rows(self, rows: pa.Table) -> pa.Array:
        """Mark the rows of these users: by user_id, or where there is none by the raw row. Returns bool [n], without nulls."""
        if "user_id" in rows.schema.names:
            column = rows["user_id"].combine_chunks()
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            return pc.is_in(column, value_set=self.values(column.type))
        return self._mark_raw(rows["row"].combine_chunks())

    def _mark_raw(self, rows: pa.Array) -> pa.Array:
        texts = rows.to_pylist()
        if len(self.ids) > _FEW:
            return pa.array([row is not None and self.names_row(row) for row in texts], pa.bool_())
        may_hold = [False] * len(rows)
        for text in self.ids:
            found = pc.fill_null(pc.match_substring(rows, text), False).to_pylist()
            may_hold = [before or now for before, now in zip(may_hold, found, strict=True)]
        return pa.array([maybe and self.names_row(row) for maybe, row in zip(may_hold, texts, strict=True)], pa.bool_())

    def names_row(self, row: str) -> bool:
        """Say whether a raw row is about one of them."""
        return any(value in self.ids for value in iterate_values(row))

    def has_key_between(self, least: Any, most: Any) -> bool:
        """Say whether one of the ids is between two of the tables' type, both included."""
        keys = self._numbers if isinstance(least, int) else self._texts
        return any(least <= key <= most for key in keys)

    def has_id(self, user_id: int | str) -> bool:
        """Say whether an id, as a request spelt it, is one of them."""
        return str(user_id) in self.ids or parse_bigint(user_id) in self._numbers

    def is_one(self, value: Any) -> bool:
        """Say whether a JSON value is one of the ids, or what a log keeps of a long one."""
        if isinstance(value, str):
            # Spark cuts a text's bounds, and may put a last character behind the greatest.
            is_cut = len(value) in (_STATS_CHARACTERS, _STATS_CHARACTERS + 1)
            return value in self.ids or (is_cut and any(text.startswith(value[:_STATS_CHARACTERS]) for text in self.ids))
        return isinstance(value, int) and not isinstance(value, bool) and value in self._numbers

    def is_in_text(self, text: str) -> bool:
        """Say whether one of the ids stands in text, which may be a raw row that was cut off, with no letter or digit beside it."""
        return any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text) for one in self.ids if one in text)

    @cached_property
    def _numbers(self) -> frozenset[int]:
        return frozenset(number for text in self.ids if (number := parse_bigint(text)) is not None)

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        return tuple(sorted(self.ids))
