"""What the steps share: their result, passes over users, and the merge of an incremental night."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.night.context import Night, Written
from recsys_batch.night.incremental import Base, changed_file
from recsys_batch.night.partitions import user_tasks, users_per_task
from recsys_batch.slices import PYTHON_MS, WRITE_MS
from recsys_batch.spark.batches import BatchFunction
from recsys_batch.spark.carry import Files, Range, ranges, replaced


@dataclass(frozen=True)
class StepResult:
    """What a step did: Delta versions by table, rows written, users handled, further numbers for the manifest."""

    versions: dict[str, int]
    rows: int
    users: int
    metrics: dict[str, float] = field(default_factory=dict)


def n_tasks(night: Night, n_users: int) -> int:
    """Tasks for a pass over so many users."""
    per_task = users_per_task(night.config.retrieval.n_candidates, night.bundle.embedding_dim)
    return user_tasks(n_users, per_task, night.spark.sparkContext.defaultParallelism)


def by_user(rows: DataFrame, n_tasks: int) -> DataFrame:
    """In ranges of user_id, sorted: each file of the slice then holds users that no other file has, and its statistics say which.

    The last thing before rows are used, as a join would choose tasks of its own.
    """
    return rows.repartitionByRange(n_tasks, "user_id").sortWithinPartitions("user_id")


def approximate_users(rows: DataFrame) -> int:
    """Distinct users, within a few per cent: enough to choose a number of tasks."""
    return int(cast("Any", rows.agg(F.approx_count_distinct("user_id")).head())[0])


def with_segments(users: DataFrame, night: Night, how: str) -> DataFrame:
    """With segment and attributes of the users table, nulls where there is none."""
    table = night.users_table()
    if table is None:
        nothing = F.lit(None)
        return users.withColumn("segment", nothing.cast("string")).withColumn("attributes", nothing.cast("map<string,string>"))
    return users.join(table, "user_id", how)


def of_changed(night: Night, rows: DataFrame) -> DataFrame:
    """Rows of the users whom an incremental night computes again."""
    changed = night.spark.read.parquet(str(changed_file(night)))
    return rows.join(F.broadcast(changed), "user_id", "left_semi")


def merged(
    night: Night,
    base: Base,
    name: str,
    fresh: Files,
    extend: Callable[[pa.Table, Range], pa.Table] | None = None,
    count: Callable[[BatchFunction], BatchFunction] = lambda function: function,
) -> Written:
    """The base's slice with the fresh rows in the place of the changed users', in tasks of the base's files.

    Args:
        extend: of ``replaced``.
        count: wraps what is written, to count in it.
    """
    old = base.files(night.slice(name))
    bounds = ranges(old.parts)
    written = night.write_slice(name, numbers(night, len(bounds)), count(replaced(old, fresh, changed_file(night), bounds, extend)))
    night.drop_drafts()
    return written


def numbers(night: Night, n: int) -> DataFrame:
    """0 .. n - 1, a task each."""
    return night.spark.range(0, n, 1, max(n, 1))


def counted_metrics(night: Night, step: str, written: Written) -> dict[str, float]:
    """What the tasks of a step's main pass counted, for the manifest; the rules' counts have names of their own.

    ``STEP.python_seconds`` and ``STEP.write_seconds`` are summed over tasks, so that they divide by STEP.seconds * STEP.cores.
    """
    counts = dict(written.counts)
    write, python = (counts.pop(name, 0) / 1000 for name in (WRITE_MS, PYTHON_MS))
    metrics = {name if "." in name else f"{step}.{name}": float(n) for name, n in counts.items()}
    own = {"bytes": written.n_bytes, "write_seconds": write, "python_seconds": max(python - write, 0.0)}
    own["cores"] = night.spark.sparkContext.defaultParallelism
    return metrics | {f"{step}.{name}": float(value) for name, value in own.items()}
