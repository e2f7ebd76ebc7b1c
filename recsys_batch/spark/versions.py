"""Differences between releases of Spark and Delta: the names of jars, which releases fit each other, and what Spark 4.0 lacks.

Nothing else in the package asks for a version of pyspark or delta-spark. `make compat` tries the pairs.
"""

from collections.abc import Iterable

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.errors import UsageError

OLDEST_DELTA = {"4.0": (4, 0), "4.1": (4, 2), "4.2": (4, 4)}
"""Spark's minor release -> the oldest Delta that was seen to work with it; those before have no jars, or fail (docs/decisions/0263)."""
_NEWEST_TRIED = max(OLDEST_DELTA.values())
_SCALA = "2.13"


def name_delta_jar(pyspark: str, delta: str) -> str:
    """Name the Maven artefact of Delta for an installed pyspark, such as ``delta-spark_4.2_2.13``.

    Delta 4.0 is for Spark 4.0 only and has no Spark in its name; later releases have an artefact for each minor release of Spark.

    Args:
        pyspark, delta: versions of the packages pyspark and delta-spark, such as ``4.2.0``.
    Raises:
        UsageError: this Delta has no jars for this Spark, or fails with it.
    """
    spark_minor, release = ".".join(pyspark.split(".")[:2]), _read_minor(delta)
    oldest = OLDEST_DELTA.get(spark_minor, (_NEWEST_TRIED[0], _NEWEST_TRIED[1] + 1))
    if release < oldest or (release == (4, 0) and spark_minor != "4.0"):
        fitting = "; ".join(f"pyspark {spark} with delta-spark {major}.{minor} or newer" for spark, (major, minor) in OLDEST_DELTA.items())
        raise UsageError(f"delta-spark {delta} does not fit pyspark {pyspark}: install a pair that does ({fitting})")
    return f"delta-spark_{_SCALA}" if release == (4, 0) else f"delta-spark_{spark_minor}_{_SCALA}"


def require_delta_jar(names: Iterable[str], folder: str, pyspark: str, delta: str) -> None:
    """Check that a folder has the Delta jar of the installed pyspark and no other; another ends in a NoSuchMethodError of the JVM.

    Its patch release is not looked at.

    Args:
        names: of the files in the folder.
    Raises:
        UsageError: there is none, or one of another Spark.
    """
    artefact = name_delta_jar(pyspark, delta)
    jars = sorted(name for name in names if name.startswith("delta-spark_"))
    if not jars or not all(name.startswith(f"{artefact}-") for name in jars):
        what = f"the Delta jars in {folder} (paths.jars) are those of another release, {', '.join(jars)}" if jars else ""
        raise UsageError(
            f"{what or f'no Delta jars in {folder} (paths.jars)'}; pyspark {pyspark} needs {artefact}-{delta}.jar: "
            "run `make setup`, which resolves them once, or submit with spark-submit --packages"
        )


def partition_by_number(rows: DataFrame, n_partitions: int, column: str) -> DataFrame:
    """Shuffle rows into the partition whose number ``column`` (INT, 0 to n_partitions - 1) holds.

    Spark 4.1 and later do it by ``repartitionById``.
    """
    if hasattr(rows, "repartitionById"):
        return rows.repartitionById(n_partitions, column)
    return partition_by_chosen_keys(rows, n_partitions, column)


def partition_by_chosen_keys(rows: DataFrame, n_partitions: int, column: str) -> DataFrame:
    """Shuffle rows as ``partition_by_number`` on Spark 4.0, which knows hashes only.

    Each number is replaced by a key whose hash sends it to the partition of that number.
    """
    key_of_partition: dict[int, int] = {}
    n_keys = 8 * n_partitions
    while len(key_of_partition) < n_partitions:
        n_keys *= 2
        key = F.col("id").cast("int")
        keys = rows.sparkSession.range(n_keys).select(F.pmod(F.hash(key), F.lit(n_partitions)).alias("partition"), key.alias("key"))
        key_of_partition = {int(row["partition"]): int(row["key"]) for row in keys.collect()}
    by_number = F.array(*(F.lit(key_of_partition[number]) for number in range(n_partitions)))
    keyed = rows.withColumn("_key", F.element_at(by_number, F.col(column).cast("int") + 1))
    return keyed.repartition(n_partitions, "_key").drop("_key")


def _read_minor(release: str) -> tuple[int, int]:
    major, minor = release.split(".")[:2]
    return int(major), int(minor)
