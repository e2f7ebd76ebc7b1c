"""How new rows meet what the tables already say. Transforms only."""

from __future__ import annotations

from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.spark.ingest.validation import PRESENT, REASON, SourceProfile

_ITEMS = ("item_id", "title", "categories", "is_available", "first_seen_ts", "attributes")


def merge_with_table(typed: DataFrame, table: DataFrame | None, given: set[str]) -> DataFrame:
    """What the table would say of each typed item or user; rows that would change nothing get the reason already_present.

    A column that the file lacks keeps the table's value, so that a file of item_id and is_available changes availability alone.
    Attributes are merged key by key, and a first_seen_ts that is known stays.

    Args:
        typed: typed items or users with ``_reason``; the first column is the key.
        table: the table's rows; None where there is no table yet.
        given: our names of the columns that the file has.
    """
    if table is None:
        return typed
    key, *columns = table.columns
    old = table.select(key, F.struct(*columns).alias("_old"))
    joined = typed.join(old, key, "left")
    merged = joined.withColumns({name: _merged(name, name in given) for name in columns})
    same = F.col("_old").isNotNull() & reduce(
        Column.__and__, (_comparable(f"_old.{name}").eqNullSafe(_comparable(name)) for name in columns)
    )
    verdict = F.when(F.col(REASON).isNull() & same, F.lit(PRESENT)).otherwise(F.col(REASON))
    return merged.withColumn(REASON, verdict).drop("_old")


def add_first_seen(items: DataFrame, events: DataFrame | None) -> DataFrame:
    """Columns of items; a first_seen_ts that is null becomes the item's first event."""
    if events is None:
        return items.select(*_ITEMS)
    joined = items.join(_first_events(events), "item_id", "left")
    return joined.withColumn("first_seen_ts", F.coalesce("first_seen_ts", "_first")).select(*_ITEMS)


def derive_items(events: DataFrame, table: DataFrame | None, *, derive: bool) -> DataFrame:
    """Columns of items, for the items that ``events`` tell something new of.

    Args:
        table: the items table; None where there is none yet.
        derive: whether items that the table lacks are listed (without title or categories, available); otherwise only
            those whose first event was not known.
    """
    first = _first_events(events)
    if table is None:
        return _listed(first)
    matched = first.join(table.withColumn("_listed", F.lit(True)), "item_id", "left").persist()
    late = matched.where("_listed AND first_seen_ts IS NULL AND _first IS NOT NULL").withColumn("first_seen_ts", F.col("_first"))
    return late.select(*_ITEMS).unionByName(_listed(matched.where("_listed IS NULL"))) if derive else late.select(*_ITEMS)


def select_new_rejections(rejected: DataFrame, recorded: DataFrame) -> DataFrame:
    """source, kind, reason, row of ``rejected`` beyond those in ``recorded``, as multisets: two equal bad lines are two rows."""
    columns = ("source", "kind", "reason", "row")
    return rejected.select(*columns).exceptAll(recorded.select(*columns))


def events_in_span(seen: SourceProfile) -> Column:
    """The part of a table that rows of these dates can be in: a day's file does not read years."""
    if seen.first_date is None:
        return F.col("event_date").isNull()
    return F.col("event_date").between(F.lit(seen.first_date), F.lit(seen.last_date))


def _first_events(events: DataFrame) -> DataFrame:
    return events.groupBy("item_id").agg(F.min("event_ts").alias("_first"))


def _listed(first: DataFrame) -> DataFrame:
    return first.select(
        "item_id",
        F.lit(None).cast("string").alias("title"),
        F.array().cast("array<string>").alias("categories"),
        F.lit(True).alias("is_available"),
        F.col("_first").alias("first_seen_ts"),
        F.create_map().cast("map<string,string>").alias("attributes"),
    )


def _merged(name: str, given: bool) -> Column:
    old = F.col(f"_old.{name}")
    if name == "attributes":
        kept = F.map_filter(F.coalesce(old, F.create_map().cast("map<string,string>")), lambda key, _: ~F.map_contains_key(name, key))
        return F.map_concat(kept, name)
    if name == "first_seen_ts" or not given:
        return F.coalesce(old, F.col(name))
    return F.col(name)


def _comparable(name: str) -> Column:
    """Maps have no equality in SQL; their sorted entries have."""
    return F.array_sort(F.map_entries(name)) if name.endswith("attributes") else F.col(name)
