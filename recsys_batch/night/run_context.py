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
from recsys_batch.night.run_store import append_runs, empty_slice, manifest_of
from recsys_batch.registry.bundle import Bundle, load_bundle
from recsys_batch.registry.mlflow_registry import Registry
from recsys_batch.schemas import IdTypes, TableSpec, spark_ddl
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.spark.executors.part_writer import part_writer, unchanged
from recsys_batch.spark.tables import Tables
from recsys_batch.storage.artifacts import (
    bundle_folder,
    catalogue_folder,
    is_pointed,
    point,
    pointed,
    put_folder,
    unpoint,
    writing_files,
)
from recsys_batch.storage.filesystems import joined, remove
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.delta_log import commit, parts_of
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import PART_SCHEMA, DataFile, Slice, part_of_row
from recsys_batch.tables.user_ranges import Files

logger = logging.getLogger("recsys_batch.night")


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

    def _commit(self, where: Slice, parts: list[DataFile]) -> Written:
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
        return NodeCache.from_paths(self.config.paths)

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


def partition_of(spec: TableSpec, run: Run) -> dict[str, str | dt.date]:
    """Partition values of a run's slice."""
    values: dict[str, str | dt.date] = {"run_id": run.run_id, "run_date": run.run_date}
    return {column: values[column] for column in spec.partition_by}


def _written(where: Slice, df: DataFrame, function: BatchFunction) -> list[DataFile]:
    rows = df.mapInArrow(part_writer(function, where), spark_ddl(PART_SCHEMA)).collect()
    return [part_of_row(row.asDict()) for row in rows]
