"""CSV files, every field as text. Headers are read first, file by file, and files are joined by column name.

Spark takes the header of one file for all: a daily file with another order of columns would be read wrongly (enforceSchema)
or fail in the middle of the job with a Java trace. The first 64 KiB of every file cost less than either.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import reduce

from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from recsys_batch.errors import SourceError
from recsys_batch.spark.ingest.hadoop_files import SourceFile, list_files, read_head
from recsys_batch.spark.ingest.raw_source import CORRUPT
from recsys_batch.spark.ingest.spark_errors import translate_spark_errors

Header = tuple[str, ...]


def read_csv(
    spark: SparkSession,
    path: str,
    delimiter: str,
    *,
    names: Sequence[str] | None = None,
    encoding: str = "UTF-8",
    quoted: bool = True,
) -> DataFrame:
    """Every field as text without surrounding spaces, plus ``_corrupt``.

    Args:
        path: a file, a folder or a glob; .gz is fine. Files read together have the same columns, in any order; empty ones are passed over.
        names: columns of a file without a header; None where the first line is the header.
        quoted: fields may be in double quotes, with line breaks inside (RFC 4180); False where a quote is a letter like any other.

    Raises:
        SourceError: no such path, no header, headers that name different columns, no text.
    """
    delimiter = "\t" if delimiter == "\\t" else delimiter
    if not delimiter:
        raise SourceError("the delimiter is empty: pass one character, for example --delimiter ';'")
    files = list_files(spark, path)
    nested = {"recursiveFileLookup": True} if any(file.nested for file in files) else {}
    headers = {tuple(names): files} if names is not None else _by_header(spark, path, files, delimiter, encoding)
    with translate_spark_errors(spark, path):
        whole = quoted and _has_quoted_newlines(spark.read.options(**nested), path)
        reader = spark.read.options(sep=delimiter, encoding=encoding, header=names is None, multiLine=whole, **nested)
        reader = reader.options(quote='"' if quoted else "", escape='"', ignoreLeadingWhiteSpace=True, ignoreTrailingWhiteSpace=True)
        reader = reader.options(mode="PERMISSIVE", columnNameOfCorruptRecord=CORRUPT)
        if len(headers) == 1:
            return reader.schema(_all_text(next(iter(headers)))).csv(path)
        if not any(sign in path for sign in "*?[{"):
            # Columns that Spark takes from folder names (day=2024-01-31) begin below this folder.
            reader = reader.options(basePath=path)
        parts = [reader.schema(_all_text(header)).csv([file.name for file in group]) for header, group in headers.items()]
        return reduce(DataFrame.unionByName, parts)


def _by_header(
    spark: SparkSession, path: str, files: Sequence[SourceFile], delimiter: str, encoding: str
) -> dict[Header, list[SourceFile]]:
    """Files by header; more than one header only where the columns are the same in another order."""
    groups: dict[Header, list[SourceFile]] = {}
    for file in files:
        header = _header(read_head(spark, file.name, encoding), delimiter, file.name)
        if header:
            groups.setdefault(header, []).append(file)
    if not groups:
        raise SourceError(f"{path} is empty: expected a header line with column names, found no line at all")
    first, *others = groups
    for header in others:
        differing = [name for name in (*first, *header) if name not in first or name not in header]
        if differing:
            raise SourceError(
                f"{path}: files read together must have the same columns; {groups[header][0].short} has {', '.join(header)} and "
                f"{groups[first][0].short} has {', '.join(first)}"
            )
    return groups


def _header(text: str, delimiter: str, file: str) -> Header:
    """Column names from the first line that is not blank; () where there is none."""
    line = next((line for line in text.split("\n") if line.strip()), "").rstrip("\r")
    if any(not sign.isprintable() and sign != "\t" for sign in line) or "\ufffd" in line:
        raise SourceError(f"{file} is not UTF-8 text: CSV files may be plain, or compressed with a name that says so (.gz, .bz2)")
    if not line:
        return ()
    fields = next(csv.reader([line], delimiter=delimiter)) if len(delimiter) == 1 else line.split(delimiter)
    names: list[str] = []
    for place, name in enumerate(field.strip() for field in fields):
        # A data frame written with its index has a column without a name.
        names.append(name if name and name.lower() not in map(str.lower, names) else f"{name}_c{place}")
    return tuple(names)


def _has_quoted_newlines(reader: DataFrameReader, path: str) -> bool:
    """Whether some line opens a quote that it does not close.

    Only then is a file read whole, by one task; else Spark splits a large file among tasks at its line ends.
    """
    quotes = F.length("value") - F.length(F.replace("value", F.lit('"'), F.lit("")))
    return not reader.text(path).where(quotes % 2 == 1).isEmpty()


def _all_text(names: Sequence[str]) -> StructType:
    return StructType([StructField(name, StringType()) for name in [*names, CORRUPT]])
