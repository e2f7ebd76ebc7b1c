"""Jars follow the installed pyspark, and a pair that has none is refused with what to do."""

import re

import pytest

from recsys_batch.errors import UsageError
from recsys_batch.spark.versions import OLDEST_DELTA, name_delta_jar, require_delta_jar


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
