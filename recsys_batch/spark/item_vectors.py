"""The item side of the embed step, on the driver: catalogue rows from the reference model or from tables that somebody brought."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.bundle import Bundle
from recsys_batch.catalogue import Catalogue
from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.model.towers import Towers
from recsys_batch.ragged import column_matrix, matrix_column
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.item_rules import business_of, eligible_of, rule_columns


def catalogue(
    bundle: Bundle, root: Path, items: DataFrame, positives: DataFrame, config: Config, run_date: dt.date
) -> tuple[Catalogue, np.ndarray]:
    """The night's catalogue, and int32 [n] users with a positive interaction per item.

    Items number in the millions at most, so one machine embeds them; users are what is distributed.

    Raises:
        InputMissing: the items table is empty.
        ConfigError: a condition of ``retrieval.eligibility`` or ``rules`` is not boolean SQL over items.
    """
    rules = rule_columns(items, config, run_date)
    counts = positives.groupBy("item_id").agg(F.count_distinct("user_id").cast("int").alias("n_events"))
    ruled = items.select("item_id", "categories", "attributes", "is_available", *rules)
    counted = ruled.join(counts, "item_id", "left")
    table = counted.toArrow().sort_by("item_id").combine_chunks()
    if table.num_rows == 0:
        raise InputMissing("the items table is empty: run `recsys-batch ingest` with a source that has items")
    item_ids = table["item_id"].combine_chunks()
    n_events = np.asarray(pc.fill_null(table["n_events"], 0).to_numpy(), dtype=np.int32)
    available = np.asarray(table["is_available"].to_numpy(zero_copy_only=False)).astype(bool)
    eligible, business = eligible_of(table, config), business_of(table, config)
    if bundle.kind == "embeddings":
        embeddings, known = _brought_items(bundle, root, item_ids)
        history, log_popularity = np.zeros((len(item_ids), 0), dtype=np.float32), np.log1p(n_events).astype(np.float32)
        return Catalogue(item_ids, embeddings, history, log_popularity, available & known, eligible, business), n_events
    vectors = Towers.from_bundle(bundle).encode_items(table)
    return Catalogue(item_ids, vectors.embeddings, vectors.history, vectors.log_popularity, available, eligible, business), n_events


def rows(night_catalogue: Catalogue, n_events: np.ndarray, run_id: str, ids: IdTypes) -> pa.Table:
    """Rows of item_embeddings."""
    n = len(night_catalogue)
    columns = [pa.array([run_id] * n), night_catalogue.item_ids, matrix_column(night_catalogue.embeddings), pa.array(n_events)]
    return pa.Table.from_arrays(columns, schema=TABLES["item_embeddings"].arrow_schema(ids))


def brought_users(spark: SparkSession, bundle: Bundle, root: Path, positives: DataFrame, run_id: str) -> DataFrame:
    """Rows of user_embeddings from the table that was registered."""
    vectors = spark.read.parquet(str(root / "embeddings" / str(bundle.manifest["tables"]["user_embeddings"])))
    counts = positives.groupBy("user_id").agg(F.count_distinct("item_id").cast("int").alias("n_events"))
    joined = vectors.join(counts, "user_id", "left")
    return joined.select(
        F.lit(run_id).alias("run_id"), "user_id", "embedding", F.coalesce("n_events", F.lit(0)).cast("int").alias("n_events")
    )


def _brought_items(bundle: Bundle, root: Path, item_ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [n, d] (zeros where none was brought) and bool [n] where there is one."""
    import pyarrow.parquet as pq

    folder = root / "embeddings" / str(bundle.manifest["tables"]["item_embeddings"])
    table = pq.read_table(folder).combine_chunks()
    place = np.asarray(pc.fill_null(pc.index_in(item_ids, value_set=table["item_id"].combine_chunks()), -1).to_numpy(zero_copy_only=False))
    known = place >= 0
    embeddings = np.zeros((len(item_ids), bundle.embedding_dim), dtype=np.float32)
    embeddings[known] = column_matrix(table["embedding"].combine_chunks())[place[known]]
    return embeddings, known
