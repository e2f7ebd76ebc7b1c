"""Read somebody's files as they are: columns renamed to ours, values untouched, the raw row kept for the rejected table."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from recsys_batch.errors import SourceError
from recsys_batch.spark.tables import parse_identifier

FORMATS = ("movielens", "csv", "parquet", "delta")
RAW_ROW = "_row"
CORRUPT = "_corrupt"
"""Holds the text of a CSV line with too few or too many fields; null everywhere else."""

INTERACTION_COLUMNS = ("user_id", "item_id", "event_ts", "event_type", "weight")
ITEM_COLUMNS = ("item_id", "title", "categories", "is_available", "first_seen_ts")
USER_COLUMNS = ("user_id", "segment")

T = TypeVar("T")
_DELIMITERS = {",": "','", ";": "';'", "\t": "$'\\t'", "|": "'|'"}


@dataclass(frozen=True)
class IngestRequest:
    """What to read.

    Attributes:
        source: interactions: a file, a folder of files (daily ones, say) or a glob; None for items or users alone.
        format: one of FORMATS; items and users files have the same one.
        columns, item_columns, user_columns: our column name -> the source's; a name that is not mapped is looked for as it is.
        delimiter: of CSV files.
        holdout: share of each user's newest positives that goes to the holdout table.
    """

    source: str | None
    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ","
    items: str | None = None
    item_columns: Mapping[str, str] = field(default_factory=dict)
    users: str | None = None
    user_columns: Mapping[str, str] = field(default_factory=dict)
    holdout: float = 0.0


@dataclass(frozen=True)
class RawSource:
    """DataFrames with our column names (those that the source has), raw values, ``_row`` (JSON) and ``_corrupt``.

    Items and users carry unmapped columns in ``attributes`` (MAP<STRING,STRING>).
    """

    interactions: DataFrame | None
    items: DataFrame | None = None
    users: DataFrame | None = None


def read_source(spark: SparkSession, request: IngestRequest) -> RawSource:
    """Open what the request names.

    Raises:
        SourceError: a path is missing, empty, of another format, or lacks a required column.
    """
    if request.format == "movielens":
        from recsys_batch.spark.movielens import read_movielens

        if request.source is None:
            raise SourceError("--format movielens reads a folder: pass it as --source")
        return read_movielens(spark, request.source)
    raw = RawSource(None)
    if request.source is not None:
        df = _open(spark, request.source, request)
        raw = replace(raw, interactions=_renamed(df, request.source, request.columns, INTERACTION_COLUMNS, ("user_id", "item_id"), request))
    if request.items is not None:
        df = _open(spark, request.items, request)
        raw = replace(raw, items=_with_attributes(df, request.items, request.item_columns, ITEM_COLUMNS, "item_id", request))
    if request.users is not None:
        df = _open(spark, request.users, request)
        raw = replace(raw, users=_with_attributes(df, request.users, request.user_columns, USER_COLUMNS, "user_id", request))
    return raw


def read_csv(
    spark: SparkSession, path: str | Sequence[str], delimiter: str, *, names: Sequence[str] | None = None, encoding: str = "UTF-8"
) -> DataFrame:
    """Every field as text, plus ``_corrupt``.

    Args:
        names: columns of a file without a header; None where the first line is the header.

    Raises:
        SourceError: no such path, or no header.
    """
    paths = [path] if isinstance(path, str) else list(path)
    reader = spark.read.option("sep", delimiter).option("encoding", encoding).option("header", names is None)
    if names is None:
        names = _call(lambda: reader.csv(paths).columns, paths[0])
        if not names:
            raise SourceError(f"{paths[0]} is empty: a header line with column names is expected")
    text = StructType([StructField(name, StringType()) for name in [*names, CORRUPT]])
    reader = reader.option("mode", "PERMISSIVE").option("columnNameOfCorruptRecord", CORRUPT)
    # Daily files may order their columns differently; by name is meant, and Spark checks the headers against the schema.
    return reader.option("enforceSchema", "false").schema(text).csv(paths)


def with_raw_row(df: DataFrame) -> DataFrame:
    """Adds ``_row``, the row as it came."""
    df = df if CORRUPT in df.columns else df.withColumn(CORRUPT, F.lit(None).cast("string"))
    raw = [F.col(f"`{name}`") for name in df.columns if name != CORRUPT]
    return df.withColumn(RAW_ROW, F.coalesce(CORRUPT, F.to_json(F.struct(*raw))))


def _open(spark: SparkSession, path: str, request: IngestRequest) -> DataFrame:
    if request.format == "csv":
        return with_raw_row(read_csv(spark, path, request.delimiter))
    if request.format == "parquet":
        return with_raw_row(_call(lambda: spark.read.parquet(path), path))
    return with_raw_row(parse_identifier(spark, path))


def _call(read: Callable[[], T], path: str) -> T:
    try:
        return read()
    except PySparkException as error:
        raise _as_source_error(error, path) from None


def _as_source_error(error: PySparkException, path: str) -> SourceError:
    if isinstance(error, AnalysisException) and error.getCondition() == "PATH_NOT_FOUND":
        return SourceError(f"{path} does not exist")
    return SourceError(f"{path} cannot be read: {str(error).splitlines()[0]}")


def _renamed(
    df: DataFrame, path: str, mapping: Mapping[str, str], known: Sequence[str], required: Sequence[str], request: IngestRequest
) -> DataFrame:
    """Our columns that the source has, under our names."""
    sources = _resolve(df, path, mapping, known, required, request)
    return df.select(*(F.col(f"`{theirs}`").alias(ours) for ours, theirs in sources.items()), RAW_ROW, CORRUPT)


def _with_attributes(
    df: DataFrame, path: str, mapping: Mapping[str, str], known: Sequence[str], key: str, request: IngestRequest
) -> DataFrame:
    """As ``_renamed``, with every other column in ``attributes``; nulls leave no entry."""
    sources = _resolve(df, path, mapping, known, (key,), request)
    others = [name for name in df.columns if name not in {*sources.values(), RAW_ROW, CORRUPT}]
    ours = [F.col(f"`{theirs}`").alias(ours) for ours, theirs in sources.items()]
    return df.select(*ours, attributes_of({name: F.col(f"`{name}`") for name in others}).alias("attributes"), RAW_ROW, CORRUPT)


def attributes_of(values: Mapping[str, Column]) -> Column:
    """MAP<STRING,STRING> of the values that are not null."""
    if not values:
        return F.create_map().cast("map<string,string>")
    entries = F.create_map(*(part for name, value in values.items() for part in (F.lit(name), value.cast("string"))))
    return F.map_filter(entries, lambda _, value: value.isNotNull())


def _resolve(
    df: DataFrame, path: str, mapping: Mapping[str, str], known: Sequence[str], required: Sequence[str], request: IngestRequest
) -> dict[str, str]:
    """Our name -> the source's, for the columns that are there.

    Raises:
        SourceError: a mapped or required column is missing, or the mapping has a name that is none of ours.
    """
    there = [name for name in df.columns if name not in (RAW_ROW, CORRUPT)]
    foreign = [ours for ours in mapping if ours not in known]
    if foreign:
        raise SourceError(f"column mapping names {', '.join(foreign)}; what can be mapped is {', '.join(known)}")
    sources = {ours: mapping.get(ours, ours) for ours in known if ours in mapping or ours in there}
    missing = [theirs for theirs in sources.values() if theirs not in there] + [name for name in required if name not in sources]
    if not missing:
        return sources
    if len(there) == 1 and request.format == "csv":
        other = next((sign for sign in _DELIMITERS if sign != request.delimiter and sign in there[0]), None)
        if other is not None:
            raise SourceError(
                f"{path} was read with delimiter {request.delimiter!r} and has one column, {there[0]!r}: pass --delimiter {_DELIMITERS[other]}"
            )
    near = difflib.get_close_matches(missing[0], there, n=1)
    hint = f" Did you mean {near[0]}?" if near else " Map yours with --columns, --item-columns or --user-columns."
    raise SourceError(f"{path} has no column {', '.join(missing)}; it has {', '.join(there)}.{hint}")
