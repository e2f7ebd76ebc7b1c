"""One night at work: the session, the tables, and the run whose rows are being written."""

from __future__ import annotations

import datetime as dt
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from recsys_batch.config import Config
from recsys_batch.dataset.catalogue import Catalogue, open_catalogue
from recsys_batch.night.run_store import append_runs, manifest_slice, slice_of_no_run
from recsys_batch.registry.bundle import Bundle, load_bundle
from recsys_batch.registry.mlflow_registry import ModelRegistry
from recsys_batch.schemas import IdTypes, TableSpec, spark_ddl
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.spark.executors.part_writer import make_part_writer, pass_through
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import (
    bundle_folder,
    catalogue_folder,
    clear_pointer,
    get_pointer,
    has_pointer,
    put_folder,
    set_pointer,
    stage_files,
)
from recsys_batch.storage.filesystems import join, remove
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.delta_log import commit, list_data_files
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import DATA_FILE_SCHEMA, DataFile, TableSlice, data_file_from_row
from recsys_batch.tables.user_ranges import UserSortedFiles

logger = logging.getLogger("recsys_batch.night")


@dataclass(frozen=True)
class CommittedSlice:
    """A committed slice: the table's version, rows and bytes of files, and what the tasks counted."""

    version: int
    rows: int
    n_bytes: int
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass
class RunContext:
    """A run in progress.

    ``run`` moves on with every row that ``record`` appends to the manifest. ``incremental``: go on from the published night, where
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

    def append_manifest(self, *, also: Sequence[Run] = (), **changes: Any) -> None:
        """Append the run's next manifest row, and those of other runs in the same commit."""
        self.run = self.run.next_event(**changes)
        append_runs(self._manifest, [self.run, *also])

    @cached_property
    def _manifest(self) -> TableSlice:
        """Looked up once: a failure can be recorded when the JVM is what failed."""
        return manifest_slice(self.tables)

    def read_input(self, name: str) -> DataFrame:
        """An input table at the version pinned when the run began."""
        return self.tables.read(name, self.run.input_versions[name])

    def users_table(self) -> DataFrame | None:
        """The users table at its pinned version; None where there is none."""
        return self.read_input("users") if "users" in self.run.input_versions else None

    def read_slice(self, name: str) -> DataFrame:
        """This run's rows of an output table."""
        return self.tables.read(name).where(f"run_id = '{self.run.run_id}'")

    def table_slice(self, name: str) -> TableSlice:
        """Where this run's rows of an output table are; the table is made if it is missing."""
        self.tables.ensure(name, self.ids)
        where = slice_of_no_run(self.tables, name)
        return replace(where, partition=partition_values(where.spec, self.run), target_bytes=self._file_bytes)

    def slice_files(self, name: str) -> UserSortedFiles:
        """This run's files of an output table."""
        where = self.table_slice(name)
        return UserSortedFiles(where, list_data_files(where))

    def write_slice(self, name: str, df: DataFrame, function: BatchFunction = pass_through) -> CommittedSlice:
        """Replace this run's rows of an output table by what ``function`` makes of ``df``, each task writing its own files."""
        where = self.table_slice(name)
        return self._commit(where, _written(where, df, function))

    def staging_slice(self, spec: TableSpec) -> TableSlice:
        """Where the run keeps rows that later steps read and no table has; ``drop_drafts`` removes them."""
        return TableSlice(join(self._drafts, spec.name), spec, self.ids, {}, self._file_bytes)

    def write_staging(self, spec: TableSpec, df: DataFrame) -> UserSortedFiles:
        """Replace the draft by the rows of ``df``, each task writing its own files."""
        where = self.staging_slice(spec)
        remove(where.root)
        return UserSortedFiles(where, sorted(_written(where, df, pass_through), key=lambda part: part.first))

    def delete_staging(self) -> None:
        remove(self._drafts)

    @property
    def _drafts(self) -> str:
        return join(self.root, "drafts", self.run.run_id)

    @property
    def _file_bytes(self) -> int:
        return self.config.tables.target_file_mb * 2**20

    def clear_pointer(self, name: str) -> None:
        """Forget what ``point`` recorded."""
        clear_pointer(self.root, self.run.run_id, name)

    def write_driver_rows(self, name: str, table: pa.Table) -> CommittedSlice:
        """The same for rows that the driver has."""
        where = self.table_slice(name)
        return self._commit(where, list(where.write(table.to_batches(), 0)))

    def _commit(self, where: TableSlice, parts: list[DataFile]) -> CommittedSlice:
        version = commit(where, parts, {"run_id": self.run.run_id, "attempt": self.run.attempt})
        counts = sum((Counter(part.counts) for part in parts), Counter())
        return CommittedSlice(version, sum(part.n_rows for part in parts), sum(part.n_bytes for part in parts), dict(counts))

    def set_pointer(self, name: str, value: Mapping[str, Any]) -> None:
        set_pointer(self.root, self.run.run_id, name, value)

    def get_pointer(self, name: str) -> dict[str, Any]:
        return get_pointer(self.root, self.run.run_id, name)

    def has_pointer(self, name: str) -> bool:
        return has_pointer(self.root, self.run.run_id, name)

    def put_folder(self, kind: str, write: Callable[[Path], None]) -> str:
        """A new artefact folder that ``write`` fills; its location."""
        return put_folder(self.root, kind, write, self.config.paths.state)

    def stage_files(self, kind: str) -> AbstractContextManager[Path]:
        """A local folder for files named by their content, which are artefacts when the block ends."""
        return stage_files(self.root, kind, self.config.paths.state)

    @property
    def cache(self) -> NodeCache:
        """Where each node has its copies of artefacts."""
        return NodeCache.from_paths(self.config.paths)

    @property
    def bundle_dir(self) -> str:
        return bundle_folder(self.root, self.run.run_id)

    @property
    def catalogue_dir(self) -> str:
        return catalogue_folder(self.root, self.run.run_id)

    def open_catalogue(self) -> Catalogue:
        """The run's, mapped on the driver."""
        return open_catalogue(str(self.cache.local_copy(self.catalogue_dir)))

    @cached_property
    def bundle(self) -> Bundle:
        """The run's model, verified."""
        return load_bundle(self.cache.local_copy(self.bundle_dir))


def partition_values(spec: TableSpec, run: Run) -> dict[str, str | dt.date]:
    """Partition values of a run's slice."""
    values: dict[str, str | dt.date] = {"run_id": run.run_id, "run_date": run.run_date}
    return {column: values[column] for column in spec.partition_by}


def _written(where: TableSlice, df: DataFrame, function: BatchFunction) -> list[DataFile]:
    rows = df.mapInArrow(make_part_writer(function, where), spark_ddl(DATA_FILE_SCHEMA)).collect()
    return [data_file_from_row(row.asDict()) for row in rows]
