"""Open the source of an ingest request: columns renamed to ours, values untouched, the raw row kept for the rejected table."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import MapType

from recsys_batch.errors import SourceError
from recsys_batch.spark.ingest.csv_source import read_csv
from recsys_batch.spark.ingest.exposure_source import read_exposure_files
from recsys_batch.spark.ingest.movielens_source import read_movielens
from recsys_batch.spark.ingest.raw_source import CORRUPT, RAW_ROW, RawSource, add_raw_row, build_attributes, quoted_column, resolve_columns
from recsys_batch.spark.ingest.source_files import list_files, translate_spark_errors
from recsys_batch.spark.tables import parse_identifier

SOURCE_FORMATS = ("movielens", "csv", "parquet", "delta", "exposures")

INTERACTION_COLUMNS = ("user_id", "item_id", "event_ts", "event_type", "weight")
ITEM_COLUMNS = ("item_id", "title", "categories", "is_available", "first_seen_ts")
USER_COLUMNS = ("user_id", "segment")


@dataclass(frozen=True)
class IngestRequest:
    """Source files of an ingest and how to read them.

    Attributes:
        source: interactions: a file, a folder of files (daily ones, say) or a glob; None for items or users alone.
        format: one of SOURCE_FORMATS; items and users files have the same one.
        items, users: paths as ``source``; None where there are none.
        columns, item_columns, user_columns: our column name -> the source's; names that are not mapped stay the same.
        delimiter: of CSV files.
        holdout: share of each user's positives, the newest ones, that goes to the holdout table.
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
    """Open the files of a request as DataFrames with raw values.

    Raises SourceError where a path is missing, empty, of another format, or lacks a required column.
    """
    if request.format not in SOURCE_FORMATS:
        raise SourceError(f"format {request.format!r} is unknown; known formats: {', '.join(SOURCE_FORMATS)}")
    if request.format == "movielens":
        return read_movielens(spark, _require_folder(request, "finds items, users and columns in the folder itself"))
    if request.format == "exposures":
        if request.holdout:
            raise SourceError("--format exposures does not go with --holdout: feedback answers what was shown, keep it together")
        return read_exposure_files(spark, _require_folder(request, "reads what the online side logs, whose columns are known"))
    interactions = items = users = None
    if request.source is not None:
        df = _open_file(spark, request.source, request)
        mapping = resolve_columns(df, request.source, INTERACTION_COLUMNS, ("user_id", "item_id"), request.columns, "--columns")
        interactions = df.select(*_renamed_columns(mapping), RAW_ROW, CORRUPT)
    if request.items is not None:
        df = _open_file(spark, request.items, request)
        mapping = resolve_columns(df, request.items, ITEM_COLUMNS, ("item_id",), request.item_columns, "--item-columns")
        items = _select_with_attributes(df, mapping)
    if request.users is not None:
        df = _open_file(spark, request.users, request)
        mapping = resolve_columns(df, request.users, USER_COLUMNS, ("user_id",), request.user_columns, "--user-columns")
        users = _select_with_attributes(df, mapping)
    return RawSource(interactions, items, users)


def _require_folder(request: IngestRequest, why: str) -> str:
    """Check the request of a format that reads a whole folder; return the folder."""
    if request.source is None:
        raise SourceError(f"--format {request.format} reads a folder: pass it as --source")
    if request.items or request.users or request.columns or request.item_columns or request.user_columns:
        raise SourceError(
            f"--format {request.format} {why}: drop --items, --users and the column options, or read the files with --format csv or parquet"
        )
    return request.source


def _open_file(spark: SparkSession, path: str, request: IngestRequest) -> DataFrame:
    if request.format == "csv":
        return add_raw_row(read_csv(spark, path, request.delimiter))
    with translate_spark_errors(spark, path):
        return add_raw_row(_open_parquet(spark, path) if request.format == "parquet" else _open_delta(spark, path))


def _open_parquet(spark: SparkSession, path: str) -> DataFrame:
    nested = any(file.nested for file in list_files(spark, path))
    if DeltaTable.isDeltaTable(spark, path):
        # The folder of a Delta table also has files of deleted or replaced rows.
        raise SourceError(f"{path} is a Delta table: pass --format delta")
    return spark.read.options(recursiveFileLookup=nested).parquet(path)


def _open_delta(spark: SparkSession, path: str) -> DataFrame:
    if "/" not in path or DeltaTable.isDeltaTable(spark, path):
        return parse_identifier(spark, path)
    list_files(spark, path)
    raise SourceError(f"{path} is not a Delta table, it has no _delta_log: pass the --format that its files have")


def _renamed_columns(mapping: Mapping[str, str]) -> list[Column]:
    return [quoted_column(theirs).alias(ours) for ours, theirs in mapping.items()]


def _select_with_attributes(df: DataFrame, mapping: Mapping[str, str]) -> DataFrame:
    """Select our columns, with all others in ``attributes``; a single map column of that name (as in our tables) is kept."""
    others = [name for name in df.columns if name not in {*mapping.values(), RAW_ROW, CORRUPT}]
    if others == ["attributes"] and isinstance(df.schema["attributes"].dataType, MapType):
        extra = [F.col("attributes").cast("map<string,string>").alias("attributes")]
    else:
        extra = [build_attributes({name: quoted_column(name) for name in others}).alias("attributes")] if others else []
    return df.select(*_renamed_columns(mapping), *extra, RAW_ROW, CORRUPT)
