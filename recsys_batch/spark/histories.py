"""What the night reads from interactions: each user's positive history, and all that the user has seen."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from recsys_batch.schemas import ALL_SEGMENTS


def positive(interactions: DataFrame, min_weight: float) -> DataFrame:
    """Rows whose weight is above ``min_weight``; the others (returns, dislikes) only count as seen."""
    return interactions.where(F.col("weight") > F.lit(min_weight))


def histories(positives: DataFrame, length: int) -> DataFrame:
    """One row per user with a positive interaction: user_id, item_ids, event_us, weights (newest ``length``, newest first), n_events.

    An item taken several times counts once, at its newest, as in training; n_events is the number of distinct items.
    Order is event_ts descending, then item_id, so that it is the same however the rows are stored; event_us (microseconds)
    is null inside where event_ts is.
    """
    stamped = F.struct(F.unix_micros("event_ts").alias("us"), F.col("weight"))
    once = positives.groupBy("user_id", "item_id").agg(F.max(stamped).alias("newest"))
    event = F.struct(F.col("newest.us").alias("us"), F.col("item_id"), F.col("newest.weight").alias("weight"))
    newest_first = F.sort_array(F.collect_list(event), asc=False)
    grouped = once.groupBy("user_id").agg(F.slice(newest_first, 1, length).alias("events"), F.count(F.lit(1)).cast("int").alias("n_events"))
    return grouped.select(
        "user_id",
        F.col("events.item_id").alias("item_ids"),
        F.col("events.us").alias("event_us"),
        F.col("events.weight").alias("weights"),
        "n_events",
    )


def seen_items(interactions: DataFrame) -> DataFrame:
    """One row per user: user_id, seen (distinct item_ids of every interaction, positive or not)."""
    return interactions.groupBy("user_id").agg(F.collect_set("item_id").alias("seen"))


def popularity(positives: DataFrame, users: DataFrame | None, available: DataFrame, length: int) -> DataFrame:
    """Popular list per segment and of everybody: segment, rank, item_id, score (distinct users), ties by item_id.

    Args:
        available: item_id of the items that may be recommended.
        length: rows per segment.
    """
    # Grouped by user alone, so that the events move once and meet their user's segment where they lie; what is counted is small.
    once = positives.groupBy("user_id").agg(F.collect_set("item_id").alias("items"))
    nobody = F.lit(None).cast("string")
    once = once.withColumn("segment", nobody) if users is None else once.join(users.select("user_id", "segment"), "user_id", "left")
    pairs = once.select("segment", F.explode("items").alias("item_id"))
    counts = pairs.groupBy("segment", "item_id").agg(F.count(F.lit(1)).alias("n")).join(available.select("item_id"), "item_id", "left_semi")
    own = counts.where(F.col("segment").isNotNull() & (F.col("segment") != ALL_SEGMENTS))
    listed = own.unionByName(counts.withColumn("segment", F.lit(ALL_SEGMENTS)))
    counts = listed.groupBy("segment", "item_id").agg(F.sum("n").cast("float").alias("score"))
    by_rank = Window.partitionBy("segment").orderBy(F.col("score").desc(), F.col("item_id"))
    ranked = counts.withColumn("rank", F.row_number().over(by_rank)).where(F.col("rank") <= length)
    return ranked.select("segment", "rank", "item_id", "score")
