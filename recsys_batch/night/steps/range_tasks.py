"""What the steps share: their result, and passes over users by ranges, of everybody or of those whom an incremental night computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.dataset.user_events import EVENTS
from recsys_batch.night.incremental.base_run import BaseRun, changed_users_path, list_event_files
from recsys_batch.night.run_context import CommittedSlice, RunContext
from recsys_batch.schemas import spark_ddl
from recsys_batch.spark.executors.carry_forward import BatchChange, carry_forward
from recsys_batch.spark.executors.changed_events import EventFiles, read_changed_events
from recsys_batch.spark.executors.functions import BatchFunction, RangeFunction, apply_by_range
from recsys_batch.tables.slice_writer import PYTHON_MS, WRITE_MS
from recsys_batch.tables.user_ranges import BATCH_ROWS, UserRange, ranges_of_files


def join_segments(users: DataFrame, night: RunContext, how: str) -> DataFrame:
    """With segment and attributes of the users table, nulls where there is none."""
    table = night.users_table()
    if table is None:
        nothing = F.lit(None)
        return users.withColumn("segment", nothing.cast("string")).withColumn("attributes", nothing.cast("map<string,string>"))
    return users.join(table, "user_id", how)


def range_tasks(night: RunContext, rows: RangeFunction, bounds: Sequence[UserRange]) -> tuple[DataFrame, BatchFunction]:
    """A task per range, in which ``rows`` makes its rows."""
    return task_ids(night, len(bounds)), apply_by_range(rows, bounds)


def carry_forward_tasks(
    night: RunContext,
    base: BaseRun,
    name: str,
    fresh: RangeFunction,
    change: Callable[[UserRange], BatchChange] | None = None,
    n_rows: int = BATCH_ROWS,
) -> tuple[DataFrame, BatchFunction]:
    """A task per file of the base's slice: its rows with the fresh ones in the place of the changed users'."""
    old = base.files(night.table_slice(name))
    bounds = ranges_of_files(old.parts)
    return task_ids(night, len(bounds)), carry_forward(old, fresh, changed_users_path(night), bounds, change, n_rows)


def repartition_by_range(rows: DataFrame, bounds: Sequence[UserRange]) -> DataFrame:
    """The same rows, each range in one task."""
    return add_range_number(rows, bounds).repartitionById(len(bounds), "range")


def add_range_number(rows: DataFrame, bounds: Sequence[UserRange]) -> DataFrame:
    """The same rows with the number of their user's range as "range"."""
    return rows.withColumn("range", _range_of(bounds))


def _range_of(bounds: Sequence[UserRange]) -> Column:
    """The place of a user_id's range, by halving."""

    def within(low: int, high: int) -> Column:
        if low == high:
            return F.lit(low)
        middle = (low + high) // 2
        return F.when(F.col("user_id") <= F.lit(bounds[middle][1]), within(low, middle)).otherwise(within(middle + 1, high))

    return within(0, len(bounds) - 1)


def only_changed(night: RunContext, rows: DataFrame) -> DataFrame:
    """Rows of the users whom an incremental night computes again."""
    changed = night.spark.read.parquet(changed_users_path(night))
    return rows.join(F.broadcast(changed), "user_id", "left_semi")


def read_changed_interactions(night: RunContext, base: BaseRun) -> DataFrame:
    """Rows of EVENTS of an incremental night: those of users who changed, and all that came since the base."""
    files = list_event_files(night, base.run)
    wanted = EventFiles(*files, changed_users_path(night))
    return task_ids(night, len(wanted.paths)).mapInArrow(read_changed_events(wanted, night.ids), spark_ddl(EVENTS.arrow_schema(night.ids)))


def task_ids(night: RunContext, n: int) -> DataFrame:
    """0 .. n - 1, a task each."""
    return night.spark.range(0, n, 1, max(n, 1))


def task_metrics(night: RunContext, step: str, written: CommittedSlice) -> dict[str, float]:
    """What the tasks of a step's main pass counted, for the manifest; the rules' counts have names of their own.

    ``STEP.python_seconds`` and ``STEP.write_seconds`` are summed over tasks, so that they divide by STEP.seconds * STEP.cores.
    """
    counts = dict(written.counts)
    write, python = (counts.pop(name, 0) / 1000 for name in (WRITE_MS, PYTHON_MS))
    metrics = {name if "." in name else f"{step}.{name}": float(n) for name, n in counts.items()}
    own = {"bytes": written.n_bytes, "write_seconds": write, "python_seconds": max(python - write, 0.0)}
    own["cores"] = night.spark.sparkContext.defaultParallelism
    return metrics | {f"{step}.{name}": float(value) for name, value in own.items()}
