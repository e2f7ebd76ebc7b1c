"""Read somebody's files as they are: columns renamed to ours, values untouched, the raw row kept for the rejected table."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import MapType

from recsys_batch.errors import SourceError
from recsys_batch.spark.ingest.csv_source import CORRUPT, read_csv
from recsys_batch.spark.ingest.hadoop_files import list_files
from recsys_batch.spark.ingest.spark_errors import reading
from recsys_batch.spark.tables import parse_identifier

FORMATS = ("movielens", "csv", "parquet", "delta", "exposures")
RAW_ROW = "_row"

INTERACTION_COLUMNS = ("user_id", "item_id", "event_ts", "event_type", "weight")
ITEM_COLUMNS = ("item_id", "title", "categories", "is_available", "first_seen_ts")
USER_COLUMNS = ("user_id", "segment")

_DELIMITERS = {",": "','", ";": "';'", "\t": "$'\\t'", "|": "'|'"}
_SHOWN_COLUMNS = 20


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

    Items and users carry unmapped columns, where there are any, in ``attributes`` (MAP<STRING,STRING>). Interactions of feedback
    files have request_id besides, and exposures are one row per request and item.
    """

    interactions: DataFrame | None
    items: DataFrame | None = None
    users: DataFrame | None = None
    exposures: DataFrame | None = None


def read_source(spark: SparkSession, request: IngestRequest) -> RawSource:
    """Open what the request names.

    Raises:
        SourceError: a path is missing, empty, of another format, or lacks a required column.
    """
    if request.format not in FORMATS:
        raise SourceError(f"format {request.format!r} is unknown; known formats: {', '.join(FORMATS)}")
    if request.format == "movielens":
        from recsys_batch.spark.ingest.movielens_source import read_movielens

        return read_movielens(spark, _whole_folder(request, "finds items, users and columns in the folder itself"))
    if request.format == "exposures":
        from recsys_batch.spark.ingest.exposure_source import read_exposure_files

        if request.holdout:
            raise SourceError("--format exposures does not go with --holdout: feedback answers what was shown, keep it together")
        return read_exposure_files(spark, _whole_folder(request, "reads what the online side logs, whose columns are known"))
    interactions = items = users = None
    if request.source is not None:
        df = _open(spark, request.source, request)
        named = resolve_columns(df, request.source, INTERACTION_COLUMNS, ("user_id", "item_id"), request.columns, "--columns")
        interactions = df.select(*_under_our_names(named), RAW_ROW, CORRUPT)
    if request.items is not None:
        df = _open(spark, request.items, request)
        named = resolve_columns(df, request.items, ITEM_COLUMNS, ("item_id",), request.item_columns, "--item-columns")
        items = _with_attributes(df, named)
    if request.users is not None:
        df = _open(spark, request.users, request)
        named = resolve_columns(df, request.users, USER_COLUMNS, ("user_id",), request.user_columns, "--user-columns")
        users = _with_attributes(df, named)
    return RawSource(interactions, items, users)


def with_raw_row(df: DataFrame) -> DataFrame:
    """Adds ``_row``, the row as it came as JSON (of a malformed line all of it, as ``_line``), and ``_corrupt`` where it is missing."""
    df = df if CORRUPT in df.columns else df.withColumn(CORRUPT, F.lit(None).cast("string"))
    row = F.to_json(F.struct(*(column_named(name) for name in df.columns if name != CORRUPT)))
    line = F.to_json(F.struct(F.col(CORRUPT).alias("_line")))
    return df.withColumn(RAW_ROW, F.when(F.col(CORRUPT).isNotNull(), line).otherwise(row))


def attributes_of(values: Mapping[str, Column]) -> Column:
    """MAP<STRING,STRING> of the values that are neither null nor blank."""
    entries = F.create_map(*(part for name, value in values.items() for part in (F.lit(name), F.trim(value.cast("string")))))
    return F.map_filter(entries, lambda _, value: value.isNotNull() & (value != ""))


def column_named(name: str) -> Column:
    """The column of exactly this name, dots and backticks included."""
    return F.col("`" + name.replace("`", "``") + "`")


def resolve_columns(
    df: DataFrame,
    path: str,
    known: Sequence[str],
    required: Sequence[str],
    mapping: Mapping[str, str] | None = None,
    option: str = "",
) -> dict[str, str]:
    """Our name -> the source's, for the columns that are there.

    Args:
        mapping: our name -> the source's where they differ.
        option: the command line's option that the mapping comes from.

    Raises:
        SourceError: a mapped or required column is missing, or the mapping has a name that is none of ours.
    """
    mapping = mapping or {}
    there = [name for name in df.columns if name not in (RAW_ROW, CORRUPT)]
    foreign = [ours for ours in mapping if ours not in known]
    if foreign:
        raise SourceError(f"{option} names {', '.join(foreign)}; what can be mapped is {', '.join(known)}")
    sources = {ours: mapping.get(ours, ours) for ours in known if ours in mapping or ours in there}
    missing = [theirs for theirs in sources.values() if theirs not in there] + [name for name in required if name not in sources]
    if not missing:
        return sources
    if len(there) == 1:
        other = next((sign for sign in _DELIMITERS if sign in there[0]), None)
        if other is not None:
            raise SourceError(
                f"{path} was read as one column, {there[0]!r}: the delimiter looks wrong, pass --delimiter {_DELIMITERS[other]}"
            )
    folded = {name.casefold(): name for name in there}
    near = difflib.get_close_matches(missing[0].casefold(), folded, n=1)
    hint = f" Did you mean {folded[near[0]]}?" if near else " Is the first line a header?" if all(map(_is_number, there)) else ""
    ours = next((name for name, theirs in sources.items() if theirs == missing[0]), missing[0])
    hint += f" Map yours with {option} {ours}=YOUR_COLUMN." if option else ""
    shown = ", ".join(there[:_SHOWN_COLUMNS]) + (f" and {len(there) - _SHOWN_COLUMNS} more" if len(there) > _SHOWN_COLUMNS else "")
    raise SourceError(f"{path} has no column {', '.join(missing)}; it has {shown}.{hint}")


def _whole_folder(request: IngestRequest, why: str) -> str:
    """The source of a format whose files are known by their names."""
    if request.source is None:
        raise SourceError(f"--format {request.format} reads a folder: pass it as --source")
    if request.items or request.users or request.columns or request.item_columns or request.user_columns:
        raise SourceError(
            f"--format {request.format} {why}: drop --items, --users and the column options, or read the files with --format csv or parquet"
        )
    return request.source


def _open(spark: SparkSession, path: str, request: IngestRequest) -> DataFrame:
    if request.format == "csv":
        return with_raw_row(read_csv(spark, path, request.delimiter))
    with reading(spark, path):
        return with_raw_row(_parquet(spark, path) if request.format == "parquet" else _delta(spark, path))


def _parquet(spark: SparkSession, path: str) -> DataFrame:
    nested = any(file.nested for file in list_files(spark, path))
    if DeltaTable.isDeltaTable(spark, path):
        # Its folder also holds the files of rows that were deleted or replaced.
        raise SourceError(f"{path} is a Delta table: pass --format delta")
    return spark.read.options(recursiveFileLookup=nested).parquet(path)


def _delta(spark: SparkSession, path: str) -> DataFrame:
    if "/" not in path or DeltaTable.isDeltaTable(spark, path):
        return parse_identifier(spark, path)
    list_files(spark, path)
    raise SourceError(f"{path} is not a Delta table, it has no _delta_log: pass the --format that its files have")


def _under_our_names(named: Mapping[str, str]) -> list[Column]:
    return [column_named(theirs).alias(ours) for ours, theirs in named.items()]


def _with_attributes(df: DataFrame, named: Mapping[str, str]) -> DataFrame:
    """Our columns, and every other one in ``attributes``; a map column of that name (as our own tables have) goes in as it is."""
    others = [name for name in df.columns if name not in {*named.values(), RAW_ROW, CORRUPT}]
    if others == ["attributes"] and isinstance(df.schema["attributes"].dataType, MapType):
        extra = [F.col("attributes").cast("map<string,string>").alias("attributes")]
    else:
        extra = [attributes_of({name: column_named(name) for name in others}).alias("attributes")] if others else []
    return df.select(*_under_our_names(named), *extra, RAW_ROW, CORRUPT)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[\d.:T -]+", text) is not None
