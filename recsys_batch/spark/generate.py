"""Synthetic tables of any size, written by Spark: a task makes the rows of its numbers, nothing is shuffled."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from recsys_batch.config import Config
from recsys_batch.dataset import synthetic
from recsys_batch.dataset.synthetic import IDS, World
from recsys_batch.errors import UsageError
from recsys_batch.schemas import TABLES, spark_ddl
from recsys_batch.spark.ingest.pipeline import ITEMS_DECLARED
from recsys_batch.spark.tables import WarehouseTables

GENERATED = "recsys_batch.generated"
"""Property of tables that hold synthetic rows only; they may be generated again."""

_ROWS_PER_BATCH = 100_000
_ROWS_PER_FILE = 2_000_000
_MAX_ROWS = 2**31 - 1

Make = Callable[[World, np.ndarray], pa.Table]


def generate_tables(spark: SparkSession, config: Config, n_users: int, n_items: int, n_events: int, seed: int) -> dict[str, int]:
    """Write users, items and interactions; the same arguments give the same rows on any cluster. A run that died is run again.

    Returns the rows written by table.

    Raises:
        UsageError: interactions has rows already, items or users have rows that were not generated, or the ids are not BIGINT.
    """
    if max(n_users, n_items) > _MAX_ROWS:
        raise UsageError(f"at most {_MAX_ROWS:,} users and items can be generated, not {max(n_users, n_items):,}")
    tables = WarehouseTables(spark, config)
    _check_only_generated(tables)
    world = World(n_users, n_items, n_events, seed)
    metadata = {"generate": [n_users, n_items, n_events, seed]}
    plan: tuple[tuple[str, Make, int, int], ...] = (
        ("users", synthetic.make_users, n_users, n_users),
        ("items", synthetic.make_items, n_items, n_items),
        # Last: with it the data is there.
        ("interactions", synthetic.make_interactions, n_users, n_events),
    )
    for name, make, n_keys, n_rows in plan:
        tables.ensure(name, IDS)
        if name != "interactions":
            tables.set_property(name, GENERATED, "true")
        tables.replace_slice(name, _make_dataframe(spark, name, world, make, n_keys, n_rows), "true", metadata)
    tables.set_property("items", ITEMS_DECLARED, "true")
    return {name: n_rows for name, _, _, n_rows in plan}


def make_rows(world: World, make: Make, rows_per_key: float) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Make a function for mapInArrow: ids from 0 -> the rows of each id, about ``_ROWS_PER_BATCH`` of them at a time."""
    step = max(int(_ROWS_PER_BATCH / max(rows_per_key, 1.0)), 1)

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            keys = batch.column(0).to_numpy() + 1
            for start in range(0, len(keys), step):
                yield from make(world, keys[start : start + step]).to_batches(max_chunksize=_ROWS_PER_BATCH)

    return run


def _make_dataframe(spark: SparkSession, name: str, world: World, make: Make, n_keys: int, n_rows: int) -> DataFrame:
    n_files = max(spark.sparkContext.defaultParallelism, 1) if n_rows > _ROWS_PER_BATCH else 1
    keys = spark.range(0, n_keys, 1, max(n_files, -(-n_rows // _ROWS_PER_FILE)))
    return keys.mapInArrow(make_rows(world, make, n_rows / n_keys), spark_ddl(TABLES[name].arrow_schema(IDS)))


def _check_only_generated(tables: WarehouseTables) -> None:
    advice = "generate writes into an empty warehouse, pass another one with --set paths.warehouse=FOLDER"
    for name in ("interactions", "items", "users"):
        if not tables.exists(name):
            continue
        existing = tables.read(name)
        if not existing.isEmpty() and (name == "interactions" or tables.property(name, GENERATED) != "true"):
            raise UsageError(f"table {name} has rows already ({tables.identifier(name)}): {advice}")
        if "string" in (kind for column, kind in existing.dtypes if column in ("user_id", "item_id")):
            raise UsageError(f"table {name} has STRING ids ({tables.identifier(name)}), generate makes BIGINT ones: use another warehouse")
