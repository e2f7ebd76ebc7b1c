"""What differs between releases of Spark and Delta: the names of jars, and which releases fit each other.

Nothing else in the package asks for a version of pyspark or delta-spark. `make compat` tries the pairs.
"""

from collections.abc import Iterable

from recsys_batch.errors import UsageError

OLDEST_DELTA = {"4.0": (4, 0), "4.1": (4, 1), "4.2": (4, 4)}
"""Spark's minor release -> the oldest Delta that has jars for it."""
_NEWEST_TRIED = max(OLDEST_DELTA.values())
_SCALA = "2.13"


def name_delta_jar(pyspark: str, delta: str) -> str:
    """Name the Maven artefact of Delta for an installed pyspark, such as ``delta-spark_4.2_2.13``.

    Delta 4.0 is for Spark 4.0 only and has no Spark in its name; later releases have an artefact for each minor release of Spark.

    Args:
        pyspark, delta: versions of the packages pyspark and delta-spark, such as ``4.2.0``.
    Raises:
        UsageError: this Delta has no jars for this Spark.
    """
    spark_minor, release = ".".join(pyspark.split(".")[:2]), _read_minor(delta)
    oldest = OLDEST_DELTA.get(spark_minor, (_NEWEST_TRIED[0], _NEWEST_TRIED[1] + 1))
    if release < oldest or (release == (4, 0) and spark_minor != "4.0"):
        fitting = "; ".join(f"pyspark {spark} with delta-spark {major}.{minor} or newer" for spark, (major, minor) in OLDEST_DELTA.items())
        raise UsageError(f"delta-spark {delta} has no jars for pyspark {pyspark}: install a pair that fits ({fitting})")
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


def _read_minor(release: str) -> tuple[int, int]:
    major, minor = release.split(".")[:2]
    return int(major), int(minor)
