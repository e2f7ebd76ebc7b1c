"""The steps of a night in order. Each reads what earlier ones committed, writes its own slice, and can be done again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from recsys_batch.artifacts import put_folder
from recsys_batch.catalogue import Catalogue, open_catalogue, write_catalogue
from recsys_batch.config import Config, Scoring
from recsys_batch.errors import ConfigError
from recsys_batch.night.context import Night
from recsys_batch.night.index import PARALLEL_ITEMS, SampledUsers, build, tuning_figure
from recsys_batch.night.partitions import user_tasks, users_per_task
from recsys_batch.ragged import column_matrix
from recsys_batch.schemas import ALL_SEGMENTS, TABLES, spark_ddl
from recsys_batch.spark import histories, item_vectors
from recsys_batch.spark.assign import assign_in_tasks
from recsys_batch.spark.embed import user_encoder
from recsys_batch.spark.retrieve import RetrieveTask, candidate_finder
from recsys_batch.spark.score import ScoreTask, scorer


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
    catalogue, n_events = item_vectors.catalogue(
        night.bundle, night.root, night.read_input("items"), positives, night.config.retrieval.eligibility
    )
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
    n_users = cast("Any", positives.agg(F.approx_count_distinct("user_id")).head())[0]
    rows = _with_segments(rows.repartition(n_tasks(night, n_users), "user_id"), night, "left")
    encode = user_encoder(str(night.bundle_dir), str(night.catalogue_dir), night.ids, night.run.run_id)
    return rows.mapInArrow(encode, spark_ddl(TABLES["user_embeddings"].arrow_schema(night.ids)))


def index(night: Night) -> StepResult:
    """The search index over retrievable items, tuned on sampled users; a file, named in the run's pointers."""
    catalogue = open_catalogue(str(night.catalogue_dir))
    check_all_candidates(night.config.scoring, len(catalogue.retrievable_codes()))
    sample = night.slice_of("user_embeddings").orderBy(F.xxhash64("user_id"), "user_id").limit(night.config.retrieval.tuning_users)
    table = _with_segments(sample, night, "left").orderBy(F.xxhash64("user_id"), "user_id").select("embedding", "segment").toArrow()
    sampled = SampledUsers(column_matrix(table["embedding"].combine_chunks()), catalogue.rules(table["segment"].combine_chunks()))
    assign_rows = assign_in_tasks(night.spark, night.root / "drafts") if len(catalogue) >= PARALLEL_ITEMS else None
    settings = night.config.retrieval
    if night.config.scoring.candidates == "all":
        settings = settings.model_copy(update={"mode": "exact"})
    built = build(night.root / "indexes", catalogue, sampled, settings, assign_rows)
    night.point("index", built.to_dict())
    if night.run.mlflow_run_id and built.tuning.curve:
        night.registry.log_figure(night.run.mlflow_run_id, tuning_figure(built.tuning), "retrieval_tuning.png")
    version = night.run.table_versions["item_embeddings"]
    return StepResult({"index": version}, rows=built.info.n_items, users=len(sampled.queries), metrics=built.metrics())


def candidates(night: Night) -> StepResult:
    """Popular lists, then every known user's candidates, then who came short."""
    catalogue = open_catalogue(str(night.catalogue_dir))
    popular_version = night.write_slice("popular", _popular(night))
    task = _retrieve_task(night, catalogue)
    rows = _known_users(night).mapInArrow(candidate_finder(task), spark_ddl(TABLES["candidates"].arrow_schema(night.ids)))
    short = Observation()
    rows = rows.observe(short, F.count_if(F.size("items") < _n_wanted(night.config)).alias("n"))
    version = night.write_slice("candidates", rows)
    # Counted while they were written: reading all of them again takes as long as a fifth of the search.
    shortfall_version = night.write_slice("shortfalls", _shortfalls(night, any_short=short.get["n"] > 0))
    users = night.tables.rows_written("candidates", version)
    shortfalls = night.slice_of("shortfalls").count()
    versions = {"popular": popular_version, "candidates": version, "shortfalls": shortfall_version}
    return StepResult(versions, rows=users, users=users, metrics={"n_shortfalls": float(shortfalls)})


def _n_wanted(config: Config) -> int:
    """Candidates that leave nothing to explain; where all items are scored, as many as the top K needs."""
    return config.scoring.top_k if config.scoring.candidates == "all" else config.retrieval.n_candidates


def _shortfalls(night: Night, any_short: bool) -> DataFrame:
    """Who got fewer candidates than wanted, and why."""
    retrieval = night.config.retrieval
    short = night.slice_of("candidates").where(F.size("items") < _n_wanted(night.config) if any_short else F.lit(False))
    short = short.select("run_id", "user_id", F.size("items").cast("int").alias("n_items"))
    short = _with_segments(short, night, "left")
    named = [segment for segment in retrieval.eligibility if segment != ALL_SEGMENTS]
    ruled = F.lit(True) if ALL_SEGMENTS in retrieval.eligibility else F.coalesce(F.col("segment").isin(named), F.lit(False))
    reason = F.when(ruled, "eligible_exhausted").otherwise("catalogue_exhausted")
    return short.select("run_id", "user_id", "n_items", reason.alias("reason"))


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
    ranged = users.repartitionByRange(n_tasks(night, n_users), "user_id").sortWithinPartitions("user_id")
    rows = ranged.mapInArrow(scorer(task), spark_ddl(TABLES["topk"].arrow_schema(night.ids)))
    version = night.write_slice("topk", rows.sortWithinPartitions("run_date", "run_id", "user_id", "rank"))
    return StepResult({"topk": version}, rows=night.tables.rows_written("topk", version), users=n_users)


STEPS: dict[str, Callable[[Night], StepResult]] = {"embed": embed, "index": index, "candidates": candidates, "score": score}
OUTPUTS = {"embed": "user_embeddings", "index": "index", "candidates": "shortfalls", "score": "topk"}
"""A step is done when the manifest has a version of the last thing that it writes."""


def n_tasks(night: Night, n_users: int) -> int:
    """Tasks for a pass over so many users."""
    per_task = users_per_task(night.config.retrieval.n_candidates, night.bundle.embedding_dim)
    return user_tasks(n_users, per_task, night.spark.sparkContext.defaultParallelism)


def check_all_candidates(scoring: Scoring, n_items: int) -> None:
    """Raises:
    ConfigError: ``scoring.candidates = all`` with more items than it is meant for.
    """
    if scoring.candidates == "all" and n_items > scoring.all_max_items:
        raise ConfigError(
            f"scoring.candidates = all would rank {n_items} items for every user, more than scoring.all_max_items = "
            f"{scoring.all_max_items}: set scoring.candidates = retrieved, or raise the limit"
        )


def _popular(night: Night) -> DataFrame:
    available = night.read_input("items").where("is_available")
    positives = histories.positive(night.read_input("interactions"), night.config.data.min_weight)
    lists = histories.popularity(positives, night.users_table(), available, night.config.tables.popular_items)
    return lists.select(F.lit(night.run.run_id).alias("run_id"), "segment", "rank", "item_id", "score")


def _known_users(night: Night) -> DataFrame:
    """user_id, embedding, seen, segment: everybody with an embedding, an interaction or a row in users."""
    embeddings = night.slice_of("user_embeddings").select("user_id", "embedding")
    n = n_tasks(night, night.tables.rows_written("user_embeddings", night.run.table_versions["user_embeddings"]))
    users = embeddings.join(histories.seen_items(night.read_input("interactions")), "user_id", "full_outer")
    users = _with_segments(users, night, "full_outer").select("user_id", "embedding", "seen", "segment")
    return users.repartition(n, "user_id")  # last: a join would choose its own number of tasks


def _with_segments(users: DataFrame, night: Night, how: str) -> DataFrame:
    table = night.users_table()
    if table is None:
        nothing = F.lit(None)
        return users.withColumn("segment", nothing.cast("string")).withColumn("attributes", nothing.cast("map<string,string>"))
    return users.join(table, "user_id", how)


def _retrieve_task(night: Night, catalogue: Catalogue) -> RetrieveTask:
    pointer = night.pointed("index")
    everything = night.config.scoring.candidates == "all"
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
        overfetch=pointer["tuning"]["overfetch"],
        n_candidates=len(catalogue.retrievable_codes()) if everything else night.config.retrieval.n_candidates,
        popular=popular,
    )
