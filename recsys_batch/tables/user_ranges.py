"""Reads and rewrites the files of a slice by ranges of user_id, without the JVM.

The night's tables are written in order of user_id, so a range of users is a few neighbouring files, and two tables meet range by
range without a shuffle.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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
"""Rows per batch that is read, of plain columns and of lists of candidates; both a few megabytes."""


@dataclass(frozen=True)
class UserSortedFiles:
    """Data files of a slice, each in order of user_id."""

    where: TableSlice
    parts: Sequence[DataFile]

    def batches(
        self, bounds: UserRange = (None, None), columns: Sequence[str] | None = None, n_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Read the rows of a range in the order of the files, at most ``n_rows`` at a time: memory that is still warm is used again."""
        schema = self._schema(columns)
        few = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        wanted = schema.names if "user_id" in schema.names else ["user_id", *schema.names]
        after, upto = bounds
        for part in self.parts:
            if not _overlaps(bounds, part.first, part.last):
                continue
            inside = (after is None or part.first > after) and (upto is None or part.last <= upto)
            with parquet_file(join(self.where.root, part.path), read_dictionary=few) as file:
                groups = None if inside else select_row_groups(file, partial(_overlaps, bounds))
                for batch in file.iter_batches(n_rows, row_groups=groups, columns=wanted, use_threads=False):
                    rows = batch if inside else slice_to_range(batch, bounds)
                    if rows.num_rows:
                        yield rows.select(schema.names).cast(schema)

    def between(self, bounds: UserRange = (None, None), columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows of a range, each column in one piece."""
        return pa.Table.from_batches(list(self.batches(bounds, columns)), self._schema(columns)).unify_dictionaries().combine_chunks()

    def _schema(self, columns: Sequence[str] | None) -> pa.Schema:
        schema = self.where.file_schema
        return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def ranges_of_files(parts: Sequence[DataFile]) -> list[UserRange]:
    """Make a range per file (one for those that end alike), which together cover every possible user."""
    return ranges_from_cuts([part.last for part in parts])


def ranges_from_cuts(lasts: Iterable[Any]) -> list[UserRange]:
    """Make the ranges that end with these users; the last one is open."""
    ends = sorted(set(lasts))
    return list(zip([None, *ends[:-1]], [*ends[:-1], None], strict=True)) if ends else [(None, None)]


def slice_to_range(batch: pa.RecordBatch, bounds: UserRange) -> pa.RecordBatch:
    """Keep the rows of a range."""
    inside = _range_mask(batch["user_id"], bounds)
    return batch if inside is None else batch.filter(inside)


def users_in_range(user_ids: pa.Array, bounds: UserRange) -> pa.Array:
    """Keep the users of a range, as a smaller set to look rows up in: the set is built anew for every batch of rows."""
    inside = _range_mask(user_ids, bounds)
    return user_ids if inside is None else user_ids.filter(inside)


def _range_mask(user_ids: pa.Array, bounds: UserRange) -> pa.Array | None:
    mask = None
    for bound, compare in zip(bounds, (pc.greater, pc.less_equal), strict=True):
        if bound is not None:
            side = compare(user_ids, pa.scalar(bound, user_ids.type))
            mask = side if mask is None else pc.and_(mask, side)
    return mask


def group_boundaries(user_ids: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Find the users of rows that lie user by user, and where each user's rows begin (int64 [n + 1], the last the number of rows)."""
    if len(user_ids) == 0:
        return user_ids, np.zeros(1, dtype=np.int64)
    encoded = pc.run_end_encode(user_ids)
    return encoded.values, np.concatenate([[0], encoded.run_ends.to_numpy()]).astype(np.int64)


def drop_users(batch: pa.RecordBatch, users: pa.Array) -> pa.RecordBatch:
    """Drop these users' rows, by copying the pieces between them: most rows stay, and a filter would look at each."""
    batch_users, starts = group_boundaries(batch["user_id"])
    dropped = np.flatnonzero(pc.is_in(batch_users, value_set=users))
    if len(dropped) == 0:
        return batch
    begins, ends = np.concatenate([[0], starts[dropped + 1]]), np.concatenate([starts[dropped], [batch.num_rows]])
    pieces = [batch.slice(begin, end - begin) for begin, end in zip(begins, ends, strict=True) if end > begin]
    return pa.concat_batches(pieces or [batch.slice(0, 0)])


def merge_sorted(carried: Iterable[pa.RecordBatch], changed: pa.Array, fresh: pa.Table) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Replace the changed users' rows of ``carried`` by those of ``fresh``, in order; yields batches and their number of carried rows.

    Args:
        carried, fresh: both in order of user_id, of one schema. changed: user_ids; those in ``fresh`` among them.
    """
    users, starts = group_boundaries(fresh["user_id"].combine_chunks())
    fresh_keys, rows = to_numpy_keys(users), fresh.combine_chunks().to_batches()[0] if fresh.num_rows else None
    done = 0
    for batch in carried:
        if batch.num_rows == 0:
            continue
        batch_users, begins = group_boundaries(batch["user_id"])
        is_changed = np.asarray(pc.is_in(batch_users, value_set=changed))
        batch_keys = to_numpy_keys(batch_users)
        upto = int(np.searchsorted(fresh_keys, batch_keys[-1], side="right")) if len(fresh_keys) else 0
        if not is_changed.any() and upto <= done:
            yield batch, batch.num_rows
            continue
        n_gone = int(np.diff(begins)[is_changed].sum())
        # Kept pieces and fresh rows in turn; a row is copied once, and most of a batch in long pieces.
        cuts = np.searchsorted(batch_keys, fresh_keys[done:upto])
        events = sorted([(int(run), 0, 0) for run in np.flatnonzero(is_changed)] + [(int(run), -1, done + k) for k, run in enumerate(cuts)])
        pieces, position = [], 0
        for run, action, number in events:
            if begins[run] > position:
                pieces.append(batch.slice(position, begins[run] - position))
                position = int(begins[run])
            if action == 0:
                position = int(begins[run + 1])
            elif rows is not None:
                pieces.append(rows.slice(starts[number], starts[number + 1] - starts[number]))
        pieces.append(batch.slice(position))
        done = max(done, upto)
        yield pa.concat_batches([piece for piece in pieces if piece.num_rows] or [batch.slice(0, 0)]), batch.num_rows - n_gone
    if rows is not None and done < len(fresh_keys):
        yield rows.slice(starts[done]), 0


def to_numpy_keys(values: pa.Array) -> np.ndarray:
    """Convert ids for numpy's search: numbers, or Python's text, whose order is Arrow's."""
    return np.asarray(values.to_numpy(zero_copy_only=False))


def select_row_groups(file: pq.ParquetFile, may_hold: Callable[[Any, Any], bool]) -> list[int]:
    """List the row groups whose least and greatest user ``may_hold`` accepts, and those that do not say theirs."""
    column = file.schema_arrow.get_field_index("user_id")
    statistics = [file.metadata.row_group(number).column(column).statistics for number in range(file.metadata.num_row_groups)]
    return [n for n, group in enumerate(statistics) if group is None or not group.has_min_max or may_hold(group.min, group.max)]


def _overlaps(bounds: UserRange, first: Any, last: Any) -> bool:
    """Say whether users from ``first`` to ``last`` may be in a range."""
    after, upto = bounds
    return (after is None or last > after) and (upto is None or first <= upto)
