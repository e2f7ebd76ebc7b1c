"""Import of embedding tables: checked, and copied beside the warehouse's tables as an immutable artefact of a bundle."""

from pathlib import Path
from typing import Any, cast

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType

from recsys_batch.config import Config
from recsys_batch.errors import BundleError
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.ranking.onnx_ranker import OnnxRanker
from recsys_batch.registry.bundle import Bundle, write_bundle
from recsys_batch.schemas import IdTypes
from recsys_batch.spark.erased_keys import drop_erased_users
from recsys_batch.spark.tables import WarehouseTables, parse_identifier
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.storage.filesystems import exists, join, remove
from recsys_batch.tables.tombstones import read_tombstones


def bundle_from_tables(spark: SparkSession, config: Config, users: str, items: str, ranker: str | None, directory: Path) -> Bundle:
    """Write a bundle of kind "embeddings" to ``directory``, from tables of user and item embeddings and an ONNX ranker.

    Raises:
        BundleError: a missing column, other id types than the warehouse's, null, unequal or non-finite vectors, an id twice,
            user and item vectors of different lengths, or a ranker that is not one.
    """
    ids = WarehouseTables(spark, config).require_ids()
    root = artifact_root(config.paths.warehouse)
    dims: dict[str, int] = {}
    names: dict[str, str] = {}
    for table, key, source in (("user_embeddings", "user_id", users), ("item_embeddings", "item_id", items)):
        vectors = _read_vectors(parse_identifier(spark, source), source, key, ids)
        if key == "user_id":
            vectors = drop_erased_users(vectors, read_tombstones(config.paths.warehouse))
        dims[table], names[table] = _check_vectors(vectors, source, key)
        target = join(root, "embeddings", names[table])
        if not exists(join(target, "_SUCCESS")):
            remove(target)
            vectors.write.mode("overwrite").parquet(target)
    if dims["user_embeddings"] != dims["item_embeddings"]:
        raise BundleError(
            f"{users} has vectors of length {dims['user_embeddings']}, {items} of {dims['item_embeddings']}: "
            "their inner product is the retrieval score, so both need the same length"
        )
    if ranker is not None:
        OnnxRanker(ranker)
    manifest = {
        "kind": "embeddings",
        "embedding_dim": dims["user_embeddings"],
        "tables": names,
        "features": FeatureSpec.default().to_dict(),
        "metrics": {},
    }
    return write_bundle(directory, manifest, ranker_onnx=Path(ranker).read_bytes() if ranker else None)


def _read_vectors(df: DataFrame, source: str, key: str, ids: IdTypes) -> DataFrame:
    missing = [name for name in (key, "embedding") if name not in df.columns]
    if missing:
        raise BundleError(f"{source} lacks {', '.join(missing)}; it has {', '.join(df.columns)}")
    if not isinstance(df.schema["embedding"].dataType, ArrayType):
        raise BundleError(f"{source}: embedding is {df.schema['embedding'].dataType.simpleString()}, an array of float is expected")
    expected = ids.user if key == "user_id" else ids.item
    actual = "STRING" if isinstance(df.schema[key].dataType, StringType) else "BIGINT"
    if actual != expected:
        raise BundleError(f"{source}: {key} is {df.schema[key].dataType.simpleString()}, the warehouse's {key} is {expected}")
    return df.select(F.col(key).cast(expected).alias(key), F.col("embedding").cast("array<float>").alias("embedding"))


def _check_vectors(vectors: DataFrame, source: str, key: str) -> tuple[int, str]:
    """Check a table of embeddings in one pass; returns the vectors' length and a name made of the content."""
    is_broken = F.exists("embedding", lambda x: x.isNull() | F.isnan(x) | (F.abs(x) == float("inf")))
    stats = cast(
        "Any",
        vectors.agg(
            F.count(F.lit(1)).alias("n"),
            F.count_distinct(key).alias("n_ids"),
            F.count_if(F.col(key).isNull() | F.col("embedding").isNull()).alias("nulls"),
            F.min(F.size("embedding")).alias("shortest"),
            F.max(F.size("embedding")).alias("longest"),
            F.count_if(is_broken).alias("broken"),
            F.sum(F.xxhash64(key, "embedding").cast("decimal(20,0)")).alias("content"),
        ).head(),
    )
    problems = {
        "it has no rows": stats.n == 0,
        f"{stats.nulls} rows have a null {key} or embedding": stats.nulls > 0,
        f"its vectors have lengths {stats.shortest} to {stats.longest}": stats.shortest != stats.longest,
        f"{stats.broken} vectors have a value that is null, NaN or infinite": stats.broken > 0,
        f"{stats.n - stats.n_ids} rows repeat a {key}": stats.n_ids < stats.n,
    }
    errors = [problem for problem, holds in problems.items() if holds]
    if errors:
        raise BundleError(f"{source} cannot be registered: {'; '.join(errors)}")
    return int(stats.longest), f"{key}-{stats.n}-{int(stats.content) & (2**64 - 1):016x}"
