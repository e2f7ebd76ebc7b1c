"""Rows of erased users in a source: marked, so that they are counted and come into no table. Transforms of DataFrames only."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.spark.erased_keys import select_erased
from recsys_batch.spark.ingest.raw_source import RAW_ROW
from recsys_batch.spark.ingest.validation import ALREADY_PRESENT, REASON
from recsys_batch.tables.tombstones import ERASED, Tombstones


def mark_erased_users(validated: DataFrame, tombstones: Tombstones | None) -> DataFrame:
    """Give the rows of erased users the reason ERASED, also rows that are refused and name one: these would go to ``rejected``.

    Args:
        validated: typed rows with ``_row`` and ``_reason``; of a kind without user_id nothing is marked.
        tombstones: None where nobody was erased.
    """
    if tombstones is None or "user_id" not in validated.columns:
        return validated
    is_refused = F.col(REASON).isNotNull() & (F.col(REASON) != ALREADY_PRESENT)
    by_id = select_erased(validated.select(F.col("user_id").cast("string").alias("_key")), tombstones.matches)
    by_row = select_erased(validated.where(is_refused).select(F.col(RAW_ROW).alias("_key")), tombstones.matches_rows)
    marked = _mark(validated, by_id, F.col("user_id").cast("string"))
    return _mark(marked, by_row, F.when(is_refused, F.col(RAW_ROW)))


def _mark(rows: DataFrame, erased: DataFrame, key: Column) -> DataFrame:
    joined = rows.withColumn("_key", key).join(F.broadcast(erased.withColumn("_erased", F.lit(True))), "_key", "left")
    return joined.withColumn(REASON, F.when(F.col("_erased"), F.lit(ERASED)).otherwise(F.col(REASON))).drop("_key", "_erased")
