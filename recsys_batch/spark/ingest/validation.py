"""Validate raw rows: typed rows with the first rejection reason, or null. Transforms of DataFrames only: nothing is read or written."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from recsys_batch.schemas import IdType, IdTypes
from recsys_batch.spark.ingest import parsing
from recsys_batch.spark.ingest.raw_source import CORRUPT, RAW_ROW

REASON = "_reason"
ALREADY_PRESENT = "already_present"
"""Value of ``_reason`` for rows that the table already has: neither used nor rejected."""

DUPLICATE = "duplicate"
"""Value of ``_reason`` for rows that repeat another of the same source."""

UNKNOWN_ITEM = "unknown_item"
"""Value of ``_reason`` for an interaction with an item that a declared catalogue lacks."""

HELD_OUT = "_held_out"
MIN_POSITIVES_TO_HOLD_OUT = 5

EVENT_KEY = ("user_id", "item_id", "event_ts", "event_type", "weight")
"""Rows equal in all of these are the same event. Weight is included: a return of -1 may equal the purchase that it undoes in
everything else, where times are dates or missing."""


@dataclass(frozen=True)
class SourceProfile:
    """Row count, id types and date span of raw rows.

    Attributes:
        user_id, item_id: type that the ids need; None where the column is missing or has no value.
        first_date, last_date: span of the usable event dates; None without any.
    """

    n_rows: int
    user_id: IdType | None
    item_id: IdType | None
    first_date: dt.date | None
    last_date: dt.date | None


def profile_source(raw: DataFrame, time: str = "event_ts") -> SourceProfile:
    """Profile raw rows in one pass: count, id types and the span of dates in column ``time``."""
    columns = [F.count(F.lit(1)).alias("n_rows")]
    for name in ("user_id", "item_id"):
        is_present = name in raw.columns
        columns.append(F.count_if(~parsing.is_blank(name) if is_present else F.lit(False)).alias(f"n_{name}"))
        columns.append(F.count_if(parsing.needs_string_id(raw, name) if is_present else F.lit(False)).alias(f"string_{name}"))
    date = F.to_date(parsing.parse_timestamp(raw, time)) if time in raw.columns else F.lit(None).cast("date")
    profile = cast("Any", raw.agg(*columns, F.min(date).alias("first_date"), F.max(date).alias("last_date")).head()).asDict()
    types: dict[str, IdType | None] = {
        name: None if profile[f"n_{name}"] == 0 else "STRING" if profile[f"string_{name}"] else "BIGINT" for name in ("user_id", "item_id")
    }
    return SourceProfile(profile["n_rows"], types["user_id"], types["item_id"], profile["first_date"], profile["last_date"])


def parse_interactions(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Parse interactions into the table's columns with ``_row`` and ``_reason`` (null if usable); duplicates are marked later.

    Without an event_ts column every event_ts is null; without a weight column every weight is 1; event_type defaults to "event".
    The request_id of feedback is kept.
    """
    has_time, has_weight = "event_ts" in raw.columns, "weight" in raw.columns
    weight = parsing.parse_number(raw, "weight") if has_weight else F.lit(1.0).cast("float")
    event_ts = parsing.parse_timestamp(raw, "event_ts") if has_time else F.lit(None).cast("timestamp")
    event_type = F.when(~parsing.is_blank("event_type"), F.col("event_type").cast("string")) if "event_type" in raw.columns else F.lit(None)
    bad_weight = weight.isNull() | F.isnan(weight) | (F.abs(weight) == float("inf"))
    reasons = [
        *key_reasons(raw, user_id=ids.user, item_id=ids.item),
        *([(parsing.is_blank("event_ts"), "null_event_ts"), (event_ts.isNull(), "bad_event_ts")] if has_time else []),
        *([(bad_weight, "bad_weight")] if has_weight else []),
    ]
    return raw.select(
        parsing.parse_id_column(raw, "user_id", ids.user).alias("user_id"),
        parsing.parse_id_column(raw, "item_id", ids.item).alias("item_id"),
        event_ts.alias("event_ts"),
        F.coalesce(event_type, F.lit("event")).alias("event_type"),
        weight.alias("weight"),
        F.to_date(event_ts).alias("event_date"),
        *([F.col("request_id").cast("string")] if "request_id" in raw.columns else []),
        RAW_ROW,
        coalesce_reasons(reasons).alias(REASON),
    )


def parse_items(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Parse items into the table's columns with ``_row`` and ``_reason``; one usable row per item_id."""
    categories = parsing.parse_text_list(raw, "categories") if "categories" in raw.columns else F.array().cast("array<string>")
    available = parsing.parse_flag(raw, "is_available") if "is_available" in raw.columns else F.lit(True)
    first_seen = parsing.parse_timestamp(raw, "first_seen_ts") if "first_seen_ts" in raw.columns else F.lit(None).cast("timestamp")
    reasons = [
        *key_reasons(raw, item_id=ids.item),
        *([(available.isNull() & ~parsing.is_blank("is_available"), "bad_is_available")] if "is_available" in raw.columns else []),
        *([(first_seen.isNull() & ~parsing.is_blank("first_seen_ts"), "bad_first_seen_ts")] if "first_seen_ts" in raw.columns else []),
    ]
    typed = raw.select(
        parsing.parse_id_column(raw, "item_id", ids.item).alias("item_id"),
        _optional_column(raw, "title", "string"),
        categories.alias("categories"),
        F.coalesce(available, F.lit(True)).alias("is_available"),
        first_seen.alias("first_seen_ts"),
        _optional_attributes(raw),
        RAW_ROW,
        coalesce_reasons(reasons).alias(REASON),
    )
    return mark_repeated_keys(typed, "item_id", "duplicate_item_id")


def parse_users(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Parse users into the table's columns with ``_row`` and ``_reason``; one usable row per user_id."""
    key = parsing.parse_id_column(raw, "user_id", ids.user).alias("user_id")
    segment = F.when(~parsing.is_blank("segment"), F.col("segment")) if "segment" in raw.columns else F.lit(None)
    reason = coalesce_reasons(key_reasons(raw, user_id=ids.user)).alias(REASON)
    typed = raw.select(key, segment.cast("string").alias("segment"), _optional_attributes(raw), RAW_ROW, reason)
    return mark_repeated_keys(typed, "user_id", "duplicate_user_id")


def mark_repeated_keys(df: DataFrame, key: str, reason: str) -> DataFrame:
    """Mark all usable rows of a ``key`` but one with ``reason``; which one stays does not depend on the order of rows."""
    window = _key_window([key]).orderBy(F.xxhash64(RAW_ROW), RAW_ROW)
    numbered = df.withColumn("_n", F.row_number().over(window))
    return numbered.withColumn(REASON, F.coalesce(REASON, F.when(F.col("_n") > 1, F.lit(reason)))).drop("_n")


def mark_duplicates(df: DataFrame, existing: DataFrame | None, key: Sequence[str] = EVENT_KEY) -> DataFrame:
    """Mark the usable rows that the file repeats (DUPLICATE) and those that are in the tables (already_present).

    One shuffle does both: the tables' rows are unioned with the file's rows in the same window.

    Args:
        df: typed interactions, or exposures.
        existing: key columns of the tables' rows; None where there are none.
        key: columns in which duplicates are equal.
    """
    no_reason = F.lit(None).cast("string")
    rows = df.withColumn("_in_table", F.lit(False))
    if existing is not None:
        rows = rows.unionByName(existing.select(*key, no_reason.alias(REASON), F.lit(True).alias("_in_table")), allowMissingColumns=True)
    window = _key_window(key)
    number = F.row_number().over(window.orderBy("_in_table", F.xxhash64(RAW_ROW), RAW_ROW))
    numbered = rows.withColumn("_present", F.max("_in_table").over(window)).withColumn("_n", number)
    repeated, present = F.when(F.col("_n") > 1, F.lit(DUPLICATE)), F.when(F.col("_present"), F.lit(ALREADY_PRESENT))
    verdict = F.coalesce(F.col(REASON), repeated, present)
    return numbered.where(~F.col("_in_table")).withColumn(REASON, verdict).drop("_in_table", "_present", "_n")


def mark_unknown_items(df: DataFrame, known: DataFrame) -> DataFrame:
    """Mark usable interactions whose item is not in ``known`` (item_id, distinct) as UNKNOWN_ITEM."""
    joined = df.join(known.select("item_id", F.lit(True).alias("_known")), "item_id", "left")
    return joined.withColumn(REASON, F.coalesce(REASON, F.when(F.col("_known").isNull(), F.lit(UNKNOWN_ITEM)))).drop("_known")


def mark_holdout(df: DataFrame, share: float, min_weight: float) -> DataFrame:
    """Add ``_held_out``: true for the newest ``share`` (rounded down) of each user's positive rows.

    Rows that are already present count too, so that a repeated or resumed ingest holds out the same rows. Ties and missing
    times are ordered by a hash of user and item. Users with fewer than 5 positives keep them all.
    """
    if not share:
        return df.withColumn(HELD_OUT, F.lit(False))
    usable = F.col(REASON).isNull() | (F.col(REASON) == ALREADY_PRESENT)
    positive = usable & (F.col("weight") > min_weight)
    by_user = Window.partitionBy(F.when(positive, F.col("user_id")), F.when(~positive, F.xxhash64(RAW_ROW)))
    newest_first = by_user.orderBy(F.col("event_ts").desc_nulls_last(), F.xxhash64("user_id", "item_id"), "item_id", "event_type", "weight")
    numbered = df.withColumn("_n", F.count(F.lit(1)).over(by_user)).withColumn("_position", F.row_number().over(newest_first))
    # 0.29 * 100 is 28.999999999999996.
    quota = F.floor(F.col("_n") * share + 1e-9)
    held_out = positive & (F.col("_n") >= MIN_POSITIVES_TO_HOLD_OUT) & (F.col("_position") <= quota)
    return numbered.withColumn(HELD_OUT, F.coalesce(held_out, F.lit(False))).drop("_n", "_position")


def coalesce_reasons(reasons: Sequence[tuple[Column, str]]) -> Column:
    """Select the name of the first condition that is true, or null."""
    return F.coalesce(*(F.when(condition, F.lit(name)) for condition, name in reasons), F.lit(None).cast("string"))


def _key_window(key: Sequence[str]) -> Any:
    """Partition usable rows by key, unusable ones by their text: a million null ids must not meet in one task."""
    return Window.partitionBy(*key, F.when(F.col(REASON).isNotNull(), F.xxhash64(RAW_ROW)))


def key_reasons(raw: DataFrame, **id_types: IdType) -> list[tuple[Column, str]]:
    """List what rejects a row of whatever kind, a malformed line first: then ids that are missing, then ids of another type."""
    missing = [(parsing.is_blank(name), f"null_{name}") for name in id_types]
    unfit = [(parsing.parse_id_column(raw, name, id_type).isNull(), f"bad_{name}") for name, id_type in id_types.items()]
    return [(F.col(CORRUPT).isNotNull(), "malformed_line"), *missing, *unfit]


def _optional_column(raw: DataFrame, name: str, kind: str) -> Column:
    return (F.col(name).cast(kind) if name in raw.columns else F.lit(None).cast(kind)).alias(name)


def _optional_attributes(raw: DataFrame) -> Column:
    empty_map = F.create_map().cast("map<string,string>")
    return (F.coalesce("attributes", empty_map) if "attributes" in raw.columns else empty_map).alias("attributes")
