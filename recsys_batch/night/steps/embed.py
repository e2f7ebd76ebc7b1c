"""The embed step: what is known of users brought together; popularity, the catalogue, item and user embeddings."""

from __future__ import annotations

import logging
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.dataset.popularity import COUNTS, counts_file, counts_schema, popular_lists, sum_of, users_per_item
from recsys_batch.dataset.user_events import Gathered
from recsys_batch.night.incremental.base_run import Base, NeedsFull, find_base
from recsys_batch.night.run_context import Night, Written
from recsys_batch.night.steps.gather_events import changed_users, everybody
from recsys_batch.night.steps.range_tasks import carried, counted_metrics, ranged
from recsys_batch.night.steps.step_result import StepResult
from recsys_batch.schemas import spark_ddl
from recsys_batch.spark import item_catalogue
from recsys_batch.spark.executors.embed import EmbedTask, popularity_counter
from recsys_batch.storage.filesystems import name_of, read_parquet

logger = logging.getLogger("recsys_batch.night")


def embed_users(night: Night) -> StepResult:
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
