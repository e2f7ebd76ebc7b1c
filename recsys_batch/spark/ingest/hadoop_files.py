"""List source files and read their heads through Hadoop's file systems: local folders, HDFS and S3 alike."""

from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from recsys_batch.errors import SourceError

_HEAD_BYTES = 65_536


@dataclass(frozen=True)
class SourceFile:
    """File that Spark reads for a path.

    Attributes:
        uri: full URI.
        nested: whether it is in a sub-folder that is not ``column=value``; Spark reads those only with recursiveFileLookup.
    """

    uri: str
    nested: bool

    @property
    def base_name(self) -> str:
        """Last part of the URI."""
        return self.uri.rsplit("/", 1)[-1]


def list_files(spark: SparkSession, path: str) -> list[SourceFile]:
    """List every visible file under ``path`` (a file, a folder, a glob), sorted by URI.

    Raises:
        SourceError: the path does not exist, cannot be opened or has no data file.
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
        raise SourceError(f"{path} does not exist: expected a file, a folder of files or a glob")
    if not files:
        raise SourceError(f"{path} holds no data file: names that begin with _ or a dot are not read")
    return sorted(files, key=lambda file: file.uri)


def read_head(spark: SparkSession, file: str, encoding: str = "UTF-8") -> str:
    """Read the first 64 KiB of a file as text, decompressed by the file's ending, without a byte order mark.

    Raises:
        SourceError: the file is not compressed as its ending says.
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
