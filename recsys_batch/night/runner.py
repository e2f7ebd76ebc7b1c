"""Run a night: the steps that are not done yet, then the audit, then the publish. The same call again goes on where it stopped.

Called by the commands; everything else of the package is below it.
"""

import datetime as dt
import getpass
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.errors import GateRefused, InputMissing, RecsysBatchError, RegistryUnavailable, caused_by_interrupt
from recsys_batch.logs import log_context
from recsys_batch.night.audit import audit_run
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


def _ignore(step: str, event: str, metrics: dict[str, float]) -> None: ...


def run_night(
    spark: SparkSession,
    config: Config,
    run_date: dt.date,
    *,
    run_id: str | None = None,
    force: bool = False,
    incremental: bool = False,
    backfill: bool = False,
    progress: StepProgressCallback = _ignore,
) -> Run:
    """Run all steps of the date's night that are not done; returns the published run.

    Args:
        incremental: compute only what changed since the published night, where that gives the same rows.
        backfill: readers stay with the run that they see, where that is of a later date.

    Raises:
        AlreadyDone: it is published already and ``force`` is not set.
        Busy: another process computes the date.
        GateRefused: the audit said no; what was published before stays.
    """
    with run_date_lock(config, run_date):
        context = open_run_context(spark, config, run_date, run_id=run_id, force=force, incremental=incremental)
        context.backfill = backfill
        with _recording_failure(context):
            for name in STEP_NAMES:
                _run_if_pending(context, name, progress)
        return context.run


def run_step(
    spark: SparkSession, config: Config, name: str, run_date: dt.date, *, run_id: str | None = None, override: str | None = None
) -> Run:
    """Run a single step of the date's night, as schedulers call it; returns the run.

    Args:
        override: why a run that its audit refused is published all the same; kept with the run.

    Raises:
        AlreadyDone: this step is done.
        Busy: another process computes the date.
        InputMissing: an earlier step is not done.
    """
    with run_date_lock(config, run_date):
        context = open_run_context(
            spark, config, run_date, run_id=run_id, begin=name == STEP_NAMES[0], skip_staleness_check=override is not None
        )
        missing = [earlier for earlier in STEP_NAMES[: STEP_NAMES.index(name)] if not _is_done(context.run, earlier)]
        if override is not None and missing == ["audit"] and context.run.metrics.get(run_manifest.GATE_REFUSED):
            _record_override(context, override)
        elif missing:
            raise InputMissing(f"run {context.run.run_id} has not done {', '.join(missing)}: run {missing[0]} first, or nightly")
        if _is_done(context.run, name):
            raise AlreadyDone(f"run {context.run.run_id} has done {name} already")
        with _recording_failure(context):
            _run_if_pending(context, name)
        return context.run


def _run_if_pending(context: RunContext, name: str, progress: StepProgressCallback = _ignore) -> None:
    if _is_done(context.run, name):
        progress(name, "skipped", {})
        return
    with log_context(run_id=context.run.run_id, step=name):
        progress(name, "start", {})
        started = time.monotonic()
        numbers = _CLOSING_STEPS[name](context, started) if name in _CLOSING_STEPS else _compute_step(context, name, started)
        logger.info("done rows=%d seconds=%.1f", numbers.get("rows", 0), numbers["seconds"])
        progress(name, "done", numbers)


def _compute_step(context: RunContext, name: str, started: float) -> dict[str, float]:
    result = STEPS[name](context)
    numbers = {"rows": float(result.rows), "users": float(result.users), "seconds": time.monotonic() - started}
    versions = {**context.run.table_versions, **result.versions}
    context.append_manifest(table_versions=versions, metrics={**prefix_metrics(name, numbers), **result.metrics})
    return numbers


def _audit_and_record(context: RunContext, started: float) -> dict[str, float]:
    gates, measured = audit_run(context)
    failed = [gate for gate in gates if not gate.passed]
    numbers = {"rows": measured["n_rows"], "users": measured["n_users"], "seconds": time.monotonic() - started}
    values = {f"audit.{name}": value for name, value in measured.items()}
    limits = {run_manifest.LIMIT + gate.name: gate.threshold for gate in gates}
    verdicts = {run_manifest.GATE + gate.name: float(gate.passed) for gate in gates}
    metrics = {**prefix_metrics("audit", numbers), **values, **limits, **verdicts, run_manifest.GATE_REFUSED: float(bool(failed))}
    n_users, n_rows = int(measured["n_users"]), int(measured["n_rows"])
    stale_prefixes = (run_manifest.GATE, run_manifest.LIMIT)
    others = {key: value for key, value in context.run.metrics.items() if not key.startswith(stale_prefixes)}
    context.run = replace(context.run, metrics=others)
    context.append_manifest(status="FAILED" if failed else "AUDITED", n_users=n_users, n_rows=n_rows, metrics=metrics)
    if failed:
        reasons = "; ".join(gate.sentence() for gate in failed)
        raise GateRefused(f"run {context.run.run_id} is not published: {reasons}. The last published run stays")
    return numbers


def _record_override(context: RunContext, reason: str) -> None:
    gates = ", ".join(context.run.refused_gates)
    override = {"reason": reason, "by": getpass.getuser(), "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "gates": gates}
    logger.warning("run %s is published although %s refused it: %s", context.run.run_id, gates, reason)
    context.set_pointer("override", override)
    context.run = replace(context.run, metrics={**context.run.metrics, "override": 1.0})
    if context.run.mlflow_run_id:
        context.registry.set_tag(context.run.mlflow_run_id, "recsys_batch.override", reason)


def _is_done(run: Run, name: str) -> bool:
    return run.status in _CLOSED[name] if name in _CLOSED else OUTPUTS[name] in run.table_versions


_CLOSING_STEPS = {"audit": _audit_and_record, "publish": publish_run}
"""Steps that write no table of their own, only what the manifest says of the run."""
_CLOSED = {"audit": ("AUDITED", "PUBLISHED"), "publish": ("PUBLISHED",)}
"""Statuses of a run that has done such a step."""


@contextmanager
def _recording_failure(context: RunContext) -> Iterator[None]:
    """Leave a FAILED row behind an error, as far as the warehouse can still be written; the error itself goes on."""
    try:
        yield
    except GateRefused:
        _close_mlflow(context)
        raise
    except (KeyboardInterrupt, Exception) as error:
        if caused_by_interrupt(error):
            _record_failure(context, "interrupted")
            raise
        cause = _root_cause(error, context.spark)
        _record_failure(context, (str(cause) or type(cause).__name__).splitlines()[0])
        if cause is error:
            raise
        raise cause from error


def _record_failure(context: RunContext, reason: str) -> None:
    logger.error("run %s failed: %s", context.run.run_id, reason)
    try:
        _close_mlflow(context)
        context.append_manifest(status="FAILED")
    except Exception as error:
        logger.error("run %s: the failure could not be recorded: %s", context.run.run_id, str(error).splitlines()[0])


def _close_mlflow(context: RunContext) -> None:
    """Close a failed run's MLflow run; where that fails it is logged, and neither hides the reason nor keeps it out of the manifest."""
    if not context.run.mlflow_run_id:
        return
    try:
        context.registry.finish_run(context.run.mlflow_run_id, failed=True)
    except RegistryUnavailable as error:
        logger.warning("run %s: MLflow did not take its end: %s", context.run.run_id, error)


def _root_cause(error: BaseException, spark: SparkSession) -> BaseException:
    """Find the error that a reader can act on: a worker's own message out of Spark's report of it, or that the JVM is gone."""
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
