"""Rows of few users out of a slice's files, and rows in memory that are read as such files are. No JVM."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.storage.filesystems import join, parquet_file
from recsys_batch.tables.slice_writer import TableSlice
from recsys_batch.tables.user_ranges import BATCH_ROWS, UserRange, UserSortedFiles, select_row_groups, slice_to_range, to_numpy_keys


@dataclass(frozen=True)
class UserSortedRows:
    """Rows in memory in order of user_id, with the methods of ``UserSortedFiles``.

    Attributes:
        where: the slice whose columns they have; nothing is read from it.
    """

    where: TableSlice
    rows: pa.Table

    def batches(
        self, bounds: UserRange = (None, None), columns: Sequence[str] | None = None, n_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Give the rows of a range, at most ``n_rows`` at a time."""
        for batch in self.rows.to_batches(n_rows):
            inside = slice_to_range(batch, bounds)
            if inside.num_rows:
                yield inside if columns is None else inside.select(list(columns))

    def between(self, bounds: UserRange = (None, None), columns: Sequence[str] | None = None) -> pa.Table:
        """Give all rows of a range, each column in one piece."""
        rows = self.rows if columns is None else self.rows.select(list(columns))
        return pa.Table.from_batches(list(self.batches(bounds, columns)), rows.schema).combine_chunks()


UserSortedSource = UserSortedFiles | UserSortedRows
"""Where rows of users are read from, range by range."""


def read_rows_of_users(files: UserSortedFiles, users: pa.Array) -> pa.Table:
    """Read the rows of some users, in order of user_id: only the files and row groups that may hold one of them are decoded.

    Args:
        users: user_ids, ascending, without nulls.
    """
    schema = files.where.file_schema
    may_hold, tables = partial(_has_key, to_numpy_keys(users)), [schema.empty_table()]
    for part in files.parts:
        if not may_hold(part.first, part.last):
            continue
        with parquet_file(join(files.where.root, part.path)) as file:
            if groups := select_row_groups(file, may_hold):
                rows = file.read_row_groups(groups, columns=schema.names, use_threads=False)
                tables.append(rows.filter(pc.is_in(rows["user_id"], value_set=users)).cast(schema))
    return pa.concat_tables(tables).combine_chunks()


def _has_key(keys: np.ndarray, first: Any, last: Any) -> bool:
    """Say whether one of the keys (ascending) is between two, both included."""
    return bool(np.searchsorted(keys, last, side="right") > np.searchsorted(keys, first, side="left"))
