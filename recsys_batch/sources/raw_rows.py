"""A batch of source rows, in whichever format they were: the file's columns, and the rows as JSON for the rejected table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from recsys_batch.sources.values import to_text


@dataclass(frozen=True)
class RawRows:
    """Rows of one file.

    Attributes:
        positions: int64, ascending, unique in the file.
        columns: the file's name -> values; null in malformed lines.
        malformed: text of a line that is no row; null otherwise.
        texts: each row as the file spells it, where that is JSON already.
    """

    positions: np.ndarray
    columns: Mapping[str, pa.Array]
    malformed: pa.Array
    texts: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, rows: np.ndarray) -> "RawRows":
        """Select rows by their places in the batch."""
        places = pa.array(rows)
        columns = {name: column.take(places) for name, column in self.columns.items()}
        texts = None if self.texts is None else self.texts.take(places)
        return replace(self, positions=self.positions[rows], columns=columns, malformed=self.malformed.take(places), texts=texts)

    def to_json(self) -> pa.Array:
        """Spell each row as JSON without its nulls and blanks; a malformed line as its text under ``_line``."""
        columns = {name: to_text(column) if _needs_text(column.type) else column for name, column in self.columns.items()}
        values = zip(*(column.to_pylist() for column in columns.values()), strict=True) if columns else [()] * len(self)
        texts = [None] * len(self) if self.texts is None else self.texts.to_pylist()
        spelt = (
            text or _spell({"_line": line} if line is not None else dict(zip(columns, row, strict=True)))
            for line, text, row in zip(self.malformed.to_pylist(), texts, values, strict=True)
        )
        return pa.array(spelt, pa.string())


def _needs_text(kind: pa.DataType) -> bool:
    return not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_nested(kind))


def _spell(row: Mapping[str, object]) -> str:
    present = {name: value for name, value in row.items() if value is not None and value != ""}
    return json.dumps(present, ensure_ascii=False, default=str, separators=(",", ":"))
