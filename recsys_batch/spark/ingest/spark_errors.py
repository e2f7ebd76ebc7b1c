"""Translate Spark's errors about source files into one sentence. Used by every reader of the package; imports none of them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from recsys_batch.errors import SourceError


@contextmanager
def translate_spark_errors(spark: SparkSession, path: str) -> Iterator[None]:
    """Raise Spark errors of the block as SourceError with one sentence, without the executors' stack traces in the log.

    Raises:
        SourceError: in place of a Spark error.
    """
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
        return SourceError(f"{path} does not exist: expected a file, a folder of files or a glob")
    if "[UNABLE_TO_INFER_SCHEMA]" in text:
        return SourceError(f"{path} holds no data file: names that begin with _ or a dot are not read")
    failed = re.search(r"while reading file (\S+?)\.?\s", text)
    file = re.sub("^file:/+", "/", failed.group(1)) if failed else path
    if "CANNOT_READ_FILE_FOOTER" in text:
        return SourceError(f"{file} is not a Parquet file: pass the --format that it has (csv, parquet, delta, movielens)")
    cause = text.splitlines()[0]
    if isinstance(error, Py4JJavaError):
        root = error.java_exception
        while root.getCause() is not None:
            root = root.getCause()
        cause = " ".join(str(root.getMessage()).split())
    return SourceError(f"{file} cannot be read: {cause}")
