"""Verdicts on typed rows over a whole source: the rows of a key meet in one partition. Transforms of DataFrames only."""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.schemas import spark_ddl
from recsys_batch.sources import verdicts
from recsys_batch.sources.typed_rows import FILE, POSITION, REASON
from recsys_batch.sources.verdicts import EVENT_KEY, IN_TABLE, UNKNOWN_ITEM

_BATCH = 65_536
_PARTITIONING = 2  # the first columns of a key spread its rows well enough


def mark_repeated_keys_in_source(df: DataFrame, key: str, schema: pa.Schema) -> DataFrame:
    """Mark all usable rows of a ``key`` but the newest, see ``verdicts.mark_repeated_keys``; ``schema`` is that of the rows."""
    return _by_key(df, [key], schema, lambda rows: verdicts.mark_repeated_keys(rows, key))


def mark_duplicates_in_source(df: DataFrame, existing: DataFrame | None, schema: pa.Schema, key: Sequence[str] = EVENT_KEY) -> DataFrame:
    """Mark the usable rows that the sources repeat and those that are in the tables, see ``verdicts.mark_duplicates``.

    One shuffle does both: the tables' rows are unioned with the source's rows.

    Args:
        df: typed interactions, or exposures, with the columns of ``schema``.
        existing: key columns of the tables' rows; None where there are none.
        key: columns in which duplicates are equal.
    """
    if existing is not None:
        marked = existing.select(*key, F.lit(True).alias(IN_TABLE))
        df = df.withColumn(IN_TABLE, F.lit(False)).unionByName(marked, allowMissingColumns=True)
    return _by_key(df, key, schema, lambda rows: verdicts.mark_duplicates(rows, key))


def mark_unknown_items(df: DataFrame, known: DataFrame) -> DataFrame:
    """Mark usable interactions whose item is not in ``known`` (item_id, distinct) as UNKNOWN_ITEM."""
    joined = df.join(known.select("item_id", F.lit(True).alias("_known")), "item_id", "left")
    return joined.withColumn(REASON, F.coalesce(REASON, F.when(F.col("_known").isNull(), F.lit(UNKNOWN_ITEM)))).drop("_known")


def _by_key(df: DataFrame, key: Sequence[str], schema: pa.Schema, mark: Callable[[pa.Table], pa.Table]) -> DataFrame:
    """Apply a function to whole partitions, in which all usable rows of a key are.

    Unusable rows go by their place: a million null ids must not meet in one task.
    """

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        whole = list(batches)
        if whole:
            marked = mark(pa.Table.from_batches(whole).combine_chunks())
            yield from pa.table({name: marked[name] for name in schema.names}).cast(schema).to_batches(max_chunksize=_BATCH)

    unusable = F.when(F.col(REASON).isNotNull(), F.xxhash64(FILE, POSITION))
    return df.repartition(*key[:_PARTITIONING], unusable).mapInArrow(run, spark_ddl(schema))
