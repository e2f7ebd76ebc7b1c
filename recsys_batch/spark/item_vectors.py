"""The item side of the embed step, on the driver: catalogue rows from the reference model or from tables that somebody brought."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.bundle import Bundle
from recsys_batch.catalogue import Catalogue
from recsys_batch.errors import ConfigError, InputMissing
from recsys_batch.model.towers import Towers
from recsys_batch.ragged import column_matrix, matrix_column
from recsys_batch.schemas import TABLES, IdTypes


def catalogue(
    bundle: Bundle, root: Path, items: DataFrame, positives: DataFrame, eligibility: Mapping[str, str]
) -> tuple[Catalogue, np.ndarray]:
    """The night's catalogue, and int32 [n] users with a positive interaction per item.

    Items number in the millions at most, so one machine embeds them; users are what is distributed.

    Args:
        eligibility: segment -> boolean SQL over columns of items; null counts as false.

    Raises:
        InputMissing: the items table is empty.
        ConfigError: an expression of ``eligibility`` is not boolean SQL over items.
    """
    check_eligibility(items, eligibility)
    rules = [F.coalesce(F.expr(rule), F.lit(False)).alias(f"rule {number}") for number, rule in enumerate(eligibility.values())]
    counts = positives.groupBy("item_id").agg(F.count_distinct("user_id").cast("int").alias("n_events"))
    ruled = items.select("item_id", "categories", "attributes", "is_available", *rules)
    counted = ruled.join(counts, "item_id", "left")
    table = counted.toArrow().sort_by("item_id").combine_chunks()
    if table.num_rows == 0:
        raise InputMissing("the items table is empty: run `recsys-batch ingest` with a source that has items")
    item_ids = table["item_id"].combine_chunks()
    n_events = np.asarray(pc.fill_null(table["n_events"], 0).to_numpy(), dtype=np.int32)
    available = _bools(table["is_available"])
    eligible = {segment: _bools(table[f"rule {number}"]) for number, segment in enumerate(eligibility)}
    if bundle.kind == "embeddings":
        embeddings, known = _brought_items(bundle, root, item_ids)
        history, log_popularity = np.zeros((len(item_ids), 0), dtype=np.float32), np.log1p(n_events).astype(np.float32)
        return Catalogue(item_ids, embeddings, history, log_popularity, available & known, eligible), n_events
    vectors = Towers.from_bundle(bundle).encode_items(table)
    return Catalogue(item_ids, vectors.embeddings, vectors.history, vectors.log_popularity, available, eligible), n_events


def check_eligibility(items: DataFrame, eligibility: Mapping[str, str]) -> None:
    """Analyse the rules without running them.

    Raises:
        ConfigError: one is not boolean SQL over columns of items.
    """
    for segment, rule in eligibility.items():
        try:
            kind = items.select(F.expr(rule).alias("rule")).schema["rule"].dataType.simpleString()
        except (AnalysisException, ParseException) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"retrieval.eligibility.{segment} = {rule!r} cannot be evaluated over items: {reason}") from None
        if kind != "boolean":
            raise ConfigError(f"retrieval.eligibility.{segment} = {rule!r} gives {kind}, it must give a boolean")


def _bools(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(bool)


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
