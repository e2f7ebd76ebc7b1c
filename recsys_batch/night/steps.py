"""The steps of a night in order. Each reads what earlier ones committed, writes its own slice, and can be done again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.config import Rules, Scoring
from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.dataset.popularity import COUNTS, counts_file, counts_schema, popular_lists, sum_of, users_per_item
from recsys_batch.dataset.user_events import Gathered
from recsys_batch.errors import ConfigError, InputMissing
from recsys_batch.night.candidates import candidates
from recsys_batch.night.context import Night, Written
from recsys_batch.night.gather import changed_users, everybody
from recsys_batch.night.incremental import Base, NeedsFull, changed_file, find_base, recorded_base
from recsys_batch.night.index import INDEX_METRICS, PARALLEL_ITEMS, SampledUsers, build, tuning_figure
from recsys_batch.night.passes import StepResult, carried, counted_metrics, ranged, with_segments
from recsys_batch.schemas import spark_ddl
from recsys_batch.spark import item_catalogue
from recsys_batch.spark.executors.assign_lists import assign_in_tasks
from recsys_batch.spark.executors.carry_forward import dated
from recsys_batch.spark.executors.embed import EmbedTask, popularity_counter
from recsys_batch.spark.executors.score import SHORT_BY_RULES, Lists, ScoreTask, ranked
from recsys_batch.storage.artifacts import pointed
from recsys_batch.storage.filesystems import name_of, read_parquet
from recsys_batch.tables.list_columns import column_matrix
from recsys_batch.tables.user_ranges import ranges

logger = logging.getLogger("recsys_batch.night")


def embed(night: Night) -> StepResult:
    """What is known of users brought together; popularity, the catalogue that later steps share, item and user embeddings."""
    items = item_catalogue.item_table(night.read_input("items"), night.config, night.run.run_date)
    catalogue = item_catalogue.catalogue(night.bundle, night.root, items, night.config)
    base = _decide(night, catalogue)
    gathered = everybody(night) if base is None else changed_users(night, base)
    counts = _popularity(night, gathered, base)
    n_events = users_per_item(counts, catalogue.item_ids)
    catalogue = item_catalogue.with_popularity(catalogue, night.bundle, n_events)
    folder = night.put_folder("catalogues", lambda target: write_catalogue(target, catalogue))
    night.point("catalogue", {"folder": name_of(folder)})
    lists = popular_lists(counts, items["item_id"].filter(items["is_available"]).combine_chunks(), night.config.tables.popular_items)
    written = {
        "item_embeddings": night.write_table("item_embeddings", item_catalogue.rows(catalogue, n_events, night.run.run_id, night.ids)),
        "popular": night.write_table("popular", lists),
        "user_embeddings": _user_embeddings(night, gathered, base),
    }
    versions = {name: one.version for name, one in written.items()}
    users = written["user_embeddings"].rows
    metrics = {"n_items": float(len(catalogue)), "incremental": float(base is not None)}
    metrics |= counted_metrics(night, "embed", written["user_embeddings"])
    if base is not None:
        metrics |= {"incremental.users_changed": float(len(base.changed)), "incremental.items_gained": float(len(base.gained))}
    return StepResult(versions, rows=users + written["item_embeddings"].rows, users=users, metrics=metrics)


def _decide(night: Night, catalogue: Catalogue) -> Base | None:
    """The night to go on from, where an incremental one was asked for and can be."""
    night.unpoint("base")
    if not night.incremental:
        return None
    try:
        base = find_base(night, catalogue)
    except NeedsFull as reason:
        logger.info("this is a full night: %s", reason)
        return None
    changes = f"{len(base.changed)} users changed, {len(base.gained)} items are new"
    logger.info("going on from run %s: %s", base.run.run_id, changes)
    return base


def _popularity(night: Night, gathered: Gathered, base: Base | None) -> pa.Table:
    """Users per segment and item: counted, or the base's with what the changed users did since."""
    counter = partial(popularity_counter, gathered, night.config.data.min_weight)
    tasks, function = ranged(night, counter, gathered.bounds)
    counted = [tasks.mapInArrow(function, spark_ddl(counts_schema(night.ids))).toArrow()]
    if base is not None:
        counted.append(read_parquet(counts_file(night.root, base.run.run_id)))
    counts = sum_of(counted, night.ids)
    folder = night.put_folder("popularity", lambda target: pq.write_table(counts, target / COUNTS))
    night.point("popularity", {"folder": name_of(folder)})
    return counts


def _user_embeddings(night: Night, gathered: Gathered, base: Base | None) -> Written:
    brought = night.bundle.kind == "embeddings"
    task = EmbedTask(
        run_id=night.run.run_id,
        gathered=gathered,
        min_weight=night.config.data.min_weight,
        bundle_dir=night.bundle_dir,
        catalogue_dir=night.catalogue_dir,
        history_length=0 if brought else int(night.bundle.manifest["model"]["history_length"]),
        cache=night.cache,
    )
    rows = task.brought if brought else task.encoded
    tasks = ranged(night, rows, gathered.bounds) if base is None else carried(night, base, "user_embeddings", rows)
    return night.write_slice("user_embeddings", *tasks)


def index(night: Night) -> StepResult:
    """The search index over retrievable items, tuned on sampled users; a file, named in the run's pointers."""
    catalogue = night.open_catalogue()
    check_all_candidates(night.config.scoring, len(catalogue.retrievable_codes()))
    base = recorded_base(night)
    if base is not None and base.same_items:
        night.point("index", pointed(night.root, base.run.run_id, "index"))
        kept = {name: value for name, value in base.run.metrics.items() if name in INDEX_METRICS}
        version = night.run.table_versions["item_embeddings"]
        return StepResult({"index": version}, rows=len(catalogue.retrievable_codes()), users=0, metrics=kept)
    sample = night.slice_of("user_embeddings").orderBy(F.xxhash64("user_id"), "user_id").limit(night.config.retrieval.tuning_users)
    table = with_segments(sample, night, "left").orderBy(F.xxhash64("user_id"), "user_id").select("embedding", "segment").toArrow()
    if table.num_rows == 0:
        raise InputMissing(
            f"no user has a positive interaction (weight > data.min_weight = {night.config.data.min_weight:g}), or an embedding that was "
            "registered: ingest interactions first"
        )
    sampled = SampledUsers(column_matrix(table["embedding"].combine_chunks()), catalogue.rules(table["segment"].combine_chunks()))
    assign_rows = assign_in_tasks(night.spark, night.root, night.cache) if len(catalogue) >= PARALLEL_ITEMS else None
    settings = night.config.retrieval
    if night.config.scoring.candidates == "all":
        settings = settings.model_copy(update={"mode": "exact"})
    with night.writing_files("indexes") as folder:
        built = build(folder, catalogue, sampled, settings, assign_rows)
    night.point("index", built.to_dict())
    if night.run.mlflow_run_id and built.tuning.curve:
        night.registry.log_figure(night.run.mlflow_run_id, tuning_figure(built.tuning), "retrieval_tuning.png")
    version = night.run.table_versions["item_embeddings"]
    return StepResult({"index": version}, rows=built.info.n_items, users=len(sampled.queries), metrics=built.metrics())


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
        bundle_dir=night.bundle_dir,
        catalogue_dir=night.catalogue_dir,
        n_candidates=config.retrieval.n_candidates,
        top_k=config.scoring.top_k,
        batch_users=config.scoring.batch_users,
        cache=night.cache,
    )
    base, candidates = recorded_base(night), night.files("candidates")
    lists = Lists(candidates, night.files("user_embeddings"))
    if base is None:
        tasks = ranged(night, partial(ranked, task, lists), ranges(candidates.parts))
    else:
        lists = replace(lists, changed=changed_file(night), gained=base.gained)
        tasks = carried(night, base, "topk", partial(ranked, task, lists), dated(task.generated_at))
    written = night.write_slice("topk", *tasks)
    versions, counts = {"topk": written.version}, counted_metrics(night, "score", written)
    # Of the lists that are carried, nobody has counted which are short.
    if counts.get(SHORT_BY_RULES) or (base is not None and night.config.rules != Rules()):
        versions["shortfalls"] = night.write_slice("shortfalls", _short_by_rules(night)).version
    return StepResult(versions, rows=written.rows, users=sum(part.n_rows for part in candidates.parts), metrics=counts)


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
