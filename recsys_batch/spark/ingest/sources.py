"""Read somebody's files as they are: columns renamed to ours, values untouched, the raw row kept for the rejected table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import MapType

from recsys_batch.errors import SourceError
from recsys_batch.spark.ingest.csv_source import read_csv
from recsys_batch.spark.ingest.exposure_source import read_exposure_files
from recsys_batch.spark.ingest.hadoop_files import list_files
from recsys_batch.spark.ingest.movielens_source import read_movielens
from recsys_batch.spark.ingest.raw_source import CORRUPT, RAW_ROW, RawSource, attributes_of, column_named, resolve_columns, with_raw_row
from recsys_batch.spark.ingest.spark_errors import translate_spark_errors
from recsys_batch.spark.tables import parse_identifier

SOURCE_FORMATS = ("movielens", "csv", "parquet", "delta", "exposures")

INTERACTION_COLUMNS = ("user_id", "item_id", "event_ts", "event_type", "weight")
ITEM_COLUMNS = ("item_id", "title", "categories", "is_available", "first_seen_ts")
USER_COLUMNS = ("user_id", "segment")


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


def read_source(spark: SparkSession, request: IngestRequest) -> RawSource:
    """Open what the request names.

    Raises:
        SourceError: a path is missing, empty, of another format, or lacks a required column.
    """
    if request.format not in SOURCE_FORMATS:
        raise SourceError(f"format {request.format!r} is unknown; known formats: {', '.join(SOURCE_FORMATS)}")
    if request.format == "movielens":
        return read_movielens(spark, _whole_folder(request, "finds items, users and columns in the folder itself"))
    if request.format == "exposures":
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
    with translate_spark_errors(spark, path):
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
