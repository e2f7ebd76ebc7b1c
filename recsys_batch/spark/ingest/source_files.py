"""Source files of every format, listed through Hadoop's file systems (local, HDFS, S3), and Spark's errors about them as one sentence."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from recsys_batch.errors import SourceError
from recsys_batch.sources.file_tasks import SourceFile, plain_location
from recsys_batch.storage.filesystems import local_path

_NO_PATH = "does not exist: expected a file, a folder of files or a glob"
_NO_FILE = "holds no data file: names that begin with _ or a dot, and empty files, are not read"
_GLOB = re.compile(r"[*?\[{]")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")


def list_files(spark: SparkSession, path: str) -> list[SourceFile]:
    """List every visible file under ``path`` (a file, a folder, a glob), sorted by location.

    Raises SourceError where the path does not exist, cannot be opened or has no data file.
    """
    with translate_spark_errors(spark, path):
        found = spark.read.format("binaryFile").option("recursiveFileLookup", True).load(path).select("path", "length").collect()
    files = [SourceFile(plain_location(location), int(n_bytes), _listed_folder(path)) for location, n_bytes in found]
    if not files:
        raise SourceError(f"{path} {_NO_FILE}")
    return sorted(files, key=lambda file: file.location)


@contextmanager
def translate_spark_errors(spark: SparkSession, path: str) -> Iterator[None]:
    """Raise Spark errors of the block as SourceError with one sentence, without the executors' stack traces in the log."""
    context = spark.sparkContext
    context.setLogLevel("OFF")
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        raise _as_source_error(error, path) from None
    finally:
        context.setLogLevel("ERROR")


def _listed_folder(path: str) -> str:
    """Name the folder below which names like column=value are columns: the one before the first pattern of a glob."""
    root = path if not _GLOB.search(path) else path[: _GLOB.search(path).start()].rpartition("/")[0]  # type: ignore[union-attr]
    return root.rstrip("/") if _SCHEME.match(root) and not root.startswith("file:") else local_path(root)


def _as_source_error(error: PySparkException | Py4JJavaError, path: str) -> SourceError:
    text = str(error)
    if "[PATH_NOT_FOUND]" in text:
        return SourceError(f"{path} {_NO_PATH}")
    if "[UNABLE_TO_INFER_SCHEMA]" in text:
        return SourceError(f"{path} {_NO_FILE}")
    failed = re.search(r"while reading file (\S+?)\.?\s", text)
    file = plain_location(failed.group(1)) if failed else path
    cause = text.splitlines()[0]
    if isinstance(error, Py4JJavaError):
        root = error.java_exception
        while root.getCause() is not None:
            root = root.getCause()
        cause = " ".join(str(root.getMessage()).split())
    raised = re.findall(r"^(\w[\w.]*(?:Error|Exception|Invalid)): (.+)$", text, re.MULTILINE)
    if raised and raised[-1][0].endswith("SourceError"):
        return SourceError(raised[-1][1])
    return SourceError(f"{file} cannot be read: {': '.join(raised[-1]) if raised else cause}")
