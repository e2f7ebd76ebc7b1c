"""The steps of a night in order. Each reads what earlier ones committed, writes its own slice, and can be done again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.artifacts import put_folder
from recsys_batch.catalogue import Catalogue, open_catalogue, write_catalogue
from recsys_batch.config import Config, Scoring
from recsys_batch.errors import ConfigError
from recsys_batch.night.context import Night, Written
from recsys_batch.night.index import PARALLEL_ITEMS, SampledUsers, build, tuning_figure
from recsys_batch.night.partitions import user_tasks, users_per_task
from recsys_batch.ragged import column_matrix
from recsys_batch.schemas import ALL_SEGMENTS
from recsys_batch.slices import parts_of
from recsys_batch.spark import histories, item_vectors
from recsys_batch.spark.assign import assign_in_tasks
from recsys_batch.spark.embed import user_encoder
from recsys_batch.spark.retrieve import RetrieveTask, candidate_finder
from recsys_batch.spark.score import ScoreTask, part_scorer


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
    written = {"item_embeddings": night.write_table("item_embeddings", items), "user_embeddings": _user_embeddings(night, positives)}
    versions = {name: one.version for name, one in written.items()}
    users = written["user_embeddings"].rows
    return StepResult(versions, rows=users + items.num_rows, users=users, metrics={"n_items": float(len(catalogue))})


def _user_embeddings(night: Night, positives: DataFrame) -> Written:
    if night.bundle.kind == "embeddings":
        rows = item_vectors.brought_users(night.spark, night.bundle, night.root, positives, night.run.run_id)
        n_users = int(night.bundle.manifest["n_users"]) if "n_users" in night.bundle.manifest else rows.count()
        return night.write_slice("user_embeddings", by_user(rows, n_tasks(night, n_users)))
    rows = _with_segments(histories.histories(positives, int(night.bundle.manifest["model"]["history_length"])), night, "left")
    n_users = cast("Any", positives.agg(F.approx_count_distinct("user_id")).head())[0]
    encode = user_encoder(str(night.bundle_dir), str(night.catalogue_dir), night.ids, night.run.run_id)
    return night.write_slice("user_embeddings", by_user(rows, n_tasks(night, n_users)), encode)


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
    popular = _popular(night).toArrow()
    written = {"popular": night.write_table("popular", popular)}
    written["candidates"] = night.write_slice("candidates", _known_users(night), candidate_finder(_retrieve_task(night, catalogue)))
    written["shortfalls"] = night.write_slice("shortfalls", _shortfalls(night))
    users, versions = written["candidates"].rows, {name: one.version for name, one in written.items()}
    return StepResult(versions, rows=users, users=users, metrics={"n_shortfalls": float(written["shortfalls"].rows)})


def _n_wanted(config: Config) -> int:
    """Candidates that leave nothing to explain; where all items are scored, as many as the top K needs."""
    return config.scoring.top_k if config.scoring.candidates == "all" else config.retrieval.n_candidates


def _shortfalls(night: Night) -> DataFrame:
    """Who got fewer candidates than wanted, and why."""
    retrieval = night.config.retrieval
    short = night.slice_of("candidates").where(F.size("items") < _n_wanted(night.config))
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
    candidates, embeddings = night.slice("candidates"), night.slice("user_embeddings")
    parts = parts_of(candidates, run.table_versions["candidates"])
    known = parts_of(embeddings, run.table_versions["user_embeddings"])
    numbers = night.spark.range(0, len(parts), 1, max(len(parts), 1))
    written = night.write_slice("topk", numbers, part_scorer(task, candidates, parts, embeddings, known))
    return StepResult({"topk": written.version}, rows=written.rows, users=sum(part.n_rows for part in parts))


STEPS: dict[str, Callable[[Night], StepResult]] = {"embed": embed, "index": index, "candidates": candidates, "score": score}
OUTPUTS = {"embed": "user_embeddings", "index": "index", "candidates": "shortfalls", "score": "topk"}
"""A step is done when the manifest has a version of the last thing that it writes."""


def by_user(rows: DataFrame, n_tasks: int) -> DataFrame:
    """In ranges of user_id, sorted: each file of the slice then holds users that no other file has, and its statistics say which.

    The last thing before rows are used, as a join would choose tasks of its own.
    """
    return rows.repartitionByRange(n_tasks, "user_id").sortWithinPartitions("user_id")


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
    n = n_tasks(night, int(night.run.metrics["embed.users"]))
    users = embeddings.join(histories.seen_items(night.read_input("interactions")), "user_id", "full_outer")
    users = _with_segments(users, night, "full_outer").select("user_id", "embedding", "seen", "segment")
    return by_user(users, n)


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
