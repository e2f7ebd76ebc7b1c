"""The embed step: what is known of users brought together; popularity, the catalogue, item and user embeddings."""

from __future__ import annotations

import logging
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.dataset.popularity import COUNTS_FILE_NAME, counts_path, counts_schema, rank_popular_items, sum_counts, users_by_item
from recsys_batch.dataset.user_events import UserEvents
from recsys_batch.night.incremental.base_run import BaseRun, FullRunRequired, find_base
from recsys_batch.night.run_context import CommittedSlice, RunContext
from recsys_batch.night.steps.gather_events import gather_all, gather_changed
from recsys_batch.night.steps.range_tasks import carry_forward_tasks, range_tasks, task_metrics
from recsys_batch.night.steps.step_result import StepResult
from recsys_batch.schemas import spark_ddl
from recsys_batch.spark import item_catalogue
from recsys_batch.spark.executors.embed import EmbedTask, count_popularity
from recsys_batch.storage.filesystems import basename, read_parquet

logger = logging.getLogger("recsys_batch.night")


def embed_users(night: RunContext) -> StepResult:
    """What is known of users brought together; popularity, the catalogue that later steps share, item and user embeddings."""
    items = item_catalogue.read_item_table(night.read_input("items"), night.config, night.run.run_date)
    catalogue = item_catalogue.build_catalogue(night.bundle, night.root, items, night.config)
    base = _decide(night, catalogue)
    gathered = gather_all(night) if base is None else gather_changed(night, base)
    counts = _popularity(night, gathered, base)
    n_events = users_by_item(counts, catalogue.item_ids)
    catalogue = item_catalogue.add_popularity(catalogue, night.bundle, n_events)
    folder = night.put_folder("catalogues", lambda target: write_catalogue(target, catalogue))
    night.set_pointer("catalogue", {"folder": basename(folder)})
    lists = rank_popular_items(counts, items["item_id"].filter(items["is_available"]).combine_chunks(), night.config.tables.popular_items)
    written = {
        "item_embeddings": night.write_driver_rows(
            "item_embeddings", item_catalogue.item_embedding_rows(catalogue, n_events, night.run.run_id, night.ids)
        ),
        "popular": night.write_driver_rows("popular", lists),
        "user_embeddings": _user_embeddings(night, gathered, base),
    }
    versions = {name: one.version for name, one in written.items()}
    users = written["user_embeddings"].rows
    metrics = {"n_items": float(len(catalogue)), "incremental": float(base is not None)}
    metrics |= task_metrics(night, "embed", written["user_embeddings"])
    if base is not None:
        metrics |= {"incremental.users_changed": float(len(base.changed)), "incremental.items_gained": float(len(base.new_items))}
    return StepResult(versions, rows=users + written["item_embeddings"].rows, users=users, metrics=metrics)


def _decide(night: RunContext, catalogue: Catalogue) -> BaseRun | None:
    """The night to go on from, where an incremental one was asked for and can be."""
    night.clear_pointer("base")
    if not night.incremental:
        return None
    try:
        base = find_base(night, catalogue)
    except FullRunRequired as reason:
        logger.info("this is a full night: %s", reason)
        return None
    changes = f"{len(base.changed)} users changed, {len(base.new_items)} items are new"
    logger.info("going on from run %s: %s", base.run.run_id, changes)
    return base


def _popularity(night: RunContext, gathered: UserEvents, base: BaseRun | None) -> pa.Table:
    """Users per segment and item: counted, or the base's with what the changed users did since."""
    counter = partial(count_popularity, gathered, night.config.data.min_weight)
    tasks, function = range_tasks(night, counter, gathered.bounds)
    counted = [tasks.mapInArrow(function, spark_ddl(counts_schema(night.ids))).toArrow()]
    if base is not None:
        counted.append(read_parquet(counts_path(night.root, base.run.run_id)))
    counts = sum_counts(counted, night.ids)
    folder = night.put_folder("popularity", lambda target: pq.write_table(counts, target / COUNTS_FILE_NAME))
    night.set_pointer("popularity", {"folder": basename(folder)})
    return counts


def _user_embeddings(night: RunContext, gathered: UserEvents, base: BaseRun | None) -> CommittedSlice:
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
    rows = task.copy_imported_range if brought else task.encode_range
    tasks = range_tasks(night, rows, gathered.bounds) if base is None else carry_forward_tasks(night, base, "user_embeddings", rows)
    return night.write_slice("user_embeddings", *tasks)
