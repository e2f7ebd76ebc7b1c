"""Source files of every format: listed and begun through Hadoop's file systems (local, HDFS, S3), and what goes wrong as one sentence."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from recsys_batch.errors import SourceError

_HEAD_BYTES = 65_536
_NO_PATH = "does not exist: expected a file, a folder of files or a glob"
_NO_FILE = "holds no data file: names that begin with _ or a dot are not read"


@dataclass(frozen=True)
class SourceFile:
    """File that Spark reads for a path.

    Attributes:
        uri: full URI. nested: whether it is in a sub-folder that is not ``column=value``; Spark reads those only with recursiveFileLookup.
    """

    uri: str
    nested: bool

    @property
    def base_name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]


def list_files(spark: SparkSession, path: str) -> list[SourceFile]:
    """List every visible file under ``path`` (a file, a folder, a glob), sorted by URI.

    Raises SourceError where the path does not exist, cannot be opened or has no data file.
    """
    jvm, conf = _jvm(spark)
    try:
        root = jvm.org.apache.hadoop.fs.Path(path)
        system = root.getFileSystem(conf)
        matches = system.globStatus(root)
        files = [file for status in matches or () for file in _list_recursively(system, status, nested=False)]
    except Py4JJavaError as error:
        raise SourceError(f"{path} cannot be opened: {error.java_exception.getMessage()}") from None
    if not matches:
        raise SourceError(f"{path} {_NO_PATH}")
    if not files:
        raise SourceError(f"{path} {_NO_FILE}")
    return sorted(files, key=lambda file: file.uri)


def read_head(spark: SparkSession, file: str, encoding: str = "UTF-8") -> str:
    """Read the first 64 KiB of a file as text, decompressed by the file's ending, without a byte order mark.

    Raises SourceError where the file is not compressed as its ending says.
    """
    jvm, conf = _jvm(spark)
    path = jvm.org.apache.hadoop.fs.Path(file)
    codec = jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(conf).getCodec(path)
    stream = path.getFileSystem(conf).open(path)
    try:
        decompressed = codec.createInputStream(stream) if codec else stream
        bounded = jvm.org.apache.commons.io.input.BoundedInputStream(decompressed, _HEAD_BYTES)
        text = str(jvm.org.apache.commons.io.IOUtils.toString(bounded, encoding))
    except Py4JJavaError as error:
        raise SourceError(f"{file} cannot be read as {codec.getDefaultExtension()}: {error.java_exception.getMessage()}") from None
    finally:
        stream.close()
    return text.removeprefix("\ufeff")


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


def _list_recursively(system: Any, status: Any, *, nested: bool) -> list[SourceFile]:
    if not status.isDirectory():
        return [SourceFile(str(status.getPath().toString()), nested)]
    files: list[SourceFile] = []
    for child in system.listStatus(status.getPath()):
        name = str(child.getPath().getName())
        # Spark ignores markers (_SUCCESS) and dot files.
        if name.startswith(".") or (name.startswith("_") and "=" not in name):
            continue
        files += _list_recursively(system, child, nested=nested or (child.isDirectory() and "=" not in name))
    return files


def _jvm(spark: SparkSession) -> tuple[Any, Any]:
    context: Any = spark.sparkContext
    return context._jvm, context._jsc.hadoopConfiguration()


def _as_source_error(error: PySparkException | Py4JJavaError, path: str) -> SourceError:
    text = str(error)
    if "[PATH_NOT_FOUND]" in text:
        return SourceError(f"{path} {_NO_PATH}")
    if "[UNABLE_TO_INFER_SCHEMA]" in text:
        return SourceError(f"{path} {_NO_FILE}")
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
