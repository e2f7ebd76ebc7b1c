"""Executor code of an incremental night: the base run's rows carried forward, with rows computed again in the place of changed users'."""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from recsys_batch.spark.executors.changed_events import find_changed_users
from recsys_batch.spark.executors.functions import BatchFunction, RangeFunction, apply_by_range
from recsys_batch.tables.slice_writer import attach_counts, read_counts
from recsys_batch.tables.user_ranges import BATCH_ROWS, UserRange, UserSortedFiles, group_boundaries, merge_sorted, users_in_range

CARRIED, COMPUTED = "rows_carried", "users_computed"
"""Counts of a merge."""

BatchChange = Callable[[pa.RecordBatch], pa.RecordBatch]


def carry_forward(
    base: UserSortedFiles,
    fresh: RangeFunction,
    changed: str,
    bounds: Sequence[UserRange],
    change: Callable[[UserRange], BatchChange] | None = None,
    n_rows: int = BATCH_ROWS,
) -> BatchFunction:
    """Make a function for mapInArrow: numbers of ``bounds`` -> the base's rows without the changed users', and the fresh rows, by user.

    Args:
        base: its rows stream through.
        fresh: rows of a range's users who are computed again; all of them are in memory.
        changed: location of a Parquet file of user_id; the users of fresh rows are replaced, too.
        change: what is done to rows of the base first, in a range.
        n_rows: of the base, that are read at a time.
    """
    schema = base.where.file_schema

    def rows(within: UserRange) -> Iterator[pa.RecordBatch]:
        computed = [batch for batch in fresh(within) if batch.num_rows]
        counts = sum((Counter(read_counts(batch)) for batch in computed), Counter())
        fresh_rows = pa.Table.from_batches([base.where.conform(batch) for batch in computed], schema)
        users = group_boundaries(fresh_rows["user_id"].combine_chunks())[0] if computed else pa.array([], schema.field("user_id").type)
        replaced = pa.concat_arrays([users_in_range(find_changed_users(changed), within), users])
        counts[COMPUTED] = len(users)
        carried = base.batches(within, n_rows=n_rows)
        if change is not None:
            carried = map(change(within), carried)
        for batch, n_carried in merge_sorted(carried, replaced, fresh_rows):
            if batch.num_rows:
                yield attach_counts(batch, {CARRIED: n_carried, **counts})
                counts = Counter()

    return apply_by_range(rows, bounds)


def restamp(generated_at: dt.datetime) -> Callable[[UserRange], BatchChange]:
    """Make the change of topk's rows that gives carried ones this night's ``generated_at``."""

    def change(rows: pa.RecordBatch) -> pa.RecordBatch:
        field = rows.schema.field("generated_at")
        stamp = pa.repeat(pa.scalar(generated_at, field.type), rows.num_rows)
        return rows.set_column(rows.schema.get_field_index("generated_at"), field, stamp)

    return lambda bounds: change
