"""Keys of rows that name erased users, by their tombstones. Transforms of DataFrames only."""

from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.tables.tombstones import Tombstones


def drop_erased_users(rows: DataFrame, tombstones: Tombstones | None) -> DataFrame:
    """Drop the rows of erased users.

    Args:
        rows: with user_id, as embeddings that somebody brings.
    """
    if tombstones is None:
        return rows
    key = F.col("user_id").cast("string")
    erased = _select_erased(rows.select(key.alias("_key")), tombstones)
    return rows.withColumn("_key", key).join(F.broadcast(erased), "_key", "left_anti").drop("_key")


def _select_erased(keys: DataFrame, tombstones: Tombstones) -> DataFrame:
    """Select the distinct keys of erased users."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch.filter(tombstones.matches(batch.column(0)))

    return keys.where("_key IS NOT NULL").distinct().mapInArrow(run, "_key string")
