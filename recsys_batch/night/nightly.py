"""Run a night: the steps that are not done yet, then the audit, then the publish. The same call again goes on where it stopped."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.errors import GateRefused, InputMissing, RecsysBatchError
from recsys_batch.night import manifest
from recsys_batch.night.audit import audit
from recsys_batch.night.context import AlreadyDone, Night, append_runs, open_night, run_rows
from recsys_batch.night.manifest import Run
from recsys_batch.night.steps import OUTPUTS, STEPS
from recsys_batch.spark.tables import Tables

logger = logging.getLogger("recsys_batch.night")

Progress = Callable[[str, str, dict[str, float]], None]
"""Called with (step, "start" | "done" | "skipped", metrics)."""

ALL_STEPS = (*STEPS, "audit", "publish")


def silent(step: str, event: str, metrics: dict[str, float]) -> None:
    """The progress of a night that nobody watches."""


def nightly(
    spark: SparkSession,
    config: Config,
    run_date: dt.date,
    *,
    run_id: str | None = None,
    force: bool = False,
    incremental: bool = False,
    progress: Progress = silent,
) -> Run:
    """All steps of the date's night; its published run.

    Args:
        incremental: compute only what changed since the published night, where that gives the same rows.

    Raises:
        AlreadyDone: it is published already and ``force`` is not set.
        GateRefused: the audit said no; what was published before stays.
    """
    night = open_night(spark, config, run_date, run_id=run_id, force=force, incremental=incremental)
    with _recording_failure(night):
        for name in ALL_STEPS:
            _do(night, name, progress)
    return night.run


def one_step(
    spark: SparkSession,
    config: Config,
    name: str,
    run_date: dt.date,
    *,
    run_id: str | None = None,
    progress: Progress = silent,
) -> Run:
    """A single step of the date's night, as schedulers call it.

    Raises:
        AlreadyDone: this step is done.
        InputMissing: an earlier step is not.
    """
    night = open_night(spark, config, run_date, run_id=run_id, begin=name == ALL_STEPS[0])
    missing = [earlier for earlier in ALL_STEPS[: ALL_STEPS.index(name)] if not _is_done(night.run, earlier)]
    if missing:
        raise InputMissing(f"run {night.run.run_id} has not done {', '.join(missing)}: run {missing[0]} first, or nightly")
    if _is_done(night.run, name):
        raise AlreadyDone(f"run {night.run.run_id} has done {name} already")
    with _recording_failure(night):
        _do(night, name, progress)
    return night.run


def rollback(spark: SparkSession, config: Config, to: str | None = None) -> Run:
    """Make an earlier published run the one that readers see; no data moves.

    Args:
        to: its run_id; the run published before the current one where it is not given.

    Raises:
        InputMissing: nothing to go back to, or ``to`` was never published.
        AlreadyDone: ``to`` is current.
    """
    tables = Tables(spark, config)
    rows = run_rows(tables)
    now = manifest.current(rows)
    if now is None:
        raise InputMissing("nothing is published, so there is nothing to roll back")
    target = _rollback_target(rows, now, to)
    if target.run_id == now.run_id:
        raise AlreadyDone(f"run {now.run_id} is what readers see already")
    back = target.next_event(status="PUBLISHED", published_at=dt.datetime.now(dt.UTC), attempt=target.attempt + 1)
    # The withdrawn run's row and the restored run's row are one commit: no reader sees a state between.
    append_runs(tables, [now.next_event(status="ROLLED_BACK", published_at=None), back])
    return back


def _rollback_target(rows: list[dict[str, object]], now: Run, to: str | None) -> Run:
    states = manifest.fold(rows)
    if to is not None:
        target = states.get(to)
        if target is None or not any(row["run_id"] == to and row["status"] == "PUBLISHED" for row in rows):
            raise InputMissing(f"run {to} was never published: see `recsys-batch status` for those that were")
        return target
    earlier = [row for row in rows if states[str(row["run_id"])].status == "PUBLISHED" and row["run_id"] != now.run_id]
    target = manifest.current(earlier)
    if target is None:
        raise InputMissing(f"run {now.run_id} is the only published one: there is nothing to roll back to")
    return states[target.run_id]


def _do(night: Night, name: str, progress: Progress) -> None:
    if _is_done(night.run, name):
        progress(name, "skipped", {})
        return
    progress(name, "start", {})
    started = time.monotonic()
    if name == "audit":
        numbers = _audit(night, started)
    elif name == "publish":
        numbers = _publish(night, started)
    else:
        result = STEPS[name](night)
        numbers = {"rows": float(result.rows), "users": float(result.users), "seconds": time.monotonic() - started}
        versions = {**night.run.table_versions, **result.versions}
        night.record(table_versions=versions, metrics={**_prefixed(name, numbers), **result.metrics})
    logger.info("run_id=%s step=%s rows=%d seconds=%.1f", night.run.run_id, name, numbers.get("rows", 0), numbers["seconds"])
    progress(name, "done", numbers)


def _audit(night: Night, started: float) -> dict[str, float]:
    gates, counts = audit(night)
    refused = [gate for gate in gates if not gate.passed]
    numbers = {"rows": counts["n_rows"], "users": counts["n_users"], "seconds": time.monotonic() - started}
    values = {f"audit.{gate.name}": gate.value for gate in gates} | {"audit.n_known": counts["n_known"]}
    verdicts = {manifest.GATE + gate.name: float(gate.passed) for gate in gates}
    metrics = {**_prefixed("audit", numbers), **values, **verdicts, manifest.GATE_REFUSED: float(bool(refused))}
    n_users, n_rows = int(counts["n_users"]), int(counts["n_rows"])
    night.record(status="FAILED" if refused else "AUDITED", n_users=n_users, n_rows=n_rows, metrics=metrics)
    if refused:
        raise GateRefused(
            f"run {night.run.run_id} is not published: " + "; ".join(gate.sentence() for gate in refused) + ". The last published run stays"
        )
    return numbers


def _publish(night: Night, started: float) -> dict[str, float]:
    numbers = {
        "rows": float(night.run.n_rows or 0),
        "users": float(night.run.n_users or 0),
        "seconds": time.monotonic() - started,
    }
    night.record(status="PUBLISHED", published_at=dt.datetime.now(dt.UTC), metrics=_prefixed("publish", numbers))
    night.drop_drafts()
    if night.run.mlflow_run_id:
        night.registry.log_metrics(night.run.mlflow_run_id, night.run.metrics)
        night.registry.finish(night.run.mlflow_run_id, failed=False)
    return {**numbers, "seconds": time.monotonic() - started}


def _is_done(run: Run, name: str) -> bool:
    if name == "audit":
        return run.status in ("AUDITED", "PUBLISHED")
    if name == "publish":
        return run.status == "PUBLISHED"
    return OUTPUTS[name] in run.table_versions


def _prefixed(step: str, numbers: dict[str, float]) -> dict[str, float]:
    return {f"{step}.{key}": value for key, value in numbers.items()}


@contextmanager
def _recording_failure(night: Night) -> Iterator[None]:
    """Leave a FAILED row behind an error, as far as the warehouse can still be written; the error itself goes on."""
    try:
        yield
    except GateRefused:
        _close_mlflow(night)
        raise
    except Exception as error:
        logger.error("run_id=%s failed: %s", night.run.run_id, str(error).splitlines()[0] if str(error) else type(error).__name__)
        try:
            _close_mlflow(night)
            night.record(status="FAILED")
        except Exception as second:
            logger.error("run_id=%s: the failure could not be recorded: %s", night.run.run_id, str(second).splitlines()[0])
        raise _clear(error) from error


def _close_mlflow(night: Night) -> None:
    if night.run.mlflow_run_id:
        night.registry.finish(night.run.mlflow_run_id, failed=True)


def _clear(error: Exception) -> Exception:
    """A worker's own message out of Spark's report of it."""
    if isinstance(error, RecsysBatchError):
        return error
    for line in str(error).splitlines():
        _, marker, message = line.partition("recsys_batch.errors.")
        if marker:
            return RecsysBatchError(message.partition(": ")[2].strip() or message)
    return error
