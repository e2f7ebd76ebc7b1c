"""Passes over users by ranges, shared by the steps: of all users, or of those whom an incremental night computes again."""

from collections.abc import Callable, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.dataset.user_events import EVENTS
from recsys_batch.night.incremental import BaseRun, changed_users_path, list_event_files, list_slice_files
from recsys_batch.night.run_context import CommittedSlice, RunContext
from recsys_batch.schemas import spark_ddl
from recsys_batch.spark.executors.carry_forward import BatchChange, carry_forward
from recsys_batch.spark.executors.changed_events import EventFiles, read_changed_events
from recsys_batch.spark.executors.functions import BatchFunction, RangeFunction, apply_by_range
from recsys_batch.tables.slice_writer import PYTHON_MS, WRITE_MS
from recsys_batch.tables.user_ranges import BATCH_ROWS, UserRange, ranges_of_files


def range_tasks(context: RunContext, rows: RangeFunction, bounds: Sequence[UserRange]) -> tuple[DataFrame, BatchFunction]:
    """Build a task per range, in which ``rows`` makes its rows; returns (tasks, function for mapInArrow)."""
    return task_ids(context, len(bounds)), apply_by_range(rows, bounds)


def carry_forward_tasks(
    context: RunContext,
    base: BaseRun,
    name: str,
    fresh: RangeFunction,
    change: Callable[[UserRange], BatchChange] | None = None,
    n_rows: int = BATCH_ROWS,
) -> tuple[DataFrame, BatchFunction]:
    """Build a task per file of the base run that copies unchanged rows and puts fresh ones in the place of changed users'; likewise."""
    carried = list_slice_files(context.table_slice(name), base.run)
    bounds = ranges_of_files(carried.parts)
    return task_ids(context, len(bounds)), carry_forward(carried, fresh, changed_users_path(context), bounds, change, n_rows)


def add_range_number(rows: DataFrame, bounds: Sequence[UserRange]) -> DataFrame:
    """Add the number of a row's user range as column "range", found by bisection."""

    def within(low: int, high: int) -> Column:
        if low == high:
            return F.lit(low)
        middle = (low + high) // 2
        return F.when(F.col("user_id") <= F.lit(bounds[middle][1]), within(low, middle)).otherwise(within(middle + 1, high))

    return rows.withColumn("range", within(0, len(bounds) - 1))


def only_changed(context: RunContext, rows: DataFrame) -> DataFrame:
    """Keep the rows of users whom an incremental night computes again."""
    changed = context.spark.read.parquet(changed_users_path(context))
    return rows.join(F.broadcast(changed), "user_id", "left_semi")


def read_changed_interactions(context: RunContext, base: BaseRun) -> DataFrame:
    """Read rows of EVENTS of an incremental night: those of users who changed, and all that came since the base run."""
    event_files = EventFiles(*list_event_files(context, base.run), changed_users_path(context))
    tasks = task_ids(context, len(event_files.paths))
    return tasks.mapInArrow(read_changed_events(event_files, context.ids), spark_ddl(EVENTS.arrow_schema(context.ids)))


def task_ids(context: RunContext, n: int) -> DataFrame:
    """Make rows 0 .. n - 1, a task each."""
    return context.spark.range(0, n, 1, max(n, 1))


def task_metrics(context: RunContext, step: str, written: CommittedSlice) -> dict[str, float]:
    """List the manifest's metrics of a step's main pass, as its tasks counted them; the rules' counts have names of their own.

    ``STEP.python_seconds`` and ``STEP.write_seconds`` are summed over tasks, so that they divide by STEP.seconds * STEP.cores.
    """
    counts = dict(written.counts)
    write, python = (counts.pop(name, 0) / 1000 for name in (WRITE_MS, PYTHON_MS))
    metrics = {name if "." in name else f"{step}.{name}": float(n) for name, n in counts.items()}
    own = {"bytes": written.n_bytes, "write_seconds": write, "python_seconds": max(python - write, 0.0)}
    own["cores"] = context.spark.sparkContext.defaultParallelism
    return metrics | {f"{step}.{name}": float(value) for name, value in own.items()}
