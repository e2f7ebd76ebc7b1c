"""What readers see: publish a run, or go back to one. One process changes it at a time."""

from __future__ import annotations

import datetime as dt
import logging
import time

from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.night.incremental.base_run import list_slice_files
from recsys_batch.night.open_run import AlreadyDone
from recsys_batch.night.run_context import RunContext
from recsys_batch.night.run_locks import publish_lock
from recsys_batch.night.run_store import append_runs, load_run_rows, manifest_slice, slice_of_no_run
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.spark.views import create_views
from recsys_batch.tables import run_manifest
from recsys_batch.tables.run_manifest import Run

logger = logging.getLogger("recsys_batch.night")


def publish_run(night: RunContext, started: float) -> dict[str, float]:
    """Make the night's run the one that readers see; rows, users and seconds.

    Args:
        started: of time.monotonic().

    Raises:
        Busy: another process changes what readers see.
    """
    numbers = {"rows": float(night.run.n_rows or 0), "users": float(night.run.n_users or 0), "seconds": time.monotonic() - started}
    with publish_lock(night.config):
        now, current = dt.datetime.now(dt.UTC), run_manifest.newest_published(load_run_rows(night.tables)) if night.backfill else None
        # In the same commit, so that no reader sees the earlier date between.
        later = current is not None and current.run_date > night.run.run_date
        also = [_published_again(current, now + dt.timedelta(microseconds=1))] if current is not None and later else []
        metrics = {**prefix_metrics("publish", numbers), run_manifest.BACKFILLED: float(bool(also))}
        night.append_manifest(status="PUBLISHED", published_at=now, metrics=metrics, also=also)
    night.delete_staging()
    _show(night)
    _tell_mlflow(night)
    return {**numbers, "seconds": time.monotonic() - started}


def prefix_metrics(step: str, numbers: dict[str, float]) -> dict[str, float]:
    """As the manifest's metrics name them."""
    return {f"{step}.{key}": value for key, value in numbers.items()}


def _show(night: RunContext) -> None:
    """Views in the catalog; one that has none of its own says so, and the run stays published."""
    if not night.config.catalog:
        return
    try:
        create_views(night.spark, night.config.catalog)
    except Exception as error:
        logger.warning("run %s is published, but %s has no views: %s", night.run.run_id, night.config.catalog, _first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _tell_mlflow(night: RunContext) -> None:
    """The run is published by now, and stays so whatever the tracking server says."""
    if not night.run.mlflow_run_id:
        return
    try:
        night.registry.log_metrics(night.run.mlflow_run_id, night.run.metrics)
        night.registry.finish_run(night.run.mlflow_run_id, failed=False)
    except Exception as error:
        logger.warning("run %s is published, but MLflow did not take its metrics: %s", night.run.run_id, _first_line(error))


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
        now, target = _way_back(tables, to)
        if dry_run:
            return target
        back = _published_again(target, dt.datetime.now(dt.UTC))
        # The withdrawn run's row and the restored run's row are one commit: no reader sees a state between.
        append_runs(manifest_slice(tables), [now.next_event(status="ROLLED_BACK", published_at=None), back])
        return back


def _way_back(tables: WarehouseTables, to: str | None) -> tuple[Run, Run]:
    """(the current run, the one to go back to)."""
    rows = load_run_rows(tables)
    now = run_manifest.newest_published(rows)
    if now is None:
        raise InputMissing("nothing is published, so there is nothing to roll back")
    target = _rollback_target(rows, now, to)
    if target.run_id == now.run_id:
        raise AlreadyDone(f"run {now.run_id} is what readers see already")
    if not list_slice_files(slice_of_no_run(tables, "topk"), target).parts:
        raise InputMissing(f"run {target.run_id} is no longer kept: maintain removed its rows (tables.keep_runs)")
    return now, target


def _published_again(run: Run, when: dt.datetime) -> Run:
    return run.next_event(status="PUBLISHED", published_at=when, attempt=run.attempt + 1)


def _rollback_target(rows: list[Run], now: Run, to: str | None) -> Run:
    if to is not None:
        if run_manifest.newest_published(rows, to) is None:
            raise InputMissing(f"run {to} was never published: see `recsys-batch status` for those that were")
        return run_manifest.latest_state_by_run(rows)[to]
    target = run_manifest.rollback_target(rows, now)
    if target is None:
        raise InputMissing(f"run {now.run_id} is the only published one: there is nothing to roll back to")
    return target
