"""Read CSV files with every field as text. Headers are read first, file by file, and files are combined by column name.

Spark uses the header of one file for all: a daily file with another order of columns would be read wrongly (enforceSchema)
or fail in the middle of the job with a Java trace. Reading the first 64 KiB of every file costs less than either.
"""

import csv
from collections.abc import Sequence
from functools import reduce

from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from recsys_batch.errors import SourceError
from recsys_batch.spark.ingest.raw_source import CORRUPT
from recsys_batch.spark.ingest.source_files import SourceFile, list_files, read_head, translate_spark_errors

Header = tuple[str, ...]


def read_csv(
    spark: SparkSession, path: str, delimiter: str, *, names: Sequence[str] | None = None, encoding: str = "UTF-8", quoted: bool = True
) -> DataFrame:
    """Read CSV files as a DataFrame of text columns without surrounding spaces, plus ``_corrupt``.

    Args:
        path: a file, a folder or a glob; .gz is fine. Files read together have the same columns, in any order; empty files are skipped.
        names: columns of files without a header; None where the first line is the header.
        quoted: whether fields may be in double quotes, with line breaks inside (RFC 4180); if False, a quote is an ordinary character.

    Raises:
        SourceError: the path or the header is missing, headers name different columns, or a file is not text.
    """
    delimiter = "\t" if delimiter == "\\t" else delimiter
    if not delimiter:
        raise SourceError("the delimiter is empty: pass one character, for example --delimiter ';'")
    files = list_files(spark, path)
    nested = {"recursiveFileLookup": True} if any(file.nested for file in files) else {}
    headers = {tuple(names): files} if names is not None else _group_by_header(spark, path, files, delimiter, encoding)
    with translate_spark_errors(spark, path):
        is_multiline = quoted and _has_quoted_newlines(spark.read.options(**nested), path)
        reader = spark.read.options(sep=delimiter, encoding=encoding, header=names is None, multiLine=is_multiline, **nested)
        reader = reader.options(quote='"' if quoted else "", escape='"', ignoreLeadingWhiteSpace=True, ignoreTrailingWhiteSpace=True)
        reader = reader.options(mode="PERMISSIVE", columnNameOfCorruptRecord=CORRUPT)
        if len(headers) == 1:
            return reader.schema(_text_schema(next(iter(headers)))).csv(path)
        if not any(character in path for character in "*?[{"):
            # Partition columns (day=2024-01-31) come from folder names below this folder.
            reader = reader.options(basePath=path)
        parts = [reader.schema(_text_schema(header)).csv([file.uri for file in group]) for header, group in headers.items()]
        return reduce(DataFrame.unionByName, parts)


def _group_by_header(
    spark: SparkSession, path: str, files: Sequence[SourceFile], delimiter: str, encoding: str
) -> dict[Header, list[SourceFile]]:
    """Group files by header; several headers have the same columns in different orders."""
    groups: dict[Header, list[SourceFile]] = {}
    for file in files:
        header = _parse_header(read_head(spark, file.uri, encoding), delimiter, file.uri)
        if header:
            groups.setdefault(header, []).append(file)
    if not groups:
        raise SourceError(f"{path} is empty: expected a header line with column names, found no line at all")
    first, *others = groups
    for header in others:
        differing = [name for name in (*first, *header) if name not in first or name not in header]
        if differing:
            raise SourceError(
                f"{path}: files read together must have the same columns; {groups[header][0].base_name} has {', '.join(header)} and "
                f"{groups[first][0].base_name} has {', '.join(first)}"
            )
    return groups


def _parse_header(text: str, delimiter: str, file: str) -> Header:
    """Parse column names from the first line that is not blank; () where there is none."""
    line = next((line for line in text.split("\n") if line.strip()), "").rstrip("\r")
    if any(not character.isprintable() and character != "\t" for character in line) or "\ufffd" in line:
        raise SourceError(f"{file} is not UTF-8 text: CSV files may be plain, or compressed with a name that says so (.gz, .bz2)")
    if not line:
        return ()
    fields = next(csv.reader([line], delimiter=delimiter)) if len(delimiter) == 1 else line.split(delimiter)
    names: list[str] = []
    for position, name in enumerate(field.strip() for field in fields):
        # A data frame written with its index has a column without a name.
        names.append(name if name and name.lower() not in map(str.lower, names) else f"{name}_c{position}")
    return tuple(names)


def _has_quoted_newlines(reader: DataFrameReader, path: str) -> bool:
    """Check whether some line opens a quote that it does not close.

    Only then does one task read a whole file; otherwise Spark splits a large file among tasks at its line ends.
    """
    quotes = F.length("value") - F.length(F.replace("value", F.lit('"'), F.lit("")))
    return not reader.text(path).where(quotes % 2 == 1).isEmpty()


def _text_schema(names: Sequence[str]) -> StructType:
    return StructType([StructField(name, StringType()) for name in [*names, CORRUPT]])
