"""Files of a slice, read and rewritten by ranges of user_id, without the JVM.

The night's tables are written in order of user_id, so a range of users is a few neighbouring files, and two tables meet range by
range without a shuffle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_batch.storage.filesystems import join, parquet_file
from recsys_batch.tables.slice_writer import DataFile, TableSlice

UserRange = tuple[Any, Any]
"""(after, up to): user_ids above the first and not above the second; None where it is open."""

BATCH_ROWS, LIST_ROWS = 65_536, 2_048
"""Rows read at a time: of plain columns, and of lists of candidates; both a few megabytes."""


@dataclass(frozen=True)
class UserSortedFiles:
    """Files of a slice, each in order of user_id."""

    where: TableSlice
    parts: Sequence[DataFile]

    def batches(
        self, bounds: UserRange = (None, None), columns: Sequence[str] | None = None, n_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Rows of the range in the order of the files, at most ``n_rows`` at a time: memory that is still warm is used again."""
        schema = self._schema(columns)
        few = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        wanted = schema.names if "user_id" in schema.names else ["user_id", *schema.names]
        after, upto = bounds
        for part in self.parts:
            if (after is not None and part.last <= after) or (upto is not None and part.first > upto):
                continue
            inside = (after is None or part.first > after) and (upto is None or part.last <= upto)
            with parquet_file(join(self.where.root, part.path), read_dictionary=few) as file:
                groups = None if inside else _groups_within(file, bounds)
                for batch in file.iter_batches(n_rows, row_groups=groups, columns=wanted, use_threads=False):
                    kept = batch if inside else slice_to_range(batch, bounds)
                    if kept.num_rows:
                        yield kept.select(schema.names).cast(schema)

    def between(self, bounds: UserRange = (None, None), columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of the range, each column in one piece."""
        return pa.Table.from_batches(list(self.batches(bounds, columns)), self._schema(columns)).unify_dictionaries().combine_chunks()

    def _schema(self, columns: Sequence[str] | None) -> pa.Schema:
        schema = self.where.file_schema
        return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def ranges_of_files(parts: Sequence[DataFile]) -> list[UserRange]:
    """A range per part (one for those that end alike), which together take in every user there could be."""
    return ranges_from_cuts([part.last for part in parts])


def ranges_from_cuts(lasts: Iterable[Any]) -> list[UserRange]:
    """Ranges that end with these users; the last one is open."""
    ends = sorted(set(lasts))
    return list(zip([None, *ends[:-1]], [*ends[:-1], None], strict=True)) if ends else [(None, None)]


def slice_to_range(batch: pa.RecordBatch, bounds: UserRange) -> pa.RecordBatch:
    """Rows of the range."""
    inside = _inside(batch["user_id"], bounds)
    return batch if inside is None else batch.filter(inside)


def users_in_range(user_ids: pa.Array, bounds: UserRange) -> pa.Array:
    """Those of the range: a set that rows are looked up in is built anew for every batch of them."""
    inside = _inside(user_ids, bounds)
    return user_ids if inside is None else user_ids.filter(inside)


def _inside(user_ids: pa.Array, bounds: UserRange) -> pa.Array | None:
    found = None
    for bound, compare in zip(bounds, (pc.greater, pc.less_equal), strict=True):
        if bound is not None:
            one = compare(user_ids, pa.scalar(bound, user_ids.type))
            found = one if found is None else pc.and_(found, one)
    return found


def group_boundaries(user_ids: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The users of rows that lie user by user, and where each one's rows begin (int64 [n + 1], the last their number)."""
    if len(user_ids) == 0:
        return user_ids, np.zeros(1, dtype=np.int64)
    encoded = pc.run_end_encode(user_ids)
    return encoded.values, np.concatenate([[0], encoded.run_ends.to_numpy()]).astype(np.int64)


def drop_users(batch: pa.RecordBatch, users: pa.Array) -> pa.RecordBatch:
    """The batch without these users' rows, copied in the pieces between them: most rows stay, and a filter would look at each."""
    held, starts = group_boundaries(batch["user_id"])
    gone = np.flatnonzero(pc.is_in(held, value_set=users))
    if len(gone) == 0:
        return batch
    begins, ends = np.concatenate([[0], starts[gone + 1]]), np.concatenate([starts[gone], [batch.num_rows]])
    pieces = [batch.slice(begin, end - begin) for begin, end in zip(begins, ends, strict=True) if end > begin]
    return pa.concat_batches(pieces or [batch.slice(0, 0)])


def merge_sorted(carried: Iterable[pa.RecordBatch], changed: pa.Array, fresh: pa.Table) -> Iterator[tuple[pa.RecordBatch, int]]:
    """``carried`` without the changed users' rows, and the rows of ``fresh`` at their places; with each batch its carried rows.

    Args:
        carried, fresh: both in order of user_id, of one schema.
        changed: user_ids; those in ``fresh`` among them.
    """
    users, starts = group_boundaries(
        fresh["user_id"].combine_chunks() if fresh.num_rows else pa.array([], fresh.schema.field("user_id").type)
    )
    names, rows = _sortable(users), fresh.combine_chunks().to_batches()[0] if fresh.num_rows else None
    done = 0
    for batch in carried:
        if batch.num_rows == 0:
            continue
        held, begins = group_boundaries(batch["user_id"])
        gone = np.asarray(pc.is_in(held, value_set=changed))
        places = _sortable(held)
        upto = int(np.searchsorted(names, places[-1], side="right")) if len(names) else 0
        if not gone.any() and upto <= done:
            yield batch, batch.num_rows
            continue
        n_gone = int(np.diff(begins)[gone].sum())
        # Kept pieces and fresh rows in turn; a row is copied once, and most of a batch in long pieces.
        cuts = np.searchsorted(places, names[done:upto])
        events = sorted([(int(run), 0, 0) for run in np.flatnonzero(gone)] + [(int(run), -1, done + k) for k, run in enumerate(cuts)])
        pieces, position = [], 0
        for run, kind, number in events:
            if begins[run] > position:
                pieces.append(batch.slice(position, begins[run] - position))
                position = int(begins[run])
            if kind == 0:
                position = int(begins[run + 1])
            elif rows is not None:
                pieces.append(rows.slice(starts[number], starts[number + 1] - starts[number]))
        pieces.append(batch.slice(position))
        done = max(done, upto)
        yield pa.concat_batches([piece for piece in pieces if piece.num_rows] or [batch.slice(0, 0)]), batch.num_rows - n_gone
    if rows is not None and done < len(names):
        yield rows.slice(starts[done]), 0


def _sortable(values: pa.Array) -> np.ndarray:
    """For numpy's search: numbers, or Python's text, whose order is Arrow's."""
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _groups_within(file: pq.ParquetFile, bounds: UserRange) -> list[int]:
    """Row groups that may have a user of the range, by their statistics."""
    after, upto = bounds
    column = file.schema_arrow.get_field_index("user_id")
    chosen = []
    for number in range(file.metadata.num_row_groups):
        found = file.metadata.row_group(number).column(column).statistics
        known = found is not None and found.has_min_max
        if not known or ((after is None or found.max > after) and (upto is None or found.min <= upto)):
            chosen.append(number)
    return chosen
