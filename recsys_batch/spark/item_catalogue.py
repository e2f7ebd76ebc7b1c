"""The item side of the embed step, on the driver: the night's catalogue from the reference model or from imported embeddings."""

import datetime as dt
from dataclasses import replace

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from recsys_batch.config import Config
from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.errors import InputMissing
from recsys_batch.model.towers import Towers
from recsys_batch.registry.bundle import Bundle
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.item_rules import business_rules, eligibility_masks, make_rule_columns
from recsys_batch.storage.filesystems import join, read_parquet
from recsys_batch.tables.list_columns import column_matrix, flat_positions, matrix_column


def read_item_table(items: DataFrame, config: Config, run_date: dt.date) -> pa.Table:
    """Read the items with what the rules say of each, in order of item_id.

    Items number in the millions at most, so one machine embeds them; users are what is distributed.

    Raises:
        InputMissing: the items table is empty.
        ConfigError: a condition of ``retrieval.eligibility`` or ``rules`` is not boolean SQL over items.
    """
    rules = make_rule_columns(items, config, run_date)
    table = items.select("item_id", "categories", "attributes", "is_available", *rules).toArrow().sort_by("item_id").combine_chunks()
    if table.num_rows == 0:
        raise InputMissing("the items table is empty: run `recsys-batch ingest` with a source that has items")
    return table


def build_catalogue(bundle: Bundle, root: str, items: pa.Table, config: Config) -> Catalogue:
    """Build the night's catalogue of ``read_item_table``'s rows; where embeddings were imported, ``add_popularity`` completes it."""
    item_ids = items["item_id"].combine_chunks()
    available = np.asarray(items["is_available"].to_numpy(zero_copy_only=False)).astype(bool)
    eligible, business = eligibility_masks(items, config), business_rules(items, config)
    if bundle.kind == "embeddings":
        embeddings, is_imported = _imported_items(bundle, root, item_ids)
        no_history, no_popularity = np.zeros((len(item_ids), 0), dtype=np.float32), np.zeros(len(item_ids), dtype=np.float32)
        return Catalogue(item_ids, embeddings, no_history, no_popularity, available & is_imported, eligible, business)
    vectors = Towers.from_bundle(bundle).encode_items(items)
    return Catalogue(item_ids, vectors.embeddings, vectors.history, vectors.log_popularity, available, eligible, business)


def add_popularity(catalogue: Catalogue, bundle: Bundle, n_events: np.ndarray) -> Catalogue:
    """Add tonight's popularity to the catalogue of an imported model; the reference model's is frozen in it.

    ``n_events``: int32 [n], users with a positive interaction per item.
    """
    return replace(catalogue, log_popularity=np.log1p(n_events).astype(np.float32)) if bundle.kind == "embeddings" else catalogue


def item_embedding_rows(catalogue: Catalogue, n_events: np.ndarray, run_id: str, ids: IdTypes) -> pa.Table:
    """Make the rows of item_embeddings."""
    n = len(catalogue)
    columns = [pa.array([run_id] * n), catalogue.item_ids, matrix_column(catalogue.embeddings), pa.array(n_events)]
    return pa.Table.from_arrays(columns, schema=TABLES["item_embeddings"].arrow_schema(ids))


def read_imported_users(spark: SparkSession, bundle: Bundle, root: str) -> DataFrame:
    """Read the user embeddings of an imported model as they were registered: user_id, embedding."""
    return spark.read.parquet(join(root, "embeddings", str(bundle.manifest["tables"]["user_embeddings"]))).select("user_id", "embedding")


def _imported_items(bundle: Bundle, root: str, item_ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Read imported item embeddings: float32 [n, d] (zeros where there is none), and bool [n] where there is one."""
    table = read_parquet(join(root, "embeddings", str(bundle.manifest["tables"]["item_embeddings"]))).combine_chunks()
    rows = flat_positions(item_ids, table["item_id"].combine_chunks())
    is_imported = rows >= 0
    embeddings = np.zeros((len(item_ids), bundle.embedding_dim), dtype=np.float32)
    embeddings[is_imported] = column_matrix(table["embedding"].combine_chunks())[rows[is_imported]]
    return embeddings, is_imported
