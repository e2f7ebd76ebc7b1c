"""The steps of a night in order. Each reads what earlier ones committed, writes its own slice, and can be done again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.artifacts import put_folder
from recsys_batch.catalogue import Catalogue, open_catalogue, write_catalogue
from recsys_batch.night.context import Night
from recsys_batch.night.index import build
from recsys_batch.schemas import TABLES, spark_ddl
from recsys_batch.spark import histories, item_vectors
from recsys_batch.spark.embed import user_encoder
from recsys_batch.spark.retrieve import RetrieveTask, candidate_finder
from recsys_batch.spark.score import ScoreTask, scorer

USERS_PER_PARTITION = 20_000
"""One task's users: enough that starting a task does not show, few enough that a lost one costs seconds."""


@dataclass(frozen=True)
class StepResult:
    """What a step did: Delta versions by table, rows written, users handled, further numbers for the manifest."""

    versions: dict[str, int]
    rows: int
    users: int
    metrics: dict[str, float] = field(default_factory=dict)


def embed(night: Night) -> StepResult:
    """Item and user embeddings, and the catalogue that later steps share."""
    positives = histories.positive(night.read_input("interactions"), night.config.data.min_weight)
    catalogue, n_events = item_vectors.catalogue(night.bundle, night.root, night.read_input("items"), positives)
    folder = put_folder(night.root, "catalogues", lambda target: write_catalogue(target, catalogue))
    night.point("catalogue", {"folder": folder.name})
    items = item_vectors.rows(catalogue, n_events, night.run.run_id, night.ids)
    versions = {"item_embeddings": night.write_slice("item_embeddings", night.spark.createDataFrame(items))}
    versions["user_embeddings"] = night.write_slice("user_embeddings", _user_embeddings(night, positives))
    users = night.tables.rows_written("user_embeddings", versions["user_embeddings"])
    return StepResult(versions, rows=users + items.num_rows, users=users, metrics={"n_items": float(len(catalogue))})


def _user_embeddings(night: Night, positives: DataFrame) -> DataFrame:
    if night.bundle.kind == "embeddings":
        return item_vectors.brought_users(night.spark, night.bundle, night.root, positives, night.run.run_id)
    rows = histories.histories(positives, int(night.bundle.manifest["model"]["history_length"]))
    rows = _with_segments(rows.repartition(partitions(night, rows), "user_id"), night, "left")
    encode = user_encoder(str(night.bundle_dir), str(night.catalogue_dir), night.ids, night.run.run_id)
    return rows.mapInArrow(encode, spark_ddl(TABLES["user_embeddings"].arrow_schema(night.ids)))


def index(night: Night) -> StepResult:
    """The search index over retrievable items, tuned on sampled users; a file, named in the run's pointers."""
    catalogue = open_catalogue(str(night.catalogue_dir))
    sample = night.slice_of("user_embeddings").orderBy(F.xxhash64("user_id"), "user_id").limit(night.config.retrieval.tuning_users)
    queries = np.asarray([row.embedding for row in sample.select("embedding").collect()], dtype=np.float32)
    vectors = np.asarray(catalogue.embeddings)[catalogue.retrievable_codes()]
    built = build(night.root / "indexes", vectors, queries, night.config.retrieval)
    night.point("index", built.to_dict())
    version = night.run.table_versions["item_embeddings"]
    return StepResult({"index": version}, rows=built.info.n_items, users=len(queries), metrics={"knn_recall": built.tuning.knn_recall_at_k})


def candidates(night: Night) -> StepResult:
    """Popular lists, then every known user's candidates, then who came short."""
    catalogue = open_catalogue(str(night.catalogue_dir))
    popular_version = night.write_slice("popular", _popular(night))
    task = _retrieve_task(night, catalogue)
    rows = _known_users(night).mapInArrow(candidate_finder(task), spark_ddl(TABLES["candidates"].arrow_schema(night.ids)))
    version = night.write_slice("candidates", rows)
    n_wanted = night.config.retrieval.n_candidates
    short = night.slice_of("candidates").where(F.size("items") < n_wanted)
    short = short.select("run_id", "user_id", F.size("items").cast("int").alias("n_items"), F.lit("catalogue_exhausted").alias("reason"))
    shortfall_version = night.write_slice("shortfalls", short)
    users = night.tables.rows_written("candidates", version)
    shortfalls = night.slice_of("shortfalls").count()
    versions = {"popular": popular_version, "candidates": version, "shortfalls": shortfall_version}
    return StepResult(versions, rows=users, users=users, metrics={"n_shortfalls": float(shortfalls)})


def score(night: Night) -> StepResult:
    """The ranker's top K of each user's candidates."""
    run, config = night.run, night.config
    task = ScoreTask(
        run_id=run.run_id,
        run_date=run.run_date,
        generated_at=run.started_at,
        model_version=run.model_version,
        ids=night.ids,
        bundle_dir=str(night.bundle_dir),
        catalogue_dir=str(night.catalogue_dir),
        top_k=config.scoring.top_k,
        batch_users=config.scoring.batch_users,
    )
    users = night.slice_of("candidates").drop("run_id").join(night.slice_of("user_embeddings").drop("run_id"), "user_id", "left")
    users = users.select("user_id", "items", "embedding", "n_events")
    n_users = night.tables.rows_written("candidates", run.table_versions["candidates"])
    # By ranges of user_id, so that one user's rows stand in one file and file statistics find it.
    ranged = users.repartitionByRange(partitions(night, n_users), "user_id").sortWithinPartitions("user_id")
    rows = ranged.mapInArrow(scorer(task), spark_ddl(TABLES["topk"].arrow_schema(night.ids)))
    version = night.write_slice("topk", rows.sortWithinPartitions("run_date", "run_id", "user_id", "rank"))
    return StepResult({"topk": version}, rows=night.tables.rows_written("topk", version), users=n_users)


STEPS: dict[str, Callable[[Night], StepResult]] = {"embed": embed, "index": index, "candidates": candidates, "score": score}
OUTPUTS = {"embed": "user_embeddings", "index": "index", "candidates": "shortfalls", "score": "topk"}
"""A step is done when the manifest has a version of the last thing that it writes."""


def partitions(night: Night, users: DataFrame | int) -> int:
    """Tasks for a pass over users: at least one per core, at most USERS_PER_PARTITION each."""
    n_users = users if isinstance(users, int) else users.count()
    return max(night.spark.sparkContext.defaultParallelism, math.ceil(n_users / USERS_PER_PARTITION))


def _popular(night: Night) -> DataFrame:
    available = night.read_input("items").where("is_available")
    positives = histories.positive(night.read_input("interactions"), night.config.data.min_weight)
    lists = histories.popularity(positives, night.users_table(), available, night.config.tables.popular_items)
    return lists.select(F.lit(night.run.run_id).alias("run_id"), "segment", "rank", "item_id", "score")


def _known_users(night: Night) -> DataFrame:
    """user_id, embedding, seen, segment: everybody with an embedding, an interaction or a row in users."""
    embeddings = night.slice_of("user_embeddings").select("user_id", "embedding")
    n = partitions(night, night.tables.rows_written("user_embeddings", night.run.table_versions["user_embeddings"]))
    seen = histories.seen_items(night.read_input("interactions"))
    users = embeddings.repartition(n, "user_id").join(seen, "user_id", "full_outer")
    return _with_segments(users, night, "full_outer").select("user_id", "embedding", "seen", "segment")


def _with_segments(users: DataFrame, night: Night, how: str) -> DataFrame:
    table = night.users_table()
    if table is None:
        nothing = F.lit(None)
        return users.withColumn("segment", nothing.cast("string")).withColumn("attributes", nothing.cast("map<string,string>"))
    return users.join(table, "user_id", how)


def _retrieve_task(night: Night, catalogue: Catalogue) -> RetrieveTask:
    pointer = night.pointed("index")
    popular: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    table = night.slice_of("popular").select("segment", "rank", "item_id", "score").orderBy("segment", "rank").toArrow()
    codes = catalogue.codes(table["item_id"].combine_chunks())
    segments = np.asarray(table["segment"].to_pylist(), dtype=object)
    scores = table["score"].to_numpy()
    for segment in dict.fromkeys(segments):
        mine = (segments == segment) & catalogue.retrievable[codes]
        popular[str(segment)] = (codes[mine], scores[mine])
    return RetrieveTask(
        run_id=night.run.run_id,
        ids=night.ids,
        catalogue_dir=str(night.catalogue_dir),
        index_dir=str(night.root / "indexes"),
        index=pointer["index"],
        nprobe=pointer["tuning"]["nprobe"],
        n_candidates=night.config.retrieval.n_candidates,
        popular=popular,
    )
