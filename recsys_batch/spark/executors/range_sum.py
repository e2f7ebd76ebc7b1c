"""Tasks per range of users, for work that writes somewhere else than into a table: filling Redis, for one."""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from recsys_batch.spark.executors.functions import apply_by_range
from recsys_batch.tables.user_ranges import UserRange


def sum_over_ranges(spark: SparkSession, work: Callable[[UserRange], int], bounds: Sequence[UserRange]) -> int:
    """Sum what ``work`` returns for each range, a task each. A task may run twice, so ``work`` must be safe to repeat."""

    def sum_range(user_range: UserRange) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"n": pa.array([work(user_range)], pa.int64())})

    tasks = spark.range(0, len(bounds), 1, max(len(bounds), 1)).mapInArrow(apply_by_range(sum_range, bounds), "n BIGINT")
    return int(tasks.agg(F.coalesce(F.sum("n"), F.lit(0))).collect()[0][0])
