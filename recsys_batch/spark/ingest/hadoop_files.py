"""The files behind a path and how they begin, through Hadoop's file systems: the same for local folders, HDFS and S3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from recsys_batch.errors import SourceError

_HEAD_BYTES = 65_536


@dataclass(frozen=True)
class SourceFile:
    """A file that Spark would read for a path.

    Attributes:
        name: full URI.
        nested: in a sub-folder that is not ``column=value``: Spark passes over those unless it is told to look.
    """

    name: str
    nested: bool

    @property
    def short(self) -> str:
        """The last part of the name."""
        return self.name.rsplit("/", 1)[-1]


def list_files(spark: SparkSession, path: str) -> list[SourceFile]:
    """Every visible file under ``path`` (a file, a folder, a glob), sorted by name.

    Raises:
        SourceError: nothing is there, or the path cannot be opened.
    """
    jvm, conf = _jvm(spark)
    try:
        root = jvm.org.apache.hadoop.fs.Path(path)
        system = root.getFileSystem(conf)
        found = system.globStatus(root)
        files = [file for status in found or () for file in _walk(system, status, nested=False)]
    except Py4JJavaError as error:
        raise SourceError(f"{path} cannot be opened: {error.java_exception.getMessage()}") from None
    if not found:
        raise SourceError(f"{path} does not exist: expected a file, a folder of files or a glob")
    if not files:
        raise SourceError(f"{path} holds no data file: names that begin with _ or a dot are not read")
    return sorted(files, key=lambda file: file.name)


def read_head(spark: SparkSession, file: str, encoding: str = "UTF-8") -> str:
    """The first 64 KiB as text, decompressed by the file's ending, without a byte order mark.

    Raises:
        SourceError: the file is not what its ending says.
    """
    jvm, conf = _jvm(spark)
    path = jvm.org.apache.hadoop.fs.Path(file)
    codec = jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(conf).getCodec(path)
    stream = path.getFileSystem(conf).open(path)
    try:
        plain = codec.createInputStream(stream) if codec else stream
        bounded = jvm.org.apache.commons.io.input.BoundedInputStream(plain, _HEAD_BYTES)
        text = str(jvm.org.apache.commons.io.IOUtils.toString(bounded, encoding))
    except Py4JJavaError as error:
        raise SourceError(f"{file} cannot be read as {codec.getDefaultExtension()}: {error.java_exception.getMessage()}") from None
    finally:
        stream.close()
    return text.removeprefix("\ufeff")


def _walk(system: Any, status: Any, *, nested: bool) -> list[SourceFile]:
    if not status.isDirectory():
        return [SourceFile(str(status.getPath().toString()), nested)]
    files: list[SourceFile] = []
    for child in system.listStatus(status.getPath()):
        name = str(child.getPath().getName())
        # What Spark hides: markers (_SUCCESS) and dot files.
        if name.startswith(".") or (name.startswith("_") and "=" not in name):
            continue
        files += _walk(system, child, nested=nested or (child.isDirectory() and "=" not in name))
    return files


def _jvm(spark: SparkSession) -> tuple[Any, Any]:
    context: Any = spark.sparkContext
    return context._jvm, context._jsc.hadoopConfiguration()
