"""One night at work: the session, the tables, and the run whose rows are being written."""

from __future__ import annotations

import datetime as dt
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from recsys_batch import __version__
from recsys_batch.config import Config
from recsys_batch.dataset.catalogue import Catalogue, open_catalogue
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.night.task_sizing import fit_shuffles
from recsys_batch.read import rows_in
from recsys_batch.registry.bundle import Bundle, load_bundle
from recsys_batch.registry.mlflow_registry import Registry
from recsys_batch.schemas import TABLES, IdTypes, TableSpec, spark_ddl
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.spark.executors.part_writer import part_writer, unchanged
from recsys_batch.spark.tables import Tables
from recsys_batch.storage.artifacts import (
    artifact_root,
    bundle_folder,
    catalogue_folder,
    is_pointed,
    point,
    pointed,
    put_folder,
    run_folder,
    unpoint,
    writing_files,
)
from recsys_batch.storage.filesystems import exists, joined, name_of, remove
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables import run_manifest
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import PART_SCHEMA, Part, Slice, append, commit, part_of_row, parts_of
from recsys_batch.tables.user_ranges import Files

logger = logging.getLogger("recsys_batch.night")

MODEL_METRIC = "model.ndcg_at_10"
"""What the model reached on its validation part, among a run's metrics; absent where nobody measured it."""

_INPUTS = ("interactions", "items", "users")


class AlreadyDone(Exception):
    """There is nothing left to do; the message says why. Not an error: exit code 0."""


@dataclass(frozen=True)
class Written:
    """A committed slice: the table's version, rows and bytes of files, and what the tasks counted."""

    version: int
    rows: int
    n_bytes: int
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Night:
    """A run in progress.

    ``run`` moves on with every row that ``record`` appends to the manifest. ``incremental``: go on from the published night, where
    that is possible. ``backfill``: publish without taking readers to an earlier date.
    """

    spark: SparkSession
    config: Config
    tables: Tables
    ids: IdTypes
    run: Run
    root: str
    registry: Registry = field(repr=False)
    incremental: bool = False
    backfill: bool = False

    def record(self, *, also: Sequence[Run] = (), **changes: Any) -> None:
        """Append the run's next manifest row, and those of other runs in the same commit."""
        self.run = self.run.next_event(**changes)
        append_runs(self._manifest, [self.run, *also])

    @cached_property
    def _manifest(self) -> Slice:
        """Looked up once: a failure can be recorded when the JVM is what failed."""
        return manifest_of(self.tables)

    def read_input(self, name: str) -> DataFrame:
        """An input table at the version pinned when the run began."""
        return self.tables.read(name, self.run.input_versions[name])

    def users_table(self) -> DataFrame | None:
        """The users table at its pinned version; None where there is none."""
        return self.read_input("users") if "users" in self.run.input_versions else None

    def slice_of(self, name: str) -> DataFrame:
        """This run's rows of an output table."""
        return self.tables.read(name).where(f"run_id = '{self.run.run_id}'")

    def slice(self, name: str) -> Slice:
        """Where this run's rows of an output table are; the table is made if it is missing."""
        self.tables.ensure(name, self.ids)
        where = empty_slice(self.tables, name)
        return replace(where, partition=partition_of(where.spec, self.run), target_bytes=self._file_bytes)

    def files(self, name: str) -> Files:
        """This run's files of an output table."""
        where = self.slice(name)
        return Files(where, parts_of(where))

    def write_slice(self, name: str, df: DataFrame, function: BatchFunction = unchanged) -> Written:
        """Replace this run's rows of an output table by what ``function`` makes of ``df``, each task writing its own files."""
        where = self.slice(name)
        return self._commit(where, _written(where, df, function))

    def draft(self, spec: TableSpec) -> Slice:
        """Where the run keeps rows that later steps read and no table has; ``drop_drafts`` removes them."""
        return Slice(joined(self._drafts, spec.name), spec, self.ids, {}, self._file_bytes)

    def stage(self, spec: TableSpec, df: DataFrame) -> Files:
        """Replace the draft by the rows of ``df``, each task writing its own files."""
        where = self.draft(spec)
        remove(where.root)
        return Files(where, sorted(_written(where, df, unchanged), key=lambda part: part.first))

    def drop_drafts(self) -> None:
        remove(self._drafts)

    @property
    def _drafts(self) -> str:
        return joined(self.root, "drafts", self.run.run_id)

    @property
    def _file_bytes(self) -> int:
        return self.config.tables.target_file_mb * 2**20

    def unpoint(self, name: str) -> None:
        """Forget what ``point`` recorded."""
        unpoint(self.root, self.run.run_id, name)

    def write_table(self, name: str, table: pa.Table) -> Written:
        """The same for rows that the driver has."""
        where = self.slice(name)
        return self._commit(where, list(where.write(table.to_batches(), 0)))

    def _commit(self, where: Slice, parts: list[Part]) -> Written:
        version = commit(where, parts, {"run_id": self.run.run_id, "attempt": self.run.attempt})
        counts = sum((Counter(part.counts) for part in parts), Counter())
        return Written(version, sum(part.n_rows for part in parts), sum(part.n_bytes for part in parts), dict(counts))

    def point(self, name: str, value: Mapping[str, Any]) -> None:
        point(self.root, self.run.run_id, name, value)

    def pointed(self, name: str) -> dict[str, Any]:
        return pointed(self.root, self.run.run_id, name)

    def is_pointed(self, name: str) -> bool:
        return is_pointed(self.root, self.run.run_id, name)

    def put_folder(self, kind: str, write: Callable[[Path], None]) -> str:
        """A new artefact folder that ``write`` fills; its location."""
        return put_folder(self.root, kind, write, self.config.paths.state)

    def writing_files(self, kind: str) -> AbstractContextManager[Path]:
        """A local folder for files named by their content, which are artefacts when the block ends."""
        return writing_files(self.root, kind, self.config.paths.state)

    @property
    def cache(self) -> NodeCache:
        """Where each node has its copies of artefacts."""
        return self.config.paths.cache

    @property
    def bundle_dir(self) -> str:
        return bundle_folder(self.root, self.run.run_id)

    @property
    def catalogue_dir(self) -> str:
        return catalogue_folder(self.root, self.run.run_id)

    def open_catalogue(self) -> Catalogue:
        """The run's, mapped on the driver."""
        return open_catalogue(str(self.cache.localized(self.catalogue_dir)))

    @cached_property
    def bundle(self) -> Bundle:
        """The run's model, verified."""
        return load_bundle(self.cache.localized(self.bundle_dir))


def empty_slice(tables: Tables, name: str) -> Slice:
    """A table that is there, of no run yet."""
    return Slice(tables.folder(name), TABLES[name], tables.require_ids(), {}, 2**26)


def partition_of(spec: TableSpec, run: Run) -> dict[str, str | dt.date]:
    """Partition values of a run's slice."""
    values: dict[str, str | dt.date] = {"run_id": run.run_id, "run_date": run.run_date}
    return {column: values[column] for column in spec.partition_by}


def _written(where: Slice, df: DataFrame, function: BatchFunction) -> list[Part]:
    rows = df.mapInArrow(part_writer(function, where), spark_ddl(PART_SCHEMA)).collect()
    return [part_of_row(row.asDict()) for row in rows]


def run_rows(tables: Tables) -> list[dict[str, Any]]:
    """Every manifest row, maps as dicts; empty before the first night."""
    return rows_in(tables.folder("runs")) if tables.exists("runs") else []


def manifest_of(tables: Tables) -> Slice:
    """Where manifest rows go; the table is made if it is missing."""
    ids = tables.require_ids()
    tables.ensure("runs", ids)
    return Slice(tables.folder("runs"), TABLES["runs"], ids, {}, 2**20)


def append_runs(where: Slice, runs: list[Run]) -> None:
    """Append manifest rows in one commit, so that a reader sees all of them or none."""
    rows = pa.Table.from_pylist([run.row() for run in runs], schema=where.schema)
    append(where, rows, {"run_ids": [run.run_id for run in runs], "status": runs[-1].status})


def open_night(
    spark: SparkSession,
    config: Config,
    run_date: dt.date,
    *,
    run_id: str | None = None,
    force: bool = False,
    begin: bool = True,
    incremental: bool = False,
    as_it_is: bool = False,
) -> Night:
    """Resume the date's unfinished run, or begin one.

    Args:
        run_id: that run, instead of the date's newest.
        force: begin a new run even if the date is published.
        begin: False for a step that cannot be a run's first.
        as_it_is: go on with the run although the inputs, the model or the settings are others by now.

    Raises:
        AlreadyDone: the date (or run) is published.
        InputMissing: nothing ingested, no champion model, or no such run where ``begin`` is False.
    """
    tables = Tables(spark, config)
    ids = tables.require_ids()
    fit_shuffles(spark, config, tables)
    states = run_manifest.fold(run_rows(tables))
    known = states.get(run_manifest.check_run_id(run_id)) if run_id else run_manifest.newest_of(states, run_date)
    if known is not None and known.run_date != run_date:
        raise InputMissing(f"run {run_id} is of {known.run_date}, not of {run_date}: pass --run-date {known.run_date}")
    if known is not None and not force and known.status in ("PUBLISHED", "ROLLED_BACK"):
        raise AlreadyDone(_finished(known))
    registry = Registry(config)
    night = Night(spark, config, tables, ids, known or _no_run(run_date), artifact_root(config.paths.warehouse), registry, incremental)
    fresh = _inputs(tables)
    reason = _why_not_resume(night, known, fresh) if known is not None and not force and not as_it_is else None
    if known is not None and not force and reason is None:
        logger.info(
            "resuming run %s (attempt %d): %s done", known.run_id, known.attempt + 1, ", ".join(sorted(known.table_versions)) or "nothing"
        )
        # Not recorded yet: a command that finds nothing to do leaves no row.
        night.run = replace(known, attempt=known.attempt + 1, status="AUDITED" if known.status == "AUDITED" else "RUNNING")
        return night
    if not begin and not force:
        raise InputMissing(reason or f"no run of {run_date} has begun: run `recsys-batch embed --run-date {run_date}` or nightly first")
    if reason:
        logger.info("beginning a new run: %s", reason)
    _begin(night, run_date, run_id if known is None and run_id else run_manifest.next_run_id(states, run_date), fresh)
    return night


def _begin(night: Night, run_date: dt.date, run_id: str, inputs: Mapping[str, int]) -> None:
    champion = night.registry.champion()
    if champion is None:
        alias, name = night.config.mlflow.alias, night.config.mlflow.model_name
        raise InputMissing(f"model {name} has no alias {alias}: run `recsys-batch train`, or `recsys-batch register` your own")
    Path(night.config.paths.state).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="recsys-batch-", dir=night.config.paths.state) as download:
        bundle = night.registry.fetch(champion.version, Path(download))
        folder = night.put_folder("bundles", lambda target: _copy_files(bundle.path, target))
    point(night.root, run_id, "bundle", {"folder": name_of(folder), "model_version": champion.version, "digest": bundle.digest})
    now = dt.datetime.now(dt.UTC)
    night.run = Run(
        run_id=run_id,
        run_date=run_date,
        attempt=1,
        status="RUNNING",
        published_at=None,
        table_versions={},
        input_versions=inputs,
        model_version=champion.version,
        code_version=__version__,
        config_hash=night.config.config_hash(),
        metrics={run_manifest.STARTED_AT: now.timestamp(), **_model_metric(bundle)},
        mlflow_run_id=night.registry.start_night(run_id, {"run_date": run_date.isoformat(), "model_version": champion.version}),
    )
    night.record()
    logger.info("run %s began with model version %s on inputs %s", run_id, champion.version, dict(inputs))


def _model_metric(bundle: Bundle) -> dict[str, float]:
    found = bundle.manifest.get("metrics", {}).get("ndcg_at_10")
    return {MODEL_METRIC: float(found)} if found is not None else {}


def _why_not_resume(night: Night, run: Run, inputs: Mapping[str, int]) -> str | None:
    """A sentence why the unfinished run's rows cannot be continued; None when they can."""
    config, registry = night.config, night.registry
    if not exists(run_folder(night.root, run.run_id)) or ("topk" in run.table_versions and not night.files("topk").parts):
        return f"run {run.run_id} is no longer kept: maintain removed what it had written"
    if run.config_hash != config.config_hash():
        return f"run {run.run_id} was begun with other settings (config hash {run.config_hash}, now {config.config_hash()})"
    if run.code_version != __version__:
        return f"run {run.run_id} was begun by release {run.code_version}, this is {__version__}"
    if run.status != "FAILED":
        return None  # killed: it keeps to the model and the inputs that it began with
    champion = registry.champion()
    if champion is not None and champion.version != run.model_version:
        return f"run {run.run_id} failed with model version {run.model_version}, and {champion.version} is the champion now"
    if run.metrics.get(run_manifest.GATE_REFUSED) and dict(inputs) != dict(run.input_versions):
        return f"run {run.run_id} was refused by its audit, and the inputs have changed since"
    return None


def _inputs(tables: Tables) -> dict[str, int]:
    """Versions of the inputs that are there.

    Raises:
        UsageError: one lacks a column of the contract.
    """
    found = [name for name in _INPUTS if tables.exists(name)]
    for name in found:
        missing = [column.name for column in TABLES[name].columns if column.name not in tables.read(name).columns]
        if missing:
            lacking = f"table {name} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
            raise UsageError(f"{lacking} (docs/data-contract.md): write it as `recsys-batch ingest` does, or ingest it again")
    return {name: tables.version(name) for name in found}


def _copy_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


def _no_run(run_date: dt.date) -> Run:
    return Run("", run_date, 0, "RUNNING", None, {}, {}, "", __version__, "")


def _finished(run: Run) -> str:
    if run.status == "PUBLISHED":
        when = f"{run.published_at:%Y-%m-%d %H:%M:%S} UTC"
        return f"{run.run_date} is already published as run {run.run_id} at {when}; --force computes it again"
    return f"{run.run_date} was published as run {run.run_id} and rolled back; --force computes it again"
