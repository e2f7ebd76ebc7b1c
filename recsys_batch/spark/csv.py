"""CSV files of one folder or one table, every field as text; files with differing headers are read apart.

Spark itself takes the first header for all files, by position; a daily file with another order would be read wrongly
(enforceSchema) or fail in the middle of the job with a Java trace. So the headers are read first: 64 KiB of each file.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from recsys_batch.errors import SourceError
from recsys_batch.spark.files import SourceFile, head, list_files

CORRUPT = "_corrupt"
"""Holds the text of a line with too few or too many fields; null everywhere else."""


@dataclass(frozen=True)
class CsvPart:
    """Rows that share a header, and the name to call them by in messages."""

    name: str
    df: DataFrame


def read_csv_parts(spark: SparkSession, path: str, delimiter: str) -> list[CsvPart]:
    """The files of ``path`` by header, each file's first line. Empty files are passed over as long as one is not.

    Raises:
        SourceError: no such path, no file with a header, or no text.
    """
    delimiter = "\t" if delimiter == "\\t" else delimiter
    if not delimiter:
        raise SourceError("--delimiter is empty: pass one character, for example --delimiter ';'")
    files = list_files(spark, path)
    by_header: dict[tuple[str, ...], list[SourceFile]] = {}
    for file in files:
        names = _header(head(spark, file.name), delimiter, file.name)
        if names:
            by_header.setdefault(names, []).append(file)
    if not by_header:
        raise SourceError(f"{path} is empty: a header line with column names is expected")
    reader = _reader(spark, delimiter).option("header", "true").option("recursiveFileLookup", _flag(any(file.nested for file in files)))
    reader = reader.option("multiLine", _flag(_has_quoted_newlines(spark, path, files)))
    if len(by_header) == 1:
        return [CsvPart(path, reader.schema(_all_text(next(iter(by_header)))).csv(path))]
    # columns that Spark takes from folder names (day=2024-01-31) are found from here
    based = reader.option("basePath", path) if not any(sign in path for sign in "*?[{") else reader
    return [
        CsvPart(group[0].name, based.schema(_all_text(names)).csv([file.name for file in group])) for names, group in by_header.items()
    ]


def read_headerless(spark: SparkSession, path: str, delimiter: str, names: Sequence[str], encoding: str = "UTF-8") -> DataFrame:
    """A file of a known layout, without header and without quoting."""
    reader = _reader(spark, delimiter).option("header", "false").option("encoding", encoding).option("quote", "")
    return reader.schema(_all_text(names)).csv(path)


def _reader(spark: SparkSession, delimiter: str) -> DataFrameReader:
    reader = spark.read.option("sep", delimiter).option("mode", "PERMISSIVE").option("columnNameOfCorruptRecord", CORRUPT)
    # RFC 4180, and what pandas and databases write: a quote inside quotes is doubled. Spark's default is a backslash.
    return reader.option("escape", '"')


def _all_text(names: Sequence[str]) -> StructType:
    return StructType([StructField(name, StringType()) for name in [*names, CORRUPT]])


def _header(text: str, delimiter: str, file: str) -> tuple[str, ...]:
    """Column names from the first line that is not blank; () where there is none."""
    line = next((line for line in text.split("\n") if line.strip()), "").rstrip("\r")
    if any(not sign.isprintable() and sign != "\t" for sign in line) or "\ufffd" in line:
        raise SourceError(f"{file} is not text in UTF-8: CSV files may be plain or compressed (.gz, .bz2, .zst), nothing else")
    if not line:
        return ()
    fields = next(csv.reader([line], delimiter=delimiter)) if len(delimiter) == 1 else line.split(delimiter)
    names: list[str] = []
    for place, name in enumerate(name.strip() for name in fields):
        # Data frames written with their index have a column without a name.
        names.append(name if name and name not in names else f"{name}_c{place}")
    return tuple(names)


def _has_quoted_newlines(spark: SparkSession, path: str, files: Sequence[SourceFile]) -> bool:
    """Whether some line opens a quote that it does not close.

    Only then are files read whole: Spark splits a large file among tasks at its line ends, which is right as long as none is quoted.
    """
    reader = spark.read.option("recursiveFileLookup", _flag(any(file.nested for file in files)))
    quotes = F.length("value") - F.length(F.replace("value", F.lit('"'), F.lit("")))
    return not reader.text(path).where(quotes % 2 == 1).isEmpty()


def _flag(value: bool) -> str:
    return str(value).lower()
