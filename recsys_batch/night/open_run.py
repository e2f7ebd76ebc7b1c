"""Resume the unfinished run of a date, or begin one. Called by the runner, and by nothing that only reads runs."""

import datetime as dt
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pyspark.sql import SparkSession

from recsys_batch import __version__
from recsys_batch.config import Config
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.night.run_context import RunContext
from recsys_batch.night.run_store import load_run_rows
from recsys_batch.night.scoring_engine import choose_scoring_engine
from recsys_batch.night.task_sizing import set_shuffle_partitions
from recsys_batch.registry.bundle import Bundle
from recsys_batch.registry.mlflow_registry import ModelRegistry
from recsys_batch.schemas import TABLES
from recsys_batch.spark.concurrent_jobs import run_concurrently
from recsys_batch.spark.executors.engines import ScoringEngine
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import artifact_root, run_folder, set_pointer
from recsys_batch.storage.filesystems import basename, exists
from recsys_batch.tables import run_manifest
from recsys_batch.tables.run_manifest import Run

logger = logging.getLogger("recsys_batch.night")

MODEL_METRIC = "model.ndcg_at_10"
"""What the model reached on its validation part, among a run's metrics; absent where nobody measured it."""
_INPUTS = ("interactions", "items", "users")


class AlreadyDone(Exception):
    """There is nothing left to do; the message says why. Not an error: exit code 0."""


def open_run_context(
    spark: SparkSession,
    config: Config,
    run_date: dt.date,
    *,
    run_id: str | None = None,
    force: bool = False,
    begin: bool = True,
    incremental: bool = False,
    skip_staleness_check: bool = False,
) -> RunContext:
    """Resume the date's unfinished run, or begin one.

    Args:
        run_id: that run, instead of the date's newest.
        force: begin a new run even if the date is published.
        begin: False for a step that cannot be a run's first.
        skip_staleness_check: go on with the run although the inputs, the model or the settings are others by now.

    Raises:
        AlreadyDone: the date (or run) is published.
        InputMissing: nothing ingested, no champion model, or no such run where ``begin`` is False.
    """
    tables = WarehouseTables(spark, config)
    ids = tables.require_ids()
    set_shuffle_partitions(spark, config, tables)
    states = run_manifest.latest_state_by_run(load_run_rows(tables))
    latest = run_manifest.find_run(states, run_date, run_id)
    if latest is not None and latest.run_date != run_date:
        raise InputMissing(f"run {run_id} is of {latest.run_date}, not of {run_date}: pass --run-date {latest.run_date}")
    if latest is not None and not force and latest.was_published:
        raise AlreadyDone(_already_done_message(latest))
    registry = ModelRegistry(config)
    placeholder = Run("", run_date, 0, "RUNNING", None, {}, {}, "", __version__, "")
    context = RunContext(spark, config, tables, ids, latest or placeholder, artifact_root(config.paths.warehouse), registry, incremental)
    inputs = _input_versions(tables)
    reason = _reason_not_to_resume(context, latest, inputs) if latest is not None and not force and not skip_staleness_check else None
    if latest is not None and not force and reason is None:
        done = ", ".join(sorted(latest.table_versions)) or "nothing"
        logger.info("resuming run %s (attempt %d): %s done", latest.run_id, latest.attempt + 1, done)
        # Not recorded yet: a command that finds nothing to do leaves no row.
        context.run = replace(latest, attempt=latest.attempt + 1, status="AUDITED" if latest.status == "AUDITED" else "RUNNING")
        return context
    if not begin and not force:
        raise InputMissing(reason or f"no run of {run_date} has begun: run `recsys-batch embed --run-date {run_date}` or nightly first")
    if reason:
        logger.info("beginning a new run: %s", reason)
    _begin_run(context, run_date, run_id if latest is None and run_id else run_manifest.next_run_id(states, run_date), inputs)
    return context


def _begin_run(context: RunContext, run_date: dt.date, run_id: str, inputs: Mapping[str, int]) -> None:
    champion = context.registry.require_champion()
    (bundle, engine), _ = run_concurrently(context.spark, partial(_store_bundle, context, run_id, champion.version), context.ensure_outputs)
    ndcg, now = bundle.manifest.get("metrics", {}).get("ndcg_at_10"), dt.datetime.now(dt.UTC)
    context.run = Run(
        run_id=run_id,
        run_date=run_date,
        attempt=1,
        status="RUNNING",
        published_at=None,
        table_versions={},
        input_versions=inputs,
        model_version=champion.version,
        code_version=__version__,
        config_hash=context.config.config_hash(),
        metrics={
            run_manifest.STARTED_AT: now.timestamp(),
            run_manifest.CORES: float(context.spark.sparkContext.defaultParallelism),
            **({} if ndcg is None else {MODEL_METRIC: float(ndcg)}),
        },
        mlflow_run_id=context.registry.start_night(run_id, {"run_date": run_date.isoformat(), "model_version": champion.version}),
    )
    context.append_manifest()
    logger.info("run %s began with model version %s on inputs %s, scoring engine %s", run_id, champion.version, dict(inputs), engine)


def _store_bundle(context: RunContext, run_id: str, version: str) -> tuple[Bundle, ScoringEngine]:
    """Copy the model's files to where executors find them, and choose what scores by them."""
    Path(context.config.paths.state).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="recsys-batch-", dir=context.config.paths.state) as download:
        bundle = context.registry.fetch(version, Path(download))
        engine = choose_scoring_engine(context.spark, context.config, bundle)
        folder = context.put_folder("bundles", lambda target: _copy_files(bundle.path, target))
    set_pointer(context.root, run_id, "bundle", {"folder": basename(folder), "model_version": version, "digest": bundle.digest})
    set_pointer(context.root, run_id, "scoring", {"engine": engine})
    return bundle, engine


def _reason_not_to_resume(context: RunContext, run: Run, inputs: Mapping[str, int]) -> str | None:
    """Say in a sentence why the unfinished run cannot be resumed; None where it can."""
    config, registry = context.config, context.registry
    if not exists(run_folder(context.root, run.run_id)) or ("topk" in run.table_versions and not context.slice_files("topk").parts):
        return f"run {run.run_id} is no longer kept: maintain removed what it had written"
    if run.config_hash != config.config_hash():
        return f"run {run.run_id} was begun with other settings (config hash {run.config_hash}, now {config.config_hash()})"
    if run.code_version != __version__:
        return f"run {run.run_id} was begun by release {run.code_version}, this is {__version__}"
    if run.status != "FAILED":
        return None  # killed: it keeps to the model and the inputs that it began with
    champion = registry.get_champion()
    if champion is not None and champion.version != run.model_version:
        return f"run {run.run_id} failed with model version {run.model_version}, and {champion.version} is the champion now"
    if run.metrics.get(run_manifest.GATE_REFUSED) and dict(inputs) != dict(run.input_versions):
        return f"run {run.run_id} was refused by its audit, and the inputs have changed since"
    return None


def _input_versions(tables: WarehouseTables) -> dict[str, int]:
    """Pin the versions of the input tables that exist.

    Raises:
        UsageError: one lacks a column of the contract.
    """
    names = [name for name in _INPUTS if tables.exists(name)]
    for name in names:
        missing = [column.name for column in TABLES[name].columns if column.name not in tables.read(name).columns]
        if missing:
            problem = f"table {name} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
            raise UsageError(f"{problem} (docs/data-contract.md): write it as `recsys-batch ingest` does, or ingest it again")
    return {name: tables.version(name) for name in names}


def _copy_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


def _already_done_message(run: Run) -> str:
    if run.status == "PUBLISHED":
        when = f"{run.published_at:%Y-%m-%d %H:%M:%S} UTC"
        return f"{run.run_date} is already published as run {run.run_id} at {when}; --force computes it again"
    return f"{run.run_date} was published as run {run.run_id} and rolled back; --force computes it again"
