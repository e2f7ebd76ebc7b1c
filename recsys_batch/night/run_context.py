"""A run in progress: its session, tables, manifest, artefacts and pointers. Every step takes one, made by open_run, and gives a result."""

import datetime as dt
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.config import Config
from recsys_batch.night.run_store import append_runs, manifest_slice, slice_of_no_run
from recsys_batch.registry.bundle import Bundle
from recsys_batch.registry.mlflow_registry import ModelRegistry
from recsys_batch.schemas import IdTypes, TableSpec, spark_ddl
from recsys_batch.spark.concurrent_jobs import run_concurrently
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.spark.executors.part_writer import make_part_writer, pass_through
from recsys_batch.spark.run_artifacts import RunArtifacts
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage import artifacts
from recsys_batch.storage.filesystems import remove
from recsys_batch.tables.delta_log import commit, list_data_files
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import DATA_FILE_SCHEMA, DataFile, TableSlice, data_file_from_row
from recsys_batch.tables.user_ranges import UserSortedFiles

logger = logging.getLogger("recsys_batch.night")


OUTPUT_TABLES = ("user_embeddings", "item_embeddings", "popular", "candidates", "shortfalls", "topk")
"""Tables that every run has a slice of."""


@dataclass(frozen=True)
class CommittedSlice:
    """A committed slice: the table's version, rows and bytes of files, and what the tasks counted."""

    version: int
    rows: int
    n_bytes: int
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StepResult:
    """Result of a step: Delta versions by table, rows written, users handled, further numbers for the manifest."""

    versions: dict[str, int]
    rows: int
    users: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class RunContext:
    """A run in progress.

    ``run`` moves on with every row that ``append_manifest`` appends. ``incremental``: go on from the published night, where
    that is possible. ``backfill``: publish without taking readers to an earlier date.
    """

    spark: SparkSession
    config: Config
    tables: WarehouseTables
    ids: IdTypes
    run: Run
    root: str
    registry: ModelRegistry = field(repr=False)
    incremental: bool = False
    backfill: bool = False
    _ensured: set[str] = field(default_factory=set, init=False, repr=False)

    def append_manifest(self, *, other_runs: Sequence[Run] = (), **changes: Any) -> None:
        """Append the run's next manifest row, and those of other runs in the same commit."""
        self.run = self.run.next_event(**changes)
        append_runs(self._manifest, [self.run, *other_runs])

    @cached_property
    def _manifest(self) -> TableSlice:
        """Where manifest rows go, looked up once: a failure can be recorded when the JVM is what failed."""
        return manifest_slice(self.tables)

    def read_input(self, name: str) -> DataFrame:
        """Read an input table at the version pinned when the run began."""
        return self.tables.read(name, self.run.input_versions[name])

    def users_table(self) -> DataFrame | None:
        """Read the users table at its pinned version; None where there is none."""
        return self.read_input("users") if "users" in self.run.input_versions else None

    def join_segments(self, rows: DataFrame) -> DataFrame:
        """Join each user's segment to rows with a user_id; null for users without one."""
        table = self.users_table()
        if table is None:
            return rows.withColumn("segment", F.lit(None).cast("string"))
        return rows.join(table.select("user_id", "segment"), "user_id", "left")

    def read_slice(self, name: str) -> DataFrame:
        """Read this run's rows of an output table."""
        return self.tables.read(name).where(f"run_id = '{self.run.run_id}'")

    def table_slice(self, name: str) -> TableSlice:
        """Locate this run's slice of an output table; the table is made if it is missing."""
        if name not in self._ensured:
            self.tables.ensure(name, self.ids)
            self._ensured.add(name)
        target = slice_of_no_run(self.tables, name)
        return replace(target, partition=partition_values(target.spec, self.run), target_bytes=self.run_artifacts.file_bytes)

    def ensure_outputs(self) -> None:
        """Make the output tables that are missing, all at the same time: making one takes a warehouse's first night a third of a second."""
        run_concurrently(self.spark, *(partial(self.table_slice, name) for name in OUTPUT_TABLES))

    def slice_files(self, name: str) -> UserSortedFiles:
        """List this run's files of an output table."""
        target = self.table_slice(name)
        return UserSortedFiles(target, list_data_files(target))

    def write_slice(self, name: str, df: DataFrame, function: BatchFunction = pass_through) -> CommittedSlice:
        """Replace this run's rows of an output table by what ``function`` makes of ``df``, each task writing its own files."""
        target = self.table_slice(name)
        return self._commit(target, write_files(target, df, function))

    def write_driver_rows(self, name: str, table: pa.Table) -> CommittedSlice:
        """Replace this run's rows of an output table by a table held on the driver, in one commit."""
        target = self.table_slice(name)
        return self._commit(target, list(target.write(table.to_batches(), 0)))

    def _commit(self, target: TableSlice, files: list[DataFile]) -> CommittedSlice:
        version = commit(target, files, {"run_id": self.run.run_id, "attempt": self.run.attempt})
        counts = sum((Counter(file.counts) for file in files), Counter())
        return CommittedSlice(version, sum(file.n_rows for file in files), sum(file.n_bytes for file in files), dict(counts))

    @property
    def run_artifacts(self) -> RunArtifacts:
        """The run's artefacts, and the tasks that are made of them."""
        return RunArtifacts(self.config, self.run, self.ids, self.root)

    @cached_property
    def bundle(self) -> Bundle:
        """The run's model, verified."""
        return self.run_artifacts.bundle

    def write_gathered(self, spec: TableSpec, df: DataFrame) -> UserSortedFiles:
        """Replace gathered rows of users by those of ``df``, each task writing its own files; no table has them."""
        target = self.run_artifacts.gathered_slice(spec)
        remove(target.root)
        return UserSortedFiles(target, sorted(write_files(target, df, pass_through), key=lambda part: part.first))

    def set_pointer(self, name: str, value: Mapping[str, Any]) -> None:
        artifacts.set_pointer(self.root, self.run.run_id, name, value)

    def get_pointer(self, name: str) -> dict[str, Any]:
        return artifacts.get_pointer(self.root, self.run.run_id, name)

    def has_pointer(self, name: str) -> bool:
        return artifacts.has_pointer(self.root, self.run.run_id, name)

    def clear_pointer(self, name: str) -> None:
        """Remove the run's pointer, where there is one."""
        artifacts.clear_pointer(self.root, self.run.run_id, name)

    def put_folder(self, kind: str, write: Callable[[Path], None]) -> str:
        """Make a new artefact folder that ``write`` fills; returns its location."""
        return artifacts.put_folder(self.root, kind, write, self.config.paths.state)

    def stage_files(self, kind: str) -> AbstractContextManager[Path]:
        """Open a local folder for files named by their content, which are artefacts when the block ends."""
        return artifacts.stage_files(self.root, kind, self.config.paths.state)


def partition_values(spec: TableSpec, run: Run) -> dict[str, str | dt.date]:
    """Give the partition values of a run's slice of a table."""
    values: dict[str, str | dt.date] = {"run_id": run.run_id, "run_date": run.run_date}
    return {column: values[column] for column in spec.partition_by}


def write_files(target: TableSlice, df: DataFrame, function: BatchFunction) -> list[DataFile]:
    """Write what ``function`` makes of ``df`` as files of a slice, each task its own; nothing is committed."""
    rows = df.mapInArrow(make_part_writer(function, target), spark_ddl(DATA_FILE_SCHEMA)).collect()
    return [data_file_from_row(row.asDict()) for row in rows]
