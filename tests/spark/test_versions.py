"""Jars follow the installed pyspark, and a pair that has none is refused with what to do."""

import re

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.errors import UsageError
from recsys_batch.spark.versions import OLDEST_DELTA, name_delta_jar, partition_by_chosen_keys, partition_by_number, require_delta_jar


@pytest.mark.parametrize(
    ("pyspark", "delta", "artefact"),
    [
        ("4.0.5", "4.0.1", "delta-spark_2.13"),
        ("4.0.5", "4.4.0", "delta-spark_4.0_2.13"),
        ("4.1.1", "4.3.1", "delta-spark_4.1_2.13"),
        ("4.2.0", "4.4.0", "delta-spark_4.2_2.13"),
        ("4.3.0", "4.5.0", "delta-spark_4.3_2.13"),
        ("4.10.0", "4.11.0rc1", "delta-spark_4.10_2.13"),
    ],
)
def test_an_artefact_is_of_sparks_minor_release_and_before_delta_4_1_of_none(pyspark: str, delta: str, artefact: str) -> None:
    assert name_delta_jar(pyspark, delta) == artefact


@pytest.mark.parametrize(
    ("pyspark", "delta"),
    [("4.1.1", "4.0.1"), ("4.1.4", "4.1.0"), ("4.2.0", "4.1.0"), ("4.2.0", "4.3.1"), ("4.3.0", "4.4.0")],
)
def test_a_delta_that_does_not_fit_the_spark_is_refused(pyspark: str, delta: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"delta-spark {delta} does not fit pyspark {pyspark}: install a pair that does")):
        name_delta_jar(pyspark, delta)


def test_the_refusal_names_the_pairs_that_fit() -> None:
    with pytest.raises(UsageError) as refusal:
        name_delta_jar("4.2.0", "4.1.0")
    assert all(f"pyspark {spark} with delta-spark {major}.{minor}" in str(refusal.value) for spark, (major, minor) in OLDEST_DELTA.items())


def test_jars_of_the_installed_spark_are_taken_whatever_their_patch_release() -> None:
    require_delta_jar(["delta-spark_4.2_2.13-4.4.0.jar", "delta-storage-4.4.0.jar"], ".jars", "4.2.0", "4.4.1")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "no Delta jars in .jars (paths.jars); pyspark 4.1.4 needs delta-spark_4.1_2.13-4.4.0.jar: run `make setup`"),
        (["delta-storage-4.4.0.jar"], "no Delta jars in .jars"),
        (["delta-spark_4.2_2.13-4.4.0.jar"], "are those of another release, delta-spark_4.2_2.13-4.4.0.jar; pyspark 4.1.4 needs"),
        (["delta-spark_4.1_2.13-4.4.0.jar", "delta-spark_2.13-4.0.1.jar"], "are those of another release"),
    ],
)
def test_jars_of_another_spark_are_refused(names: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)):
        require_delta_jar(names, ".jars", "4.1.4", "4.4.0")


@pytest.mark.parametrize("partition", [partition_by_number, partition_by_chosen_keys], ids=["as here", "as on Spark 4.0"])
def test_rows_come_into_the_partition_that_their_number_names(spark: SparkSession, partition: object) -> None:
    rows = spark.range(0, 70, 1, 3).select((F.col("id") % 7).cast("int").alias("range"), "id")
    placed: DataFrame = partition(rows, 7, "range")  # type: ignore[operator]
    assert placed.columns == ["range", "id"] and placed.rdd.getNumPartitions() == 7
    seen = placed.select("range", F.spark_partition_id().alias("partition")).groupBy("range", "partition").count().collect()
    assert sorted((row["range"], row["partition"], row["count"]) for row in seen) == [(number, number, 10) for number in range(7)]
