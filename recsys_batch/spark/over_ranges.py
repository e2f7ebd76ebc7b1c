"""A task per range of users, for work that writes somewhere else than into a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from recsys_batch.ranges import Range


def counted_over(spark: SparkSession, work: Callable[[Range], int], bounds: Sequence[Range]) -> int:
    """The sum of what ``work`` returns for each range. A task may run twice, so ``work`` must be safe to repeat."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            done = [work(bounds[number]) for number in batch.column(0).to_pylist()]
            yield pa.RecordBatch.from_pydict({"n": pa.array(done, pa.int64())})

    tasks = spark.range(0, len(bounds), 1, max(len(bounds), 1)).mapInArrow(run, "n BIGINT")
    return int(tasks.agg(F.coalesce(F.sum("n"), F.lit(0))).collect()[0][0])
