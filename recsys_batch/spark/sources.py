"""Read somebody's files as they are: columns renamed to ours, values untouched, the raw row kept for the rejected table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.errors import SourceError
from recsys_batch.spark.columns import Wanted
from recsys_batch.spark.csv import CORRUPT, CsvPart, read_csv_parts
from recsys_batch.spark.failures import read_failure
from recsys_batch.spark.files import list_files
from recsys_batch.spark.tables import parse_identifier

FORMATS = ("movielens", "csv", "parquet", "delta")
TEXT_FORMATS = ("movielens", "csv")
"""Formats whose values are all text, so that types are guessed from the values."""

RAW_ROW = "_row"

_INTERACTIONS = Wanted("interactions", "--columns", ("user_id", "item_id", "event_ts", "event_type", "weight"), ("user_id", "item_id"))
_ITEMS = Wanted("items", "--item-columns", ("item_id", "title", "categories", "is_available", "first_seen_ts"), ("item_id",))
_USERS = Wanted("users", "--user-columns", ("user_id", "segment"), ("user_id",))


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

    Items and users carry unmapped columns in ``attributes`` (MAP<STRING,STRING>) where the source has any.
    """

    interactions: DataFrame | None
    items: DataFrame | None = None
    users: DataFrame | None = None

    def frames(self) -> dict[str, DataFrame]:
        """By kind, those that the request names; items and users first, as interactions refer to them."""
        named = {"items": self.items, "users": self.users, "interactions": self.interactions}
        return {kind: df for kind, df in named.items() if df is not None}


def read_source(spark: SparkSession, request: IngestRequest) -> RawSource:
    """Open what the request names.

    Raises:
        SourceError: a path is missing, empty, of another format, or lacks a required column.
    """
    if request.format == "movielens":
        from recsys_batch.spark.movielens import read_movielens

        if request.source is None or request.items or request.users:
            raise SourceError("--format movielens reads a whole folder: pass it as --source, without --items and --users")
        return read_movielens(spark, request.source)

    def opened(path: str | None, mapping: Mapping[str, str], wanted: Wanted) -> DataFrame | None:
        return None if path is None else _open(spark, path, request, mapping, wanted)

    return RawSource(
        opened(request.source, request.columns, _INTERACTIONS),
        opened(request.items, request.item_columns, _ITEMS),
        opened(request.users, request.user_columns, _USERS),
    )


def with_raw_row(df: DataFrame) -> DataFrame:
    """Adds ``_row``, the row as it came, as JSON; of a line that could not be split the whole line, as ``_line``."""
    df = df if CORRUPT in df.columns else df.withColumn(CORRUPT, F.lit(None).cast("string"))
    raw = F.to_json(F.struct(*(quoted(name) for name in df.columns if name != CORRUPT)))
    line = F.to_json(F.struct(F.col(CORRUPT).alias("_line")))
    return df.withColumn(RAW_ROW, F.when(F.col(CORRUPT).isNotNull(), line).otherwise(raw))


def attributes_of(values: Mapping[str, Column]) -> Column:
    """MAP<STRING,STRING> of the values that are not null."""
    if not values:
        return F.create_map().cast("map<string,string>")
    entries = F.create_map(*(part for name, value in values.items() for part in (F.lit(name), value.cast("string"))))
    return F.map_filter(entries, lambda _, value: value.isNotNull())


def quoted(name: str) -> Column:
    """The column of exactly this name, whatever characters it has."""
    return F.col("`" + name.replace("`", "``") + "`")


def _open(spark: SparkSession, path: str, request: IngestRequest, mapping: Mapping[str, str], wanted: Wanted) -> DataFrame:
    if request.format == "csv":
        parts = read_csv_parts(spark, path, request.delimiter)
    elif request.format == "parquet":
        parts = [CsvPart(path, _parquet(spark, path))]
    else:
        parts = [CsvPart(path, _delta(spark, path))]
    delimiter = request.delimiter if request.format == "csv" else None
    frames = [_renamed(part, mapping, wanted, delimiter) for part in parts]
    return reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), frames)


def _parquet(spark: SparkSession, path: str) -> DataFrame:
    nested = any(file.nested for file in list_files(spark, path))
    if DeltaTable.isDeltaTable(spark, path):
        # Its folder also holds the files of deleted and replaced rows.
        raise SourceError(f"{path} is a Delta table: pass --format delta")
    reader = spark.read.option("recursiveFileLookup", str(nested).lower())
    return _call(lambda: reader.parquet(path), path)


def _delta(spark: SparkSession, path: str) -> DataFrame:
    if DeltaTable.isDeltaTable(spark, path):
        return _call(lambda: spark.read.format("delta").load(path), path)
    if "/" in path:
        list_files(spark, path)
        raise SourceError(f"{path} is not a Delta table (it has no _delta_log): pass --format parquet or csv, as its files are")
    return parse_identifier(spark, path)


def _call(read: Callable[[], DataFrame], path: str) -> DataFrame:
    try:
        return read()
    except (PySparkException, Py4JJavaError) as error:
        if isinstance(error, AnalysisException) and error.getCondition() == "UNABLE_TO_INFER_SCHEMA":
            raise SourceError(f"{path} holds no file that can be read") from None
        raise read_failure(error) or SourceError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _renamed(part: CsvPart, mapping: Mapping[str, str], wanted: Wanted, delimiter: str | None) -> DataFrame:
    """Our columns that the source has, under our names; of items and users every other column in ``attributes``."""
    there = [name for name in part.df.columns if name != CORRUPT]
    sources = wanted.resolve(there, part.name, mapping, delimiter)
    columns = [quoted(theirs).alias(ours) for ours, theirs in sources.items()]
    if delimiter is not None:
        # Blanks beside a delimiter are nobody's id.
        columns = [F.trim(quoted(theirs)).alias(ours) if ours.endswith("_id") else quoted(theirs).alias(ours) for ours, theirs in sources.items()]
    others: Sequence[str] = [name for name in there if name not in sources.values()]
    if wanted is not _INTERACTIONS and others:
        columns.append(attributes_of({name: quoted(name) for name in others}).alias("attributes"))
    return with_raw_row(part.df).select(*columns, RAW_ROW, CORRUPT)
