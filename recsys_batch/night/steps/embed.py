"""The embed step: gather users' events; write popularity, the catalogue that later steps share, item and user embeddings."""

import logging
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.dataset.popularity import COUNTS_FILE_NAME, counts_path, counts_schema, rank_popular_items, sum_counts, users_by_item
from recsys_batch.dataset.user_events import UserEvents
from recsys_batch.night.incremental import BaseRun, FullRunRequired, find_base
from recsys_batch.night.run_context import CommittedSlice, RunContext, StepResult
from recsys_batch.night.steps.gather_events import gather_all, gather_changed
from recsys_batch.night.steps.range_tasks import carry_forward_tasks, range_tasks, task_metrics
from recsys_batch.schemas import spark_ddl
from recsys_batch.spark import item_catalogue
from recsys_batch.spark.concurrent_jobs import run_concurrently
from recsys_batch.spark.executors.embed import count_popularity
from recsys_batch.storage.filesystems import basename, read_parquet

logger = logging.getLogger("recsys_batch.night")


def embed_users(context: RunContext) -> StepResult:
    """Gather users' events, and write popularity, the catalogue, item and user embeddings."""
    context.clear_pointer("base")
    if context.incremental:
        items, catalogue = _load_items(context)
        base = _choose_base(context, catalogue)
        user_events = gather_all(context) if base is None else gather_changed(context, base)
    else:
        base = None
        _ = context.bundle  # opened and verified once, as both threads ask for it
        (items, catalogue), user_events = run_concurrently(context.spark, partial(_load_items, context), partial(gather_all, context))
    counts = _write_popularity(context, user_events, base)
    n_events = users_by_item(counts, catalogue.item_ids)
    catalogue = item_catalogue.add_popularity(catalogue, context.bundle, n_events)
    folder = context.put_folder("catalogues", lambda target: write_catalogue(target, catalogue))
    context.set_pointer("catalogue", {"folder": basename(folder)})
    lists = rank_popular_items(counts, items["item_id"].filter(items["is_available"]).combine_chunks(), context.config.tables.popular_items)
    item_rows = item_catalogue.item_embedding_rows(catalogue, n_events, context.run.run_id, context.ids)
    writers = {
        "item_embeddings": partial(context.write_driver_rows, "item_embeddings", item_rows),
        "popular": partial(context.write_driver_rows, "popular", lists),
        "user_embeddings": partial(_write_user_embeddings, context, user_events, base),
    }
    commits = dict(zip(writers, run_concurrently(context.spark, *writers.values()), strict=True))
    versions = {name: part.version for name, part in commits.items()}
    users = commits["user_embeddings"].rows
    metrics = {"n_items": float(len(catalogue)), "incremental": float(base is not None)}
    metrics |= task_metrics(context, "embed", commits["user_embeddings"])
    if base is not None:
        metrics |= {"incremental.users_changed": float(len(base.changed)), "incremental.items_gained": float(len(base.new_items))}
    return StepResult(versions, rows=users + commits["item_embeddings"].rows, users=users, metrics=metrics)


def _load_items(context: RunContext) -> tuple[pa.Table, Catalogue]:
    """Read the items table, and build the night's catalogue of it."""
    items = item_catalogue.read_item_table(context.read_input("items"), context.config, context.run.run_date)
    return items, item_catalogue.build_catalogue(context.bundle, context.root, items, context.config)


def _choose_base(context: RunContext, catalogue: Catalogue) -> BaseRun | None:
    """Choose the run that an incremental night goes on from; None where it has to be a full one."""
    try:
        base = find_base(context, catalogue)
    except FullRunRequired as reason:
        logger.info("this is a full night: %s", reason)
        return None
    changes = f"{len(base.changed)} users changed, {len(base.new_items)} items are new"
    logger.info("going on from run %s: %s", base.run.run_id, changes)
    return base


def _write_popularity(context: RunContext, user_events: UserEvents, base: BaseRun | None) -> pa.Table:
    """Count users per segment and item, or add what changed users did since to the base run's counts; written as an artefact."""
    counter = partial(count_popularity, user_events, context.config.data.min_weight)
    tasks, function = range_tasks(context, counter, user_events.bounds)
    counted = [tasks.mapInArrow(function, spark_ddl(counts_schema(context.ids))).toArrow()]
    if base is not None:
        counted.append(read_parquet(counts_path(context.root, base.run.run_id)))
    counts = sum_counts(counted, context.ids)
    folder = context.put_folder("popularity", lambda target: pq.write_table(counts, target / COUNTS_FILE_NAME))
    context.set_pointer("popularity", {"folder": basename(folder)})
    return counts


def _write_user_embeddings(context: RunContext, user_events: UserEvents, base: BaseRun | None) -> CommittedSlice:
    task = context.run_artifacts.make_embed_task(context.bundle, user_events)
    rows = task.encode_range if user_events.vectors is None else task.copy_imported_range
    tasks = range_tasks(context, rows, user_events.bounds) if base is None else carry_forward_tasks(context, base, "user_embeddings", rows)
    return context.write_slice("user_embeddings", *tasks)
