"""generate: the tables of an empty warehouse, the same for the same seed however Spark splits the work."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from recsys_batch.config import Config
from recsys_batch.dataset import synthetic
from recsys_batch.dataset.synthetic import World
from recsys_batch.errors import UsageError
from recsys_batch.spark.generate import generate_tables, make_rows
from recsys_batch.spark.ingest.pipeline import ITEMS_DECLARED
from recsys_batch.spark.tables import WarehouseTables

ARGUMENTS = {"n_users": 300, "n_items": 120, "n_events": 3000, "seed": 5}
WORLD = World(*ARGUMENTS.values())


def test_the_tables_hold_the_rows_of_the_world(spark: SparkSession, config: Config) -> None:
    assert generate_tables(spark, config, **ARGUMENTS) == {"users": 300, "items": 120, "interactions": 3000}
    tables = WarehouseTables(spark, config)
    expected = {
        "interactions": synthetic.make_interactions(WORLD, np.arange(1, 301)),
        "items": synthetic.make_items(WORLD, np.arange(1, 121)),
        "users": synthetic.make_users(WORLD, np.arange(1, 301)),
    }
    for name, table in expected.items():
        keys = [c for c in ("user_id", "item_id", "event_ts") if c in table.column_names]
        order = [(key, "ascending") for key in keys]
        found = tables.read(name).toArrow().cast(table.schema)
        assert found.sort_by(order).equals(table.sort_by(order)), name
    assert tables.property("items", ITEMS_DECLARED) == "true"
    with pytest.raises(UsageError, match="interactions has rows already"):
        generate_tables(spark, config, **ARGUMENTS)


def test_a_run_that_died_before_the_interactions_is_run_again(spark: SparkSession, config: Config) -> None:
    tables = WarehouseTables(spark, config)
    generate_tables(spark, config, **ARGUMENTS)
    tables.delta("interactions").delete()
    generate_tables(spark, config, **ARGUMENTS)
    assert [tables.read(name).count() for name in ("users", "items", "interactions")] == [300, 120, 3000]


def test_somebodys_items_are_not_replaced(spark: SparkSession, config: Config) -> None:
    tables = WarehouseTables(spark, config)
    tables.ensure("items", synthetic.IDS)
    spark.sql(f"INSERT INTO {tables.identifier('items')} (item_id, is_available) VALUES (1, true)")
    with pytest.raises(UsageError, match="items has rows already"):
        generate_tables(spark, config, **ARGUMENTS)
    assert tables.read("items").select(F.count("*")).head()[0] == 1


def test_tasks_make_the_same_rows_from_any_batches() -> None:
    """Empty and uneven batches, as executors get them."""

    def batches(*sizes: int) -> Iterator[pa.RecordBatch]:
        edges = np.cumsum([0, *sizes])
        yield from (pa.record_batch({"id": np.arange(low, high)}) for low, high in pairwise(edges))

    whole = pa.Table.from_batches(make_rows(WORLD, synthetic.make_interactions, 10.0)(batches(300)))
    split = pa.Table.from_batches(make_rows(WORLD, synthetic.make_interactions, 50_000.0)(batches(7, 0, 200, 93)))
    assert split.equals(whole)
    assert list(make_rows(WORLD, synthetic.make_interactions, 10.0)(iter(()))) == []
