"""The steps of a night in order. Each reads what earlier ones committed, writes its own slice, and can be done again."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.artifacts import pointed, put_folder
from recsys_batch.catalogue import Catalogue, open_catalogue, write_catalogue
from recsys_batch.config import Scoring
from recsys_batch.errors import ConfigError
from recsys_batch.night.candidates import candidates
from recsys_batch.night.context import Night, Written
from recsys_batch.night.incremental import Base, NeedsFull, changed_file, find_base, recorded_base
from recsys_batch.night.index import INDEX_METRICS, PARALLEL_ITEMS, SampledUsers, build, tuning_figure
from recsys_batch.night.passes import (
    StepResult,
    approximate_users,
    by_user,
    counted_metrics,
    merged,
    n_tasks,
    numbers,
    of_changed,
    with_segments,
)
from recsys_batch.ragged import column_matrix
from recsys_batch.slices import parts_of
from recsys_batch.spark import histories, item_vectors
from recsys_batch.spark.assign import assign_in_tasks
from recsys_batch.spark.batches import BatchFunction
from recsys_batch.spark.carry import Files, carried_scorer, ranges
from recsys_batch.spark.embed import user_encoder
from recsys_batch.spark.parts import unchanged
from recsys_batch.spark.score import SHORT_BY_RULES, ScoreTask, part_scorer

logger = logging.getLogger("recsys_batch.night")


def embed(night: Night) -> StepResult:
    """Item and user embeddings, and the catalogue that later steps share."""
    positives = histories.positive(night.read_input("interactions"), night.config.data.min_weight)
    catalogue, n_events = item_vectors.catalogue(
        night.bundle, night.root, night.read_input("items"), positives, night.config, night.run.run_date
    )
    folder = put_folder(night.root, "catalogues", lambda target: write_catalogue(target, catalogue))
    night.point("catalogue", {"folder": folder.name})
    items = item_vectors.rows(catalogue, n_events, night.run.run_id, night.ids)
    base = _decide(night, catalogue)
    written = {"item_embeddings": night.write_table("item_embeddings", items), "user_embeddings": _user_embeddings(night, positives, base)}
    versions = {name: one.version for name, one in written.items()}
    users = written["user_embeddings"].rows
    metrics = {"n_items": float(len(catalogue)), "incremental": float(base is not None)}
    metrics |= counted_metrics(night, "embed", written["user_embeddings"])
    if base is not None:
        metrics |= {"incremental.users_changed": float(len(base.changed)), "incremental.items_gained": float(len(base.gained))}
    return StepResult(versions, rows=users + items.num_rows, users=users, metrics=metrics)


def _decide(night: Night, catalogue: Catalogue) -> Base | None:
    """The night to go on from, where an incremental one was asked for and can be."""
    night.unpoint("base")
    if not night.incremental:
        return None
    try:
        base = find_base(night, catalogue)
    except NeedsFull as reason:
        logger.info("run_id=%s is a full night: %s", night.run.run_id, reason)
        return None
    changes = f"{len(base.changed)} users changed, {len(base.gained)} items are new"
    logger.info("run_id=%s goes on from run %s: %s", night.run.run_id, base.run.run_id, changes)
    return base


def _user_embeddings(night: Night, positives: DataFrame, base: Base | None) -> Written:
    if base is not None:
        positives = of_changed(night, positives)
    encode: BatchFunction = unchanged
    if night.bundle.kind == "embeddings":
        owners = rows = item_vectors.brought_users(night.spark, night.bundle, night.root, positives, night.run.run_id)
    else:
        owners = positives  # counted before anything is grouped
        rows = with_segments(histories.histories(positives, int(night.bundle.manifest["model"]["history_length"])), night, "left")
        encode = user_encoder(str(night.bundle_dir), str(night.catalogue_dir), night.ids, night.run.run_id)
    if base is None:
        return night.write_slice("user_embeddings", by_user(rows, n_tasks(night, approximate_users(owners))), encode)
    changed = by_user(of_changed(night, rows), n_tasks(night, len(base.changed)))
    return merged(night, base, "user_embeddings", night.stage("user_embeddings", changed, encode))


def index(night: Night) -> StepResult:
    """The search index over retrievable items, tuned on sampled users; a file, named in the run's pointers."""
    catalogue = open_catalogue(str(night.catalogue_dir))
    check_all_candidates(night.config.scoring, len(catalogue.retrievable_codes()))
    base = recorded_base(night)
    if base is not None and _same_items(night, base, catalogue):
        night.point("index", pointed(night.root, base.run.run_id, "index"))
        kept = {name: value for name, value in base.run.metrics.items() if name in INDEX_METRICS}
        version = night.run.table_versions["item_embeddings"]
        return StepResult({"index": version}, rows=len(catalogue.retrievable_codes()), users=0, metrics=kept)
    sample = night.slice_of("user_embeddings").orderBy(F.xxhash64("user_id"), "user_id").limit(night.config.retrieval.tuning_users)
    table = with_segments(sample, night, "left").orderBy(F.xxhash64("user_id"), "user_id").select("embedding", "segment").toArrow()
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


def _same_items(night: Night, base: Base, catalogue: Catalogue) -> bool:
    """Whether the base's index is over exactly the items of this night."""
    before = open_catalogue.__wrapped__(str(night.root / "catalogues" / str(pointed(night.root, base.run.run_id, "catalogue")["folder"])))
    then, now = (one.item_ids.filter(pa.array(one.retrievable)) for one in (before, catalogue))
    return bool(then.equals(now))


def check_all_candidates(scoring: Scoring, n_items: int) -> None:
    """Raises:
    ConfigError: ``scoring.candidates = all`` with more items than it is meant for.
    """
    if scoring.candidates == "all" and n_items > scoring.all_max_items:
        raise ConfigError(
            f"scoring.candidates = all would rank {n_items} items for every user, more than scoring.all_max_items = "
            f"{scoring.all_max_items}: set scoring.candidates = retrieved, or raise the limit"
        )


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
        n_candidates=config.retrieval.n_candidates,
        top_k=config.scoring.top_k,
        batch_users=config.scoring.batch_users,
    )
    candidates, embeddings = night.slice("candidates"), night.slice("user_embeddings")
    parts = parts_of(candidates, run.table_versions["candidates"])
    known = parts_of(embeddings, run.table_versions["user_embeddings"])
    base = recorded_base(night)
    if base is None:
        scoring, n = part_scorer(task, candidates, parts, embeddings, known), len(parts)
    else:
        bounds, before = ranges(parts), base.files(night.slice("topk"))
        lists, vectors = Files(candidates, parts), Files(embeddings, known)
        scoring, n = carried_scorer(task, lists, vectors, before, changed_file(night), base.gained, bounds), len(bounds)
    written = night.write_slice("topk", numbers(night, n), scoring)
    versions, counts = {"topk": written.version}, counted_metrics(night, "score", written)
    if counts.get(SHORT_BY_RULES):
        versions["shortfalls"] = night.write_slice("shortfalls", _short_by_rules(night)).version
    return StepResult(versions, rows=written.rows, users=sum(part.n_rows for part in parts), metrics=counts)


def _short_by_rules(night: Night) -> DataFrame:
    """The shortfalls, with everybody who has fewer than the top K although there were candidates."""
    rows = night.slice_of("topk").groupBy("user_id").agg(F.count(F.lit(1)).cast("int").alias("n_items"))
    candidates = night.slice_of("candidates").select("user_id", F.size("items").alias("n_candidates"))
    lists = candidates.join(rows, "user_id", "left").fillna(0, "n_items")
    short = lists.where(F.col("n_items") < F.least("n_candidates", F.lit(night.config.scoring.top_k)))
    short = short.select(F.lit(night.run.run_id).alias("run_id"), "user_id", "n_items", F.lit("rules").alias("reason"))
    others = night.slice_of("shortfalls").where(F.col("reason") != "rules").join(short.select("user_id"), "user_id", "left_anti")
    return short.unionByName(others)


STEPS: dict[str, Callable[[Night], StepResult]] = {"embed": embed, "index": index, "candidates": candidates, "score": score}
OUTPUTS = {"embed": "user_embeddings", "index": "index", "candidates": "shortfalls", "score": "topk"}
"""A step is done when the manifest has a version of the last thing that it writes."""
