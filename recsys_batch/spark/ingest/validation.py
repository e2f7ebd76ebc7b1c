"""Raw rows to typed rows, each with the first reason why it cannot be used, or none. Transforms only: nothing is read or written."""

from __future__ import annotations

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
PRESENT = "already_present"
"""In ``_reason`` of rows that the table has already: neither used nor rejected."""

HELD_OUT = "_held_out"
MIN_POSITIVES_TO_HOLD_OUT = 5

EVENT_KEY = ("user_id", "item_id", "event_ts", "event_type", "weight")
"""Two rows equal in all of these say the same event twice. Weight is one of them: a return of -1 has, where times are dates or
missing, everything else in common with the purchase it undoes."""


@dataclass(frozen=True)
class SourceProfile:
    """What one pass over raw rows says of them.

    Attributes:
        user_id, item_id: the type that the ids need; None where the column is missing or has no value.
        first_date, last_date: span of the usable event dates; None without any.
    """

    n_rows: int
    user_id: IdType | None
    item_id: IdType | None
    first_date: dt.date | None
    last_date: dt.date | None


def profile_source(raw: DataFrame, time: str = "event_ts") -> SourceProfile:
    """Count the rows, find the id types and the span of dates by the column ``time``, in one pass."""
    columns = [F.count(F.lit(1)).alias("n_rows")]
    for name in ("user_id", "item_id"):
        there = name in raw.columns
        columns.append(F.count_if(~parsing.is_blank(name) if there else F.lit(False)).alias(f"n_{name}"))
        columns.append(F.count_if(parsing.is_foreign_to_bigint(raw, name) if there else F.lit(False)).alias(f"foreign_{name}"))
    date = F.to_date(parsing.parse_timestamp(raw, time)) if time in raw.columns else F.lit(None).cast("date")
    found = cast("Any", raw.agg(*columns, F.min(date).alias("first_date"), F.max(date).alias("last_date")).head()).asDict()
    types: dict[str, IdType | None] = {
        name: None if found[f"n_{name}"] == 0 else "STRING" if found[f"foreign_{name}"] else "BIGINT" for name in ("user_id", "item_id")
    }
    return SourceProfile(found["n_rows"], types["user_id"], types["item_id"], found["first_date"], found["last_date"])


def parse_interactions(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Columns of interactions with ``_row`` and ``_reason`` (null: usable so far); repeated rows are not looked for yet.

    Without an event_ts column every event_ts is null; without a weight column every weight is 1; event_type defaults to "event".
    A request_id, which feedback has, stays beside them.
    """
    timed, weighted = "event_ts" in raw.columns, "weight" in raw.columns
    weight = parsing.parse_number(raw, "weight") if weighted else F.lit(1.0).cast("float")
    event_ts = parsing.parse_timestamp(raw, "event_ts") if timed else F.lit(None).cast("timestamp")
    kind = F.when(~parsing.is_blank("event_type"), F.col("event_type").cast("string")) if "event_type" in raw.columns else F.lit(None)
    bad_weight = weight.isNull() | F.isnan(weight) | (F.abs(weight) == float("inf"))
    reasons = [
        (F.col(CORRUPT).isNotNull(), "malformed_line"),
        (parsing.is_blank("user_id"), "null_user_id"),
        (parsing.is_blank("item_id"), "null_item_id"),
        (parsing.parse_id_column(raw, "user_id", ids.user).isNull(), "bad_user_id"),
        (parsing.parse_id_column(raw, "item_id", ids.item).isNull(), "bad_item_id"),
        *([(parsing.is_blank("event_ts"), "null_event_ts"), (event_ts.isNull(), "bad_event_ts")] if timed else []),
        *([(bad_weight, "bad_weight")] if weighted else []),
    ]
    return raw.select(
        parsing.parse_id_column(raw, "user_id", ids.user).alias("user_id"),
        parsing.parse_id_column(raw, "item_id", ids.item).alias("item_id"),
        event_ts.alias("event_ts"),
        F.coalesce(kind, F.lit("event")).alias("event_type"),
        weight.alias("weight"),
        F.to_date(event_ts).alias("event_date"),
        *([F.col("request_id").cast("string")] if "request_id" in raw.columns else []),
        RAW_ROW,
        first_reason(reasons).alias(REASON),
    )


def parse_items(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Columns of items with ``_row`` and ``_reason``; one usable row per item_id."""
    available = parsing.parse_flag(raw, "is_available") if "is_available" in raw.columns else F.lit(True)
    first_seen = parsing.parse_timestamp(raw, "first_seen_ts") if "first_seen_ts" in raw.columns else F.lit(None).cast("timestamp")
    reasons = [
        *_key_reasons(raw, "item_id", ids.item),
        *([(available.isNull() & ~parsing.is_blank("is_available"), "bad_is_available")] if "is_available" in raw.columns else []),
        *([(first_seen.isNull() & ~parsing.is_blank("first_seen_ts"), "bad_first_seen_ts")] if "first_seen_ts" in raw.columns else []),
    ]
    typed = raw.select(
        parsing.parse_id_column(raw, "item_id", ids.item).alias("item_id"),
        _optional(raw, "title", "string"),
        (parsing.parse_text_list(raw, "categories") if "categories" in raw.columns else F.array().cast("array<string>")).alias(
            "categories"
        ),
        F.coalesce(available, F.lit(True)).alias("is_available"),
        first_seen.alias("first_seen_ts"),
        _attributes(raw),
        RAW_ROW,
        first_reason(reasons).alias(REASON),
    )
    return mark_repeats(typed, "item_id", "duplicate_item_id")


def parse_users(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Columns of users with ``_row`` and ``_reason``; one usable row per user_id."""
    key = parsing.parse_id_column(raw, "user_id", ids.user).alias("user_id")
    segment = (
        F.when(~parsing.is_blank("segment"), F.col("segment").cast("string")) if "segment" in raw.columns else F.lit(None).cast("string")
    )
    reason = first_reason(_key_reasons(raw, "user_id", ids.user)).alias(REASON)
    return mark_repeats(raw.select(key, segment.alias("segment"), _attributes(raw), RAW_ROW, reason), "user_id", "duplicate_user_id")


def mark_repeats(df: DataFrame, key: str, reason: str) -> DataFrame:
    """Give ``reason`` to every usable row but one of each ``key``; which one stays depends on the rows alone, not on their order."""
    window = _of_equal_rows([key]).orderBy(F.xxhash64(RAW_ROW), RAW_ROW)
    numbered = df.withColumn("_n", F.row_number().over(window))
    repeated = F.col(REASON).isNull() & (F.col("_n") > 1)
    return numbered.withColumn(REASON, F.when(repeated, F.lit(reason)).otherwise(F.col(REASON))).drop("_n")


def mark_duplicates(df: DataFrame, there: DataFrame | None, key: Sequence[str] = EVENT_KEY) -> DataFrame:
    """Mark the usable rows that the file says twice (duplicate) and those that are in the tables (already_present).

    Both are found in one shuffle: the tables' rows join the file's as further rows of the same window.

    Args:
        df: typed interactions, or exposures.
        there: the key's columns of the rows that the tables have; None where there are none.
        key: columns in which equal rows say the same.
    """
    known = F.lit(None).cast("string")
    rows = df.withColumn("_there", F.lit(False))
    if there is not None:
        rows = rows.unionByName(there.select(*key, known.alias(REASON), F.lit(True).alias("_there")), allowMissingColumns=True)
    equal = _of_equal_rows(key)
    numbered = rows.withColumn("_present", F.max("_there").over(equal)).withColumn(
        "_n", F.row_number().over(equal.orderBy("_there", F.xxhash64(RAW_ROW), RAW_ROW))
    )
    verdict = (
        F.when(F.col(REASON).isNotNull(), F.col(REASON)).when(F.col("_n") > 1, F.lit("duplicate")).when(F.col("_present"), F.lit(PRESENT))
    )
    return numbered.where(~F.col("_there")).withColumn(REASON, verdict).drop("_there", "_present", "_n")


def mark_unknown_items(df: DataFrame, known: DataFrame) -> DataFrame:
    """Mark usable interactions whose item is not among ``known`` (item_id, distinct)."""
    marked = df.join(known.select("item_id", F.lit(True).alias("_known")), "item_id", "left")
    unknown = F.col(REASON).isNull() & F.col("_known").isNull()
    return marked.withColumn(REASON, F.when(unknown, F.lit("unknown_item")).otherwise(F.col(REASON))).drop("_known")


def mark_holdout(df: DataFrame, share: float, min_weight: float) -> DataFrame:
    """Adds ``_held_out``: true for the newest ``share`` (rounded down) of each user's positive rows.

    Rows that are already present count too, so that a repeated or resumed ingest holds out the same rows. Where there is no
    time, and among equal times, a hash of user and item decides. Users with fewer than 5 positives keep them all.
    """
    if not share:
        return df.withColumn(HELD_OUT, F.lit(False))
    usable = F.col(REASON).isNull() | (F.col(REASON) == PRESENT)
    positive = usable & (F.col("weight") > min_weight)
    of_user = Window.partitionBy(F.when(positive, F.col("user_id")), F.when(~positive, F.xxhash64(RAW_ROW)))
    newest_first = of_user.orderBy(F.col("event_ts").desc_nulls_last(), F.xxhash64("user_id", "item_id"), "item_id", "event_type", "weight")
    numbered = df.withColumn("_n", F.count(F.lit(1)).over(of_user)).withColumn("_place", F.row_number().over(newest_first))
    # 0.29 * 100 is 28.999999999999996.
    quota = F.floor(F.col("_n") * share + 1e-9)
    held = positive & (F.col("_n") >= MIN_POSITIVES_TO_HOLD_OUT) & (F.col("_place") <= quota)
    return numbered.withColumn(HELD_OUT, F.coalesce(held, F.lit(False))).drop("_n", "_place")


def first_reason(reasons: Sequence[tuple[Column, str]]) -> Column:
    """The name of the first condition that holds, or null."""
    return F.coalesce(*(F.when(condition, F.lit(name)) for condition, name in reasons), F.lit(None).cast("string"))


def _of_equal_rows(key: Sequence[str]) -> Any:
    """Usable rows with the same key; the others alone, by their text: a million null ids must not meet in one task."""
    return Window.partitionBy(*key, F.when(F.col(REASON).isNotNull(), F.xxhash64(RAW_ROW)))


def _key_reasons(raw: DataFrame, name: str, id_type: IdType) -> list[tuple[Column, str]]:
    missing, fits = parsing.is_blank(name), parsing.parse_id_column(raw, name, id_type).isNotNull()
    return [(F.col(CORRUPT).isNotNull(), "malformed_line"), (missing, f"null_{name}"), (~fits, f"bad_{name}")]


def _optional(raw: DataFrame, name: str, kind: str) -> Column:
    return (F.col(name).cast(kind) if name in raw.columns else F.lit(None).cast(kind)).alias(name)


def _attributes(raw: DataFrame) -> Column:
    nothing = F.create_map().cast("map<string,string>")
    return (F.coalesce("attributes", nothing) if "attributes" in raw.columns else nothing).alias("attributes")
