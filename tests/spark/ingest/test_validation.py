"""Verdicts over a whole source: rows of a key meet wherever they are, and rows of tables with them."""

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from recsys_batch.schemas import TIMESTAMP, IdTypes
from recsys_batch.sources.typed_rows import FILE, POSITION, REASON
from recsys_batch.sources.verdicts import ALREADY_PRESENT, EVENT_KEY
from recsys_batch.spark.executors.source_tasks import located_schema
from recsys_batch.spark.ingest import validation

IDS = IdTypes("STRING", "STRING")
SCHEMA = located_schema("interactions", IDS)


def typed(rows: list[tuple[str, str, str | None]]) -> pa.Table:
    """user_id, item_id, reason per row; its place is its number."""
    columns = {name: pa.nulls(len(rows), SCHEMA.field(name).type) for name in SCHEMA.names}
    columns |= {"user_id": pa.array([row[0] for row in rows]), "item_id": pa.array([row[1] for row in rows])}
    columns |= {FILE: pa.array([0] * len(rows), pa.int32()), POSITION: pa.array(range(len(rows)), pa.int64())}
    columns |= {"event_type": pa.array(["buy"] * len(rows)), "weight": pa.array([1.0] * len(rows), pa.float32())}
    columns[REASON] = pa.array([row[2] for row in rows], pa.string())
    assert columns["event_ts"].type == TIMESTAMP
    return pa.table(columns, schema=SCHEMA)


@pytest.mark.parametrize("n_partitions", [1, 5])
def test_repeats_and_rows_of_tables_are_found_across_partitions(spark: SparkSession, n_partitions: int) -> None:
    rows = [(f"u{n % 40}", "i", "null_user_id" if n == 79 else None) for n in range(80)]
    df = spark.createDataFrame(typed(rows)).repartition(n_partitions)
    existing = spark.createDataFrame(typed([("u3", "i", None), ("u99", "i", None)])).select(*EVENT_KEY)
    marked = validation.mark_duplicates_in_source(df, existing, SCHEMA).select(POSITION, REASON).collect()
    expected = {n: None if n < 40 else "duplicate" for n in range(80)} | {3: ALREADY_PRESENT, 79: "null_user_id"}
    assert {row[POSITION]: row[REASON] for row in marked} == expected
    assert validation.mark_duplicates_in_source(df, None, SCHEMA).where(f"{REASON} IS NULL").count() == 40


def test_interactions_with_items_that_a_catalogue_lacks_are_marked(spark: SparkSession) -> None:
    df = spark.createDataFrame(typed([("u", "i", None), ("u", "x", None), ("u", "x", "bad_weight")]))
    marked = validation.mark_unknown_items(df, spark.createDataFrame([("i",)], "item_id string")).orderBy(POSITION).collect()
    assert [row[REASON] for row in marked] == [None, "unknown_item", "bad_weight"]
