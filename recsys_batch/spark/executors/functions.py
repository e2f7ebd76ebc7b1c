"""The shapes of executor code, plain functions over record batches, which a test calls without a session; and what runs them."""

import cProfile
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pyspark.sql import SparkSession

from recsys_batch.tables.user_ranges import UserRange

BatchFunction = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""What mapInArrow takes. Empty iterators and empty batches happen."""

RangeFunction = Callable[[UserRange], Iterator[pa.RecordBatch]]
"""The rows that a step makes for a range of users, in their order."""

PROFILE_FOLDER = "RECSYS_BATCH_PROFILE"
"""Environment variable of executors: the folder, on a path that every node mounts, that each task leaves its profile in."""


def apply_by_range(rows: RangeFunction, bounds: Sequence[UserRange]) -> BatchFunction:
    """Make a function for mapInArrow: numbers of ``bounds`` -> the rows of these ranges."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from rows(bounds[number])

    return run


def sum_over_ranges(spark: SparkSession, work: Callable[[UserRange], int], bounds: Sequence[UserRange]) -> int:
    """Sum what ``work`` returns for each range, a task each, for work that writes somewhere else than into a table: filling Redis, say.

    A task may run twice, so ``work`` must be safe to repeat.
    """

    def sum_range(user_range: UserRange) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"n": pa.array([work(user_range)], pa.int64())})

    tasks = spark.range(0, len(bounds), 1, max(len(bounds), 1)).mapInArrow(apply_by_range(sum_range, bounds), "n BIGINT")
    return int(tasks.agg({"n": "sum"}).collect()[0][0] or 0)


def profile_batches(function: BatchFunction, name: str) -> BatchFunction:
    """Wrap ``function`` so that its tasks write NAME-*.prof where ``PROFILE_FOLDER`` is set on their executor (tools/profile_night.py)."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        folder = os.environ.get(PROFILE_FOLDER)
        if not folder:
            yield from function(batches)
            return
        profile, results = cProfile.Profile(), function(batches)
        while True:
            with profile:
                batch = next(results, None)
            if batch is None:
                break
            yield batch
        profile.dump_stats(Path(folder) / f"{name}-{uuid.uuid4().hex}.prof")

    return run
