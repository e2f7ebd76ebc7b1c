"""Source files on any file system that Python or Hadoop reads, and Spark's errors about them as one sentence."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from recsys_batch.errors import SourceError, UsageError
from recsys_batch.sources.file_tasks import FileTask, SourceFile, pack_tasks, plain_location
from recsys_batch.sources.listing import NO_FILE, NO_PATH, list_source_files, listed_folder
from recsys_batch.spark.executors.source_tasks import TaskGroups
from recsys_batch.storage.filesystems import resolve


def list_files(spark: SparkSession, path: str) -> list[SourceFile]:
    """List every visible file under ``path`` (a file, a folder, a glob), sorted by location.

    Raises SourceError where the path does not exist, cannot be opened or has no data file.
    """
    if is_readable(path):
        return list_source_files(path)
    with translate_spark_errors(spark, path):
        found = spark.read.format("binaryFile").option("recursiveFileLookup", True).load(path).select("path", "length").collect()
    files = [SourceFile(plain_location(location), int(n_bytes), listed_folder(path)) for location, n_bytes in found]
    if not files:
        raise SourceError(f"{path} {NO_FILE}")
    return sorted(files, key=lambda file: file.location)


def is_readable(location: str) -> bool:
    """Whether Python can open a location by itself; other file systems are Hadoop's."""
    try:
        resolve(location)
    except UsageError:
        return False
    return True


def group_tasks(spark: SparkSession, tasks: Sequence[FileTask]) -> TaskGroups:
    """Group the tasks of a source: one group for each of Spark's, or by file where Spark has to read whole files."""
    if not tasks:
        return TaskGroups([])
    if is_readable(tasks[0].file.location):
        return TaskGroups(pack_tasks(tasks, spark.sparkContext.defaultParallelism))
    by_location: dict[str, list[FileTask]] = {}
    for task in tasks:
        by_location.setdefault(task.file.location, []).append(task)
    return TaskGroups([list(tasks)], by_location)


def read_groups(spark: SparkSession, groups: TaskGroups) -> DataFrame:
    """Make a partition per group, or, for a file system that executors' Python cannot open, read whole files by Spark."""
    if groups.by_location:
        return spark.read.format("binaryFile").load(list(groups.by_location)).select("path", "content")
    n = max(len(groups.groups), 1)
    return spark.range(0, n, 1, n)


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


def _as_source_error(error: PySparkException | Py4JJavaError, path: str) -> SourceError:
    text = str(error)
    if "[PATH_NOT_FOUND]" in text:
        return SourceError(f"{path} {NO_PATH}")
    if "[UNABLE_TO_INFER_SCHEMA]" in text:
        return SourceError(f"{path} {NO_FILE}")
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
