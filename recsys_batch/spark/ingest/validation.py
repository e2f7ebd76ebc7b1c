"""Verdicts on typed rows that need other rows: repeats, rows that tables have, unknown items. Transforms of DataFrames only."""

from collections.abc import Sequence

from pyspark.sql import DataFrame, Window, WindowSpec
from pyspark.sql import functions as F

from recsys_batch.sources.typed_rows import FILE, POSITION, REASON, UPDATED
from recsys_batch.tables.tombstones import ERASED

ALREADY_PRESENT = "already_present"
"""Value of ``_reason`` for rows that the table already has: neither used nor rejected."""

DUPLICATE = "duplicate"
"""Value of ``_reason`` for rows that repeat another of the same source."""

SUPERSEDED = "superseded"
"""Value of ``_reason`` for rows of an item or user of which a later file, or a newer updated_ts, says more: neither used nor rejected."""

UNKNOWN_ITEM = "unknown_item"
"""Value of ``_reason`` for an interaction with an item that a declared catalogue lacks."""

NOT_KEPT = (ALREADY_PRESENT, SUPERSEDED, ERASED)
"""Reasons of rows that are counted, and in no table, also not in rejected."""

EVENT_KEY = ("user_id", "item_id", "event_ts", "event_type", "weight")
"""Rows equal in all of these are the same event. Weight is included: a return of -1 may equal the purchase that it undoes in
everything else, where times are dates or missing."""


def mark_repeated_keys(df: DataFrame, key: str) -> DataFrame:
    """Mark all usable rows of a ``key`` but the newest: by updated_ts, then by file, then by place in the file.

    Those of other files, or older by updated_ts, are SUPERSEDED; others repeat the key in their own file: duplicate_KEY.
    """
    newest_first = _key_window([key]).orderBy(F.col(UPDATED).desc_nulls_last(), F.col(FILE).desc(), F.col(POSITION).desc())
    marked = df.withColumns(
        {
            "_n": F.row_number().over(newest_first),
            "_newest_file": F.first(FILE).over(newest_first),
            "_newest_updated": F.first(UPDATED).over(newest_first),
        }
    )
    is_other = (F.col(FILE) != F.col("_newest_file")) | ~F.col(UPDATED).eqNullSafe(F.col("_newest_updated"))
    verdict = F.when(F.col("_n") > 1, F.when(is_other, F.lit(SUPERSEDED)).otherwise(F.lit(f"duplicate_{key}")))
    return marked.withColumn(REASON, F.coalesce(REASON, verdict)).drop("_n", "_newest_file", "_newest_updated")


def mark_duplicates(df: DataFrame, existing: DataFrame | None, key: Sequence[str] = EVENT_KEY) -> DataFrame:
    """Mark the usable rows that the sources repeat (DUPLICATE) and those that are in the tables (already_present).

    One shuffle does both: the tables' rows are unioned with the source's rows in the same window. The first of equal rows stays.

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
    number = F.row_number().over(window.orderBy("_in_table", FILE, POSITION))
    numbered = rows.withColumn("_n", number)
    present = F.lit(None).cast("string")
    if existing is not None:
        numbered = numbered.withColumn("_present", F.max("_in_table").over(window)).where(~F.col("_in_table"))
        present = F.when(F.col("_present"), F.lit(ALREADY_PRESENT))
    verdict = F.coalesce(F.col(REASON), F.when(F.col("_n") > 1, F.lit(DUPLICATE)), present)
    return numbered.withColumn(REASON, verdict).drop("_in_table", "_present", "_n")


def mark_unknown_items(df: DataFrame, known: DataFrame) -> DataFrame:
    """Mark usable interactions whose item is not in ``known`` (item_id, distinct) as UNKNOWN_ITEM."""
    joined = df.join(known.select("item_id", F.lit(True).alias("_known")), "item_id", "left")
    return joined.withColumn(REASON, F.coalesce(REASON, F.when(F.col("_known").isNull(), F.lit(UNKNOWN_ITEM)))).drop("_known")


def _key_window(key: Sequence[str]) -> WindowSpec:
    """Partition usable rows by key, unusable ones by their place: a million null ids must not meet in one task."""
    return Window.partitionBy(*key, F.when(F.col(REASON).isNotNull(), F.xxhash64(FILE, POSITION)))
