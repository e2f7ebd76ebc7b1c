"""Popular lists by their definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from recsys_batch.schemas import ALL_SEGMENTS
from recsys_batch.spark.histories import popularity

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.mark.parametrize("with_users", [True, False])
def test_an_item_counts_each_user_once_in_the_segment_and_for_everybody(spark: SparkSession, with_users: bool) -> None:
    taken = [("a", 1), ("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2), ("d", 3), ("d", 9), ("e", 2)]
    positives = spark.createDataFrame(taken, "user_id STRING, item_id BIGINT")
    # d is in no segment, e is not in the table, and one calls itself what stands for everybody
    segments = [("a", "x"), ("b", "x"), ("c", ALL_SEGMENTS), ("d", None), ("f", "y")]
    users = spark.createDataFrame(segments, "user_id STRING, segment STRING") if with_users else None
    available = spark.createDataFrame([(1,), (2,), (3,), (4,)], "item_id BIGINT")
    rows = popularity(positives, users, available, 2).orderBy("segment", "rank").collect()
    everybody = [(ALL_SEGMENTS, 1, 1, 3.0), (ALL_SEGMENTS, 2, 2, 3.0)]
    assert [tuple(row) for row in rows] == everybody + ([("x", 1, 1, 2.0), ("x", 2, 2, 2.0)] if with_users else [])
