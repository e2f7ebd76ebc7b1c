"""Run a night: the steps that are not done yet, then the audit, then the publish. The same call again goes on where it stopped."""

from __future__ import annotations

import datetime as dt
import getpass
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.errors import GateRefused, InputMissing, RecsysBatchError, caused_by_interrupt
from recsys_batch.logs import log_context
from recsys_batch.night.audit import audit_run
from recsys_batch.night.gates import failed_gates
from recsys_batch.night.open_run import AlreadyDone, open_run_context
from recsys_batch.night.publish import prefix_metrics, publish_run
from recsys_batch.night.run_context import RunContext
from recsys_batch.night.run_locks import run_date_lock
from recsys_batch.night.steps import OUTPUTS, STEPS
from recsys_batch.spark.session import is_stopped
from recsys_batch.tables import run_manifest
from recsys_batch.tables.run_manifest import STEP_NAMES, Run

logger = logging.getLogger("recsys_batch.night")

StepProgressCallback = Callable[[str, str, dict[str, float]], None]
"""Called with (step, "start" | "done" | "skipped", metrics)."""


def no_progress(step: str, event: str, metrics: dict[str, float]) -> None:
    """The progress of a night that nobody watches."""


def run_night(
    spark: SparkSession,
    config: Config,
    run_date: dt.date,
    *,
    run_id: str | None = None,
    force: bool = False,
    incremental: bool = False,
    backfill: bool = False,
    progress: StepProgressCallback = no_progress,
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
    with run_date_lock(config, run_date):
        night = open_run_context(spark, config, run_date, run_id=run_id, force=force, incremental=incremental)
        night.backfill = backfill
        with _recording_failure(night):
            for name in STEP_NAMES:
                _run_if_pending(night, name, progress)
        return night.run


def run_step(
    spark: SparkSession,
    config: Config,
    name: str,
    run_date: dt.date,
    *,
    run_id: str | None = None,
    override: str | None = None,
    progress: StepProgressCallback = no_progress,
) -> Run:
    """A single step of the date's night, as schedulers call it.

    Args:
        override: why a run that its audit refused is published all the same; kept with the run.

    Raises:
        AlreadyDone: this step is done.
        Busy: another process computes the date.
        InputMissing: an earlier step is not.
    """
    with run_date_lock(config, run_date):
        night = open_run_context(
            spark, config, run_date, run_id=run_id, begin=name == STEP_NAMES[0], skip_staleness_check=override is not None
        )
        missing = [earlier for earlier in STEP_NAMES[: STEP_NAMES.index(name)] if not _is_done(night.run, earlier)]
        if override is not None and missing == ["audit"] and night.run.metrics.get(run_manifest.GATE_REFUSED):
            _override(night, override)
        elif missing:
            raise InputMissing(f"run {night.run.run_id} has not done {', '.join(missing)}: run {missing[0]} first, or nightly")
        if _is_done(night.run, name):
            raise AlreadyDone(f"run {night.run.run_id} has done {name} already")
        with _recording_failure(night):
            _run_if_pending(night, name, progress)
        return night.run


def _run_if_pending(night: RunContext, name: str, progress: StepProgressCallback) -> None:
    if _is_done(night.run, name):
        progress(name, "skipped", {})
        return
    with log_context(run_id=night.run.run_id, step=name):
        _run(night, name, progress)


def _run(night: RunContext, name: str, progress: StepProgressCallback) -> None:
    progress(name, "start", {})
    started = time.monotonic()
    numbers = _CLOSING_STEPS[name].run(night, started) if name in _CLOSING_STEPS else _compute(night, name, started)
    logger.info("done rows=%d seconds=%.1f", numbers.get("rows", 0), numbers["seconds"])
    progress(name, "done", numbers)


def _compute(night: RunContext, name: str, started: float) -> dict[str, float]:
    result = STEPS[name](night)
    numbers = {"rows": float(result.rows), "users": float(result.users), "seconds": time.monotonic() - started}
    versions = {**night.run.table_versions, **result.versions}
    night.append_manifest(table_versions=versions, metrics={**prefix_metrics(name, numbers), **result.metrics})
    return numbers


def _audit(night: RunContext, started: float) -> dict[str, float]:
    found, measured = audit_run(night)
    no = failed_gates(found)
    numbers = {"rows": measured["n_rows"], "users": measured["n_users"], "seconds": time.monotonic() - started}
    values = {f"audit.{name}": value for name, value in measured.items()}
    limits = {run_manifest.LIMIT + gate.name: gate.threshold for gate in found}
    verdicts = {run_manifest.GATE + gate.name: float(gate.passed) for gate in found}
    metrics = {**prefix_metrics("audit", numbers), **values, **limits, **verdicts, run_manifest.GATE_REFUSED: float(bool(no))}
    n_users, n_rows = int(measured["n_users"]), int(measured["n_rows"])
    stale = (run_manifest.GATE, run_manifest.LIMIT)
    night.run = replace(night.run, metrics={key: value for key, value in night.run.metrics.items() if not key.startswith(stale)})
    night.append_manifest(status="FAILED" if no else "AUDITED", n_users=n_users, n_rows=n_rows, metrics=metrics)
    if no:
        raise GateRefused(
            f"run {night.run.run_id} is not published: " + "; ".join(gate.sentence() for gate in no) + ". The last published run stays"
        )
    return numbers


def _override(night: RunContext, reason: str) -> None:
    gates = ", ".join(night.run.refused_gates)
    who = {"reason": reason, "by": getpass.getuser(), "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "gates": gates}
    logger.warning("run %s is published although %s refused it: %s", night.run.run_id, gates, reason)
    night.set_pointer("override", who)
    night.run = replace(night.run, metrics={**night.run.metrics, "override": 1.0})
    if night.run.mlflow_run_id:
        night.registry.set_tag(night.run.mlflow_run_id, "recsys_batch.override", reason)


def _is_done(run: Run, name: str) -> bool:
    return run.status in _CLOSING_STEPS[name].done if name in _CLOSING_STEPS else OUTPUTS[name] in run.table_versions


@dataclass(frozen=True)
class _ClosingStep:
    """A step that writes no table of its own, only what the manifest says of the run."""

    run: Callable[[RunContext, float], dict[str, float]]
    done: tuple[str, ...]


_CLOSING_STEPS = {"audit": _ClosingStep(_audit, ("AUDITED", "PUBLISHED")), "publish": _ClosingStep(publish_run, ("PUBLISHED",))}


@contextmanager
def _recording_failure(night: RunContext) -> Iterator[None]:
    """Leave a FAILED row behind an error, as far as the warehouse can still be written; the error itself goes on."""
    try:
        yield
    except GateRefused:
        _close_mlflow(night)
        raise
    except KeyboardInterrupt:
        _record_failure(night, "interrupted")
        raise
    except Exception as error:
        if caused_by_interrupt(error):
            _record_failure(night, "interrupted")
            raise
        clear = _root_cause(error, night.spark)
        _record_failure(night, (str(clear) or type(clear).__name__).splitlines()[0])
        if clear is error:
            raise
        raise clear from error


def _record_failure(night: RunContext, reason: str) -> None:
    logger.error("run %s failed: %s", night.run.run_id, reason)
    try:
        _close_mlflow(night)
        night.append_manifest(status="FAILED")
    except Exception as second:
        logger.error("run %s: the failure could not be recorded: %s", night.run.run_id, str(second).splitlines()[0])


def _close_mlflow(night: RunContext) -> None:
    if night.run.mlflow_run_id:
        night.registry.finish_run(night.run.mlflow_run_id, failed=True)


def _root_cause(error: Exception, spark: SparkSession) -> Exception:
    """A worker's own message out of Spark's report of it; of a JVM that is gone, that it is."""
    if isinstance(error, RecsysBatchError):
        return error
    if is_stopped(spark):
        return RecsysBatchError(
            "Spark's JVM ended while the night ran: killed, or short of memory (spark.driver.memory). The same command goes on"
        )
    for line in str(error).splitlines():
        _, marker, message = line.partition("recsys_batch.errors.")
        if marker:
            return RecsysBatchError(message.partition(": ")[2].strip() or message)
    return error
