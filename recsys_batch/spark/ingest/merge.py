"""Merge new rows with the rows of existing tables. Transforms of DataFrames only: nothing is read or written."""

import datetime as dt
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.sources.typed_rows import REASON
from recsys_batch.sources.verdicts import ALREADY_PRESENT

_ITEM_COLUMNS = ("item_id", "title", "categories", "is_available", "first_seen_ts", "attributes")


def merge_with_table(typed: DataFrame, table: DataFrame | None, source_columns: set[str]) -> DataFrame:
    """Merge typed items or users with the table's rows; rows that change nothing get the reason already_present.

    A column that the file lacks keeps the table's value, so that a file of item_id and is_available changes availability alone.
    Attributes are merged key by key, and a known first_seen_ts stays.

    Args:
        typed: typed items or users with ``_reason``; the first column is the key.
        table: the table's rows; None where there is no table yet.
        source_columns: names in our schema of the columns that the file has.
    """
    if table is None:
        return typed
    key, *columns = table.columns
    existing = table.select(key, F.struct(*columns).alias("_old"))
    joined = typed.join(existing, key, "left")
    merged = joined.withColumns({name: _merge_column(name, name in source_columns) for name in columns})
    equal = (_comparable(f"_old.{name}").eqNullSafe(_comparable(name)) for name in columns)
    is_unchanged = reduce(Column.__and__, equal, F.col("_old").isNotNull())
    return merged.withColumn(REASON, F.coalesce(REASON, F.when(is_unchanged, F.lit(ALREADY_PRESENT)))).drop("_old")


def add_first_seen(items: DataFrame, events: DataFrame | None) -> DataFrame:
    """Fill a null first_seen_ts with the item's first event; returns the columns of items."""
    if events is None:
        return items.select(*_ITEM_COLUMNS)
    joined = items.join(_first_events(events), "item_id", "left")
    return joined.withColumn("first_seen_ts", F.coalesce("first_seen_ts", "_first")).select(*_ITEM_COLUMNS)


def derive_items(events: DataFrame, table: DataFrame | None, *, derive: bool) -> DataFrame:
    """Derive items rows from events: items new to the table, and items whose first event was unknown.

    Args:
        table: the items table; None where there is none yet.
        derive: whether to add items that the table lacks (available, without title or categories), not only fill a first_seen_ts.
    """
    first_events = _first_events(events)
    if table is None:
        return _as_new_items(first_events)
    matched = first_events.join(table.withColumn("_in_table", F.lit(True)), "item_id", "left").persist()
    late = matched.where("_in_table AND first_seen_ts IS NULL AND _first IS NOT NULL").withColumn("first_seen_ts", F.col("_first"))
    dated = late.select(*_ITEM_COLUMNS)
    return dated.unionByName(_as_new_items(matched.where("_in_table IS NULL"))) if derive else dated


def select_new_rejections(rejected: DataFrame, recorded: DataFrame) -> DataFrame:
    """Select source, kind, reason, row of ``rejected`` minus ``recorded``, as multisets: two equal bad lines are two rows."""
    columns = ("source", "kind", "reason", "row")
    return rejected.select(*columns).exceptAll(recorded.select(*columns))


def events_in_span(span: tuple[dt.date, dt.date] | None) -> Column:
    """Build the filter of events on some dates, so that a file of one day does not read years of a table; None: without a date."""
    if span is None:
        return F.col("event_date").isNull()
    return F.col("event_date").between(*map(F.lit, span)) | F.col("event_date").isNull()


def _first_events(events: DataFrame) -> DataFrame:
    return events.groupBy("item_id").agg(F.min("event_ts").alias("_first"))


def _as_new_items(first_events: DataFrame) -> DataFrame:
    return first_events.select(
        "item_id",
        F.lit(None).cast("string").alias("title"),
        F.array().cast("array<string>").alias("categories"),
        F.lit(True).alias("is_available"),
        F.col("_first").alias("first_seen_ts"),
        F.create_map().cast("map<string,string>").alias("attributes"),
    )


def _merge_column(name: str, in_source: bool) -> Column:
    existing = F.col(f"_old.{name}")
    if name == "attributes":
        known = F.coalesce(existing, F.create_map().cast("map<string,string>"))
        return F.map_concat(F.map_filter(known, lambda key, _: ~F.map_contains_key(name, key)), name)
    if name == "first_seen_ts" or not in_source:
        return F.coalesce(existing, F.col(name))
    return F.col(name)


def _comparable(name: str) -> Column:
    """Make a column comparable: maps have no equality in SQL, their sorted entries have."""
    return F.array_sort(F.map_entries(name)) if name.endswith("attributes") else F.col(name)
