"""Raw rows to typed rows, each with the first reason why it cannot be used, or none. Transforms only: nothing is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, DateType, NumericType, StringType, TimestampNTZType, TimestampType

from recsys_batch.schemas import IdType, IdTypes
from recsys_batch.spark.sources import CORRUPT, RAW_ROW

REASON = "_reason"
KEPT = (RAW_ROW, REASON)

EVENT_KEY = ("user_id", "item_id", "event_ts", "event_type")
"""Two rows equal in these are the same event: the later one is a duplicate."""

# Epoch numbers by magnitude: seconds reach the year 5138, milliseconds the same, and so on.
_SECONDS, _MILLIS, _MICROS = 1e11, 1e14, 1e17
_OLDEST, _NEWEST = "1900-01-01", "2262-01-01"
_TRUE, _FALSE = ("true", "1", "yes", "y", "t"), ("false", "0", "no", "n", "f")


def id_type(df: DataFrame, name: str) -> IdType:
    """BIGINT for integer columns and for text that is all canonical integers ("7", not "007"); else STRING."""
    if not isinstance(df.schema[name].dataType, StringType):
        return "BIGINT" if isinstance(df.schema[name].dataType, NumericType) else "STRING"
    value = F.col(name)
    foreign = value.isNotNull() & ~F.coalesce(value.try_cast("bigint").cast("string") == value, F.lit(False))
    found = cast("Any", df.agg(F.count_if(foreign).alias("n")).head())
    return "STRING" if found.n else "BIGINT"


def typed_interactions(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Columns of interactions with ``_row`` and ``_reason`` (null: usable so far); duplicates are not looked for yet.

    Without an event_ts column every event_ts is null; without a weight column every weight is 1; event_type defaults to "event".
    """
    weight = F.col("weight").try_cast("float") if "weight" in raw.columns else F.lit(1.0).cast("float")
    event_ts = _timestamp(raw, "event_ts") if "event_ts" in raw.columns else F.lit(None).cast("timestamp")
    kind = F.col("event_type").cast("string") if "event_type" in raw.columns else F.lit(None).cast("string")
    bad_weight = weight.isNull() | F.isnan(weight) | (F.abs(weight) == float("inf"))
    reasons = [
        (F.col(CORRUPT).isNotNull(), "malformed_line"),
        *_id_reasons(raw, "user_id", ids.user),
        *_id_reasons(raw, "item_id", ids.item),
        *([(_blank("event_ts"), "null_event_ts"), (event_ts.isNull(), "bad_event_ts")] if "event_ts" in raw.columns else []),
        *([(bad_weight, "bad_weight")] if "weight" in raw.columns else []),
    ]
    return raw.select(
        _as_id(raw, "user_id", ids.user),
        _as_id(raw, "item_id", ids.item),
        event_ts.alias("event_ts"),
        F.coalesce(kind, F.lit("event")).alias("event_type"),
        weight.alias("weight"),
        F.to_date(event_ts).alias("event_date"),
        RAW_ROW,
        first_reason(reasons).alias(REASON),
    )


def typed_items(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Columns of items with ``_row`` and ``_reason``; one row per usable item_id."""
    available = _boolean(raw, "is_available")
    reasons = [
        (F.col(CORRUPT).isNotNull(), "malformed_line"),
        *_id_reasons(raw, "item_id", ids.item),
        *([(available.isNull() & F.col("is_available").isNotNull(), "bad_is_available")] if "is_available" in raw.columns else []),
    ]
    typed = raw.select(
        _as_id(raw, "item_id", ids.item),
        _optional(raw, "title", "string"),
        _categories(raw).alias("categories"),
        F.coalesce(available, F.lit(True)).alias("is_available"),
        (_timestamp(raw, "first_seen_ts") if "first_seen_ts" in raw.columns else F.lit(None).cast("timestamp")).alias("first_seen_ts"),
        "attributes",
        RAW_ROW,
        first_reason(reasons).alias(REASON),
    )
    return mark_repeated(typed, ("item_id",), "duplicate_item_id")


def typed_users(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Columns of users with ``_row`` and ``_reason``; one row per usable user_id."""
    reasons = [(F.col(CORRUPT).isNotNull(), "malformed_line"), *_id_reasons(raw, "user_id", ids.user)]
    columns = [_as_id(raw, "user_id", ids.user), _optional(raw, "segment", "string"), "attributes", RAW_ROW, first_reason(reasons).alias(REASON)]
    return mark_repeated(raw.select(*columns), ("user_id",), "duplicate_user_id")


def mark_repeated(df: DataFrame, key: Sequence[str], reason: str) -> DataFrame:
    """Give ``reason`` to every usable row but one of each ``key``; which one stays depends on the rows alone, not on their order."""
    usable = F.col(REASON).isNull()
    window = Window.partitionBy(*key, usable).orderBy(F.xxhash64(RAW_ROW), RAW_ROW)
    numbered = df.withColumn("_n", F.row_number().over(window))
    return numbered.withColumn(REASON, F.when(usable & (F.col("_n") > 1), F.lit(reason)).otherwise(F.col(REASON))).drop("_n")


def first_reason(reasons: Sequence[tuple[Column, str]]) -> Column:
    """The name of the first condition that holds, or null."""
    return F.coalesce(*(F.when(condition, F.lit(name)) for condition, name in reasons), F.lit(None).cast("string"))


def _id_reasons(raw: DataFrame, name: str, id_type: IdType) -> list[tuple[Column, str]]:
    return [(_blank(name), f"null_{name}"), (_id_value(raw, name, id_type).isNull(), f"bad_{name}")]


def _as_id(raw: DataFrame, name: str, id_type: IdType) -> Column:
    return _id_value(raw, name, id_type).alias(name)


def _id_value(raw: DataFrame, name: str, id_type: IdType) -> Column:
    value = F.col(name)
    if id_type == "STRING":
        return value.cast("string")
    if isinstance(raw.schema[name].dataType, StringType):
        return F.when(value.try_cast("bigint").cast("string") == value, value.try_cast("bigint"))
    # A frame with missing ids often has them as doubles; 7.0 is the id 7, 7.5 is none.
    return F.when(value.cast("double") == F.floor(value.cast("double")), value.try_cast("bigint"))


def _blank(name: str) -> Column:
    return F.col(name).isNull() | (F.trim(F.col(name).cast("string")) == "") | F.lower(F.col(name).cast("string")).isin("nan", "null")


def _timestamp(raw: DataFrame, name: str) -> Column:
    """Timestamps, dates, ISO text, yyyymmdd, and epoch seconds, milliseconds, microseconds or nanoseconds by magnitude."""
    value, kind = F.col(name), raw.schema[name].dataType
    if isinstance(kind, TimestampType | TimestampNTZType | DateType):
        stamp = value.cast("timestamp")
    elif isinstance(kind, NumericType):
        stamp = _epoch(value.cast("double"))
    else:
        text = F.trim(value.cast("string"))
        day = F.when(text.rlike(r"^(19|20)\d{6}$"), F.try_to_timestamp(text, F.lit("yyyyMMdd")))
        stamp = F.coalesce(day, _epoch(text.try_cast("double")), text.try_cast("timestamp"))
    return F.when((stamp >= F.lit(_OLDEST).cast("timestamp")) & (stamp < F.lit(_NEWEST).cast("timestamp")), stamp)


def _epoch(number: Column) -> Column:
    size = F.abs(number)
    seconds = (
        F.when(size < _SECONDS, number).when(size < _MILLIS, number / 1e3).when(size < _MICROS, number / 1e6).otherwise(number / 1e9)
    )
    return F.when(size < 1e19, F.timestamp_micros(F.round(seconds * 1e6).cast("bigint")))


def _boolean(raw: DataFrame, name: str) -> Column:
    if name not in raw.columns:
        return F.lit(True)
    if isinstance(raw.schema[name].dataType, BooleanType):
        return F.col(name)
    text = F.lower(F.trim(F.col(name).cast("string")))
    return F.when(text.isin(*_TRUE), F.lit(True)).when(text.isin(*_FALSE), F.lit(False))


def _categories(raw: DataFrame) -> Column:
    """A list as it is; text split at | ; nothing is an empty list."""
    empty = F.array().cast("array<string>")
    if "categories" not in raw.columns:
        return empty
    value = F.col("categories")
    if not isinstance(raw.schema["categories"].dataType, ArrayType):
        value = F.split(value.cast("string"), r"\|")
    trimmed = F.transform(value, lambda part: F.trim(part.cast("string")))
    return F.coalesce(F.filter(trimmed, lambda part: part.isNotNull() & (part != "")), empty)


def _optional(raw: DataFrame, name: str, kind: str) -> Column:
    return (F.col(name).cast(kind) if name in raw.columns else F.lit(None).cast(kind)).alias(name)
