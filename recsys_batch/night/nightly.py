"""Run a night: the steps that are not done yet, then the audit, then the publish. The same call again goes on where it stopped."""

from __future__ import annotations

import datetime as dt
import getpass
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from pyspark.sql import SparkSession

from recsys_batch.artifacts import artifact_root
from recsys_batch.config import Config
from recsys_batch.errors import GateRefused, InputMissing, RecsysBatchError
from recsys_batch.locks import held
from recsys_batch.logs import about
from recsys_batch.night import manifest
from recsys_batch.night.audit import audit
from recsys_batch.night.context import AlreadyDone, Night, append_runs, empty_slice, open_night, run_rows
from recsys_batch.night.gates import refused
from recsys_batch.night.incremental import files_of
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
    backfill: bool = False,
    progress: Progress = silent,
) -> Run:
    """All steps of the date's night; its published run.

    Args:
        incremental: compute only what changed since the published night, where that gives the same rows.
        backfill: readers stay with the run that they see, where that is of a later date.

    Raises:
        AlreadyDone: it is published already and ``force`` is not set.
        Busy: another process computes the date.
        GateRefused: the audit said no; what was published before stays.
    """
    with _alone(config, run_date):
        night = open_night(spark, config, run_date, run_id=run_id, force=force, incremental=incremental)
        night.backfill = backfill
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
    override: str | None = None,
    progress: Progress = silent,
) -> Run:
    """A single step of the date's night, as schedulers call it.

    Args:
        override: why a run that its audit refused is published all the same; kept with the run.

    Raises:
        AlreadyDone: this step is done.
        Busy: another process computes the date.
        InputMissing: an earlier step is not.
    """
    with _alone(config, run_date):
        night = open_night(spark, config, run_date, run_id=run_id, begin=name == ALL_STEPS[0], as_it_is=override is not None)
        missing = [earlier for earlier in ALL_STEPS[: ALL_STEPS.index(name)] if not _is_done(night.run, earlier)]
        if override is not None and missing == ["audit"] and night.run.metrics.get(manifest.GATE_REFUSED):
            _override(night, override)
        elif missing:
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
    if not files_of(empty_slice(tables, "topk"), target).parts:
        raise InputMissing(f"run {target.run_id} is no longer kept: maintain removed its rows (tables.keep_runs)")
    back = _published_again(target, dt.datetime.now(dt.UTC))
    # The withdrawn run's row and the restored run's row are one commit: no reader sees a state between.
    append_runs(tables, [now.next_event(status="ROLLED_BACK", published_at=None), back])
    return back


def _published_again(run: Run, when: dt.datetime) -> Run:
    return run.next_event(status="PUBLISHED", published_at=when, attempt=run.attempt + 1)


def _rollback_target(rows: list[dict[str, object]], now: Run, to: str | None) -> Run:
    states = manifest.fold(rows)
    if to is not None:
        target = states.get(to)
        if target is None or not any(row["run_id"] == to and row["status"] == "PUBLISHED" for row in rows):
            raise InputMissing(f"run {to} was never published: see `recsys-batch status` for those that were")
        return target
    earlier = [row for row in rows if states[str(row["run_id"])].status == "PUBLISHED" and row["run_id"] != now.run_id]
    # A date that was filled in was never what readers saw.
    target = manifest.current([row for row in earlier if not states[str(row["run_id"])].metrics.get(manifest.BACKFILLED)] or earlier)
    if target is None:
        raise InputMissing(f"run {now.run_id} is the only published one: there is nothing to roll back to")
    return states[target.run_id]


def _alone(config: Config, run_date: dt.date) -> AbstractContextManager[None]:
    return held(artifact_root(config.paths.warehouse) / "locks" / f"{run_date}.lock", f"the night of {run_date}")


def _do(night: Night, name: str, progress: Progress) -> None:
    if _is_done(night.run, name):
        progress(name, "skipped", {})
        return
    with about(run_id=night.run.run_id, step=name):
        _do_now(night, name, progress)


def _do_now(night: Night, name: str, progress: Progress) -> None:
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
    logger.info("done rows=%d seconds=%.1f", numbers.get("rows", 0), numbers["seconds"])
    progress(name, "done", numbers)


def _audit(night: Night, started: float) -> dict[str, float]:
    found, measured = audit(night)
    no = refused(found)
    numbers = {"rows": measured["n_rows"], "users": measured["n_users"], "seconds": time.monotonic() - started}
    values = {f"audit.{name}": value for name, value in measured.items()}
    limits = {manifest.LIMIT + gate.name: gate.threshold for gate in found}
    verdicts = {manifest.GATE + gate.name: float(gate.passed) for gate in found}
    metrics = {**_prefixed("audit", numbers), **values, **limits, **verdicts, manifest.GATE_REFUSED: float(bool(no))}
    n_users, n_rows = int(measured["n_users"]), int(measured["n_rows"])
    stale = (manifest.GATE, manifest.LIMIT)
    night.run = replace(night.run, metrics={key: value for key, value in night.run.metrics.items() if not key.startswith(stale)})
    night.record(status="FAILED" if no else "AUDITED", n_users=n_users, n_rows=n_rows, metrics=metrics)
    if no:
        raise GateRefused(
            f"run {night.run.run_id} is not published: " + "; ".join(gate.sentence() for gate in no) + ". The last published run stays"
        )
    return numbers


def _publish(night: Night, started: float) -> dict[str, float]:
    numbers = {
        "rows": float(night.run.n_rows or 0),
        "users": float(night.run.n_users or 0),
        "seconds": time.monotonic() - started,
    }
    now, current = dt.datetime.now(dt.UTC), manifest.current(run_rows(night.tables)) if night.backfill else None
    # In the same commit, so that no reader sees the earlier date between.
    later = current is not None and current.run_date > night.run.run_date
    also = [_published_again(current, now + dt.timedelta(microseconds=1))] if current is not None and later else []
    metrics = {**_prefixed("publish", numbers), manifest.BACKFILLED: float(bool(also))}
    night.record(status="PUBLISHED", published_at=now, metrics=metrics, also=also)
    night.drop_drafts()
    if night.run.mlflow_run_id:
        night.registry.log_metrics(night.run.mlflow_run_id, night.run.metrics)
        night.registry.finish(night.run.mlflow_run_id, failed=False)
    return {**numbers, "seconds": time.monotonic() - started}


def _override(night: Night, reason: str) -> None:
    gates = ", ".join(night.run.refused_gates)
    who = {"reason": reason, "by": getpass.getuser(), "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "gates": gates}
    logger.warning("run %s is published although %s refused it: %s", night.run.run_id, gates, reason)
    night.point("override", who)
    night.run = replace(night.run, metrics={**night.run.metrics, "override": 1.0})
    if night.run.mlflow_run_id:
        night.registry.tag(night.run.mlflow_run_id, "recsys_batch.override", reason)


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
        logger.error("run %s failed: %s", night.run.run_id, str(error).splitlines()[0] if str(error) else type(error).__name__)
        try:
            _close_mlflow(night)
            night.record(status="FAILED")
        except Exception as second:
            logger.error("run %s: the failure could not be recorded: %s", night.run.run_id, str(second).splitlines()[0])
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
