"""Publish a run, or roll back to an earlier one: the only changes of what readers see, one at a time by ``publish_lock``."""

import datetime as dt
import logging
import time

from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.night.incremental import list_slice_files
from recsys_batch.night.open_run import AlreadyDone
from recsys_batch.night.run_context import RunContext
from recsys_batch.night.run_locks import publish_lock
from recsys_batch.night.run_store import append_runs, load_run_rows, manifest_slice, runs_with_gathered_events, slice_of_no_run
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.spark.views import create_views
from recsys_batch.storage.filesystems import join, list_entries, remove
from recsys_batch.tables import run_manifest
from recsys_batch.tables.run_manifest import Run

logger = logging.getLogger("recsys_batch.night")


def publish_run(context: RunContext, started: float) -> dict[str, float]:
    """Make a run the one that readers see, in one commit; returns rows, users, and seconds since ``started`` (of time.monotonic()).

    Raises:
        Busy: another process changes what readers see.
    """
    numbers = {"rows": float(context.run.n_rows or 0), "users": float(context.run.n_users or 0), "seconds": time.monotonic() - started}
    with publish_lock(context.config):
        now, current = dt.datetime.now(dt.UTC), run_manifest.newest_published(load_run_rows(context.tables)) if context.backfill else None
        # In the same commit, so that no reader sees the earlier date between.
        keeps_later = current is not None and current.run_date > context.run.run_date
        republished = [_republish(current, now + dt.timedelta(microseconds=1))] if current is not None and keeps_later else []
        metrics = {**prefix_metrics("publish", numbers), run_manifest.BACKFILLED: float(bool(republished))}
        context.append_manifest(status="PUBLISHED", published_at=now, metrics=metrics, other_runs=republished)
    _remove_old_gathered_events(context)
    _refresh_views(context)
    _log_to_mlflow(context)
    return {**numbers, "seconds": time.monotonic() - started}


def _remove_old_gathered_events(context: RunContext) -> None:
    """Remove what nights gathered of users that no stream can go on from; what an unfinished night gathered stays."""
    rows = load_run_rows(context.tables)
    states, kept = run_manifest.latest_state_by_run(rows), runs_with_gathered_events(context.root, rows)
    for entry in list_entries(join(context.root, "gathered")):
        if entry.name not in kept and entry.name in states and states[entry.name].was_published:
            remove(entry.location)


def prefix_metrics(step: str, numbers: dict[str, float]) -> dict[str, float]:
    """Prefix a step's numbers as the manifest's metrics name them: STEP.KEY."""
    return {f"{step}.{key}": value for key, value in numbers.items()}


def _refresh_views(context: RunContext) -> None:
    """Bring the catalog's views up to date; where that fails it is logged, and the run stays published."""
    if not context.config.catalog:
        return
    try:
        # Made empty before any stream: readers name topk_now from the first night on, and no stream has views to see to.
        context.tables.ensure("topk_live", context.ids)
        create_views(context.spark, context.config.catalog)
    except Exception as error:
        logger.warning("run %s is published, but %s has no views: %s", context.run.run_id, context.config.catalog, _first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _log_to_mlflow(context: RunContext) -> None:
    """Log a published run's metrics to MLflow; where that fails it is logged, and the run stays published."""
    if not context.run.mlflow_run_id:
        return
    try:
        context.registry.log_metrics(context.run.mlflow_run_id, context.run.metrics)
        context.registry.finish_run(context.run.mlflow_run_id, failed=False)
    except Exception as error:
        logger.warning("run %s is published, but MLflow did not take its metrics: %s", context.run.run_id, _first_line(error))


def roll_back_run(spark: SparkSession, config: Config, to: str | None = None, *, dry_run: bool = False) -> Run:
    """Make an earlier published run the one that readers see; no data moves.

    Args:
        to: its run_id; the run published before the current one where it is not given.
        dry_run: only say which run it would be.

    Raises:
        InputMissing: nothing to go back to, or ``to`` was never published.
        AlreadyDone: ``to`` is current.
        Busy: another process changes what readers see.
    """
    tables = WarehouseTables(spark, config)
    with publish_lock(config):
        current, target = _find_current_and_target(tables, to)
        if dry_run:
            return target
        back = _republish(target, dt.datetime.now(dt.UTC))
        # The withdrawn run's row and the restored run's row are one commit: no reader sees a state between.
        append_runs(manifest_slice(tables), [current.next_event(status="ROLLED_BACK", published_at=None), back])
        return back


def _find_current_and_target(tables: WarehouseTables, to: str | None) -> tuple[Run, Run]:
    """Find (the current run, the one to go back to)."""
    rows = load_run_rows(tables)
    current = run_manifest.newest_published(rows)
    if current is None:
        raise InputMissing("nothing is published, so there is nothing to roll back")
    if to is None:
        target = run_manifest.rollback_target(rows, current)
    elif run_manifest.newest_published(rows, to) is None:
        raise InputMissing(f"run {to} was never published: see `recsys-batch status` for those that were")
    else:
        target = run_manifest.latest_state_by_run(rows)[to]
    if target is None:
        raise InputMissing(f"run {current.run_id} is the only published one: there is nothing to roll back to")
    if target.run_id == current.run_id:
        raise AlreadyDone(f"run {current.run_id} is what readers see already")
    if not list_slice_files(slice_of_no_run(tables, "topk"), target).parts:
        raise InputMissing(f"run {target.run_id} is no longer kept: maintain removed its rows (tables.keep_runs)")
    return current, target


def _republish(run: Run, when: dt.datetime) -> Run:
    return run.next_event(status="PUBLISHED", published_at=when, attempt=run.attempt + 1)
