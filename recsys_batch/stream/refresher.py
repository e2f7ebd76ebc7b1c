"""A micro-batch: what was appended to interactions since, whose lists it changes, and their new rows in topk_live."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from recsys_batch.dataset.popularity import counts_path, group_by_segment, rank_popular_items, sum_counts
from recsys_batch.dataset.user_events import EVENTS
from recsys_batch.errors import InputMissing
from recsys_batch.schemas import spark_ddl
from recsys_batch.spark.executors.changed_events import read_event_file
from recsys_batch.spark.executors.refresh import REFRESH_SCHEMA, Purpose, RecentEvents, RefreshTask, make_refresher
from recsys_batch.spark.run_artifacts import RunArtifacts
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import state_file
from recsys_batch.storage.filesystems import read_parquet
from recsys_batch.stream.event_store import EventStore
from recsys_batch.stream.item_changes import read_current_items
from recsys_batch.stream.live_table import LiveTable, WrittenFiles
from recsys_batch.tables.appended_files import AppendedFiles, NotAppendOnly, list_appended_versions
from recsys_batch.tables.delta_log import open_delta_table
from recsys_batch.tables.live_lists import compact_live_lists, read_users_of_batch
from recsys_batch.tables.live_records import live_record_slices
from recsys_batch.tables.slice_writer import DataFile, TableSlice

logger = logging.getLogger("recsys_batch.stream")

_USERS_PER_JOB, _EVENTS_PER_FILL = 20_000, 500_000
_BATCHES_PER_COMPACTION, _COMPACTED_FILE_BYTES = 100, 16 * 2**20
"""Every so many batches their small files become one, without lists that no longer hold; greater files are left to `maintain`."""
_USERS_PER_TASK = 64
"""Fewer users than this are not worth another task."""


@dataclass(frozen=True)
class RefreshedBatch:
    """Result of a micro-batch.

    Attributes:
        version: of interactions, that lists go up to now.
        seconds: that it took. lag_seconds: from the commit of its oldest events to the commit of its rows.
    """

    run_id: str
    version: int
    n_events: int
    n_users: int
    n_rows: int
    seconds: float
    lag_seconds: float


@dataclass(frozen=True)
class PreparedLists:
    """Lists of a batch that are written and not committed: files by table, of users with events up to a version of interactions."""

    started: float
    version: int
    n_events: int
    n_users: int
    files: WrittenFiles


@dataclass(frozen=True)
class _JobResult:
    files: WrittenFiles
    counts: pa.Table
    without_embedding: pa.Array


class Refresher:
    """Refreshes users of one published run. Its state on this machine is a cache: ``LiveTable`` says what is done."""

    def __init__(
        self, spark: SparkSession, artifacts: RunArtifacts, layers: Sequence[RunArtifacts], tables: WarehouseTables, where: TableSlice
    ) -> None:
        versions = artifacts.run.input_versions
        self.artifacts = artifacts
        self._spark, self._interactions, self._first_version = spark, tables.folder("interactions"), versions["interactions"]
        self._live = LiveTable(where, str(open_delta_table(self._interactions).metadata().id))
        self._tables, self._items_folder, self._items_version = tables, tables.folder("items"), versions["items"]
        self._items = read_current_items(artifacts, tables, versions["items"])
        self._counts_at_night = read_parquet(counts_path(artifacts.root, artifacts.run.run_id))
        layers_of_events = [layer.load_user_events() for layer in layers]
        self._task = RefreshTask(
            embed=artifacts.make_embed_task(artifacts.bundle, layers_of_events[0]),
            retrieve=artifacts.make_retrieve_task(self._rank_popular(self._counts_at_night)),
            score=artifacts.make_score_task(),
            change=None,
            layers=layers_of_events,
            target=where,
            records=live_record_slices(artifacts.root, artifacts.run.run_id, where) if artifacts.config.online.live != "off" else (),
            batch_id=0,
            purpose="modelled",
        )
        paths, name = artifacts.config.paths, f"{artifacts.run.run_id}.sqlite"
        self._store = EventStore(state_file(paths.warehouse, paths.state, "stream", name), artifacts.ids, self._first_version)
        self._n_batches = 0
        self._recover()

    @property
    def version(self) -> int:
        """The version of interactions up to which lists go."""
        return self._store.version

    def refresh(self, max_events: int) -> RefreshedBatch | None:
        """Refresh the users of the next appended events; None where nothing was appended.

        Args:
            max_events: a batch ends with the version that reaches so many.

        Raises:
            InputMissing: rows of interactions were removed or replaced since the night: its lists, and these, rest on them.
        """
        started = time.monotonic()
        appended = self._list_appended(self.version, max_events)
        if not appended:
            return None
        self._follow_items()
        return self._commit(self._make_lists(started, self._read_events(appended), appended[-1].version), appended)

    def make_lists_ahead(self, events: pa.Table) -> PreparedLists:
        """Make the lists of a batch whose events are being appended, as if that were the next version of interactions.

        Args:
            events: rows of EVENTS.
        """
        started = time.monotonic()
        self._follow_items()
        return self._make_lists(started, events, self.version + 1)

    def commit_ahead(self, prepared: PreparedLists, batch: str) -> RefreshedBatch | None:
        """Commit lists that were made ahead, if that batch is the next version of interactions; else drop them: None.

        Args:
            batch: that the events were appended as, of ``batch_metadata``.
        """
        appended = self._list_appended(self.version, 1)
        if appended and appended[0].metadata == batch:
            return self._commit(prepared, appended)
        self._store.confirm(self.version)
        return None

    def _make_lists(self, started: float, events: pa.Table, version: int) -> PreparedLists:
        """Write the files of a batch's lists, and prepare the store for them."""
        users = pc.unique(events["user_id"]).sort()
        files: WrittenFiles = {}
        unknown = [pa.array([], users.type)]
        for some in _split(users):
            lists = self._run_job("modelled", some, self._recent_events(some, events), version)
            self._store.prepare(lists.counts, some, lists.without_embedding, version)
            unknown.append(lists.without_embedding)
            _add_files(files, lists.files)
        for some in _split(pa.concat_arrays(unknown)):  # when all that the batch changed of popularity is counted
            _add_files(files, self._run_job("popular", some, self._recent_events(some, events), version).files)
        self._store.add_events(events, version)
        return PreparedLists(started, version, len(events), len(users), files)

    def _commit(self, prepared: PreparedLists, appended: Sequence[AppendedFiles]) -> RefreshedBatch:
        version, files = prepared.version, prepared.files
        self._live.commit(files, version)
        self._store.confirm(version)
        self._n_batches += 1
        if self._n_batches % _BATCHES_PER_COMPACTION == 0:
            compact_live_lists(self._task.target, max_file_bytes=_COMPACTED_FILE_BYTES)
        n_rows, lag = sum(file.n_rows for file in files.get("topk_live", [])), max(time.time() - appended[0].committed_ms / 1000, 0.0)
        seconds = time.monotonic() - prepared.started
        return RefreshedBatch(self.artifacts.run.run_id, version, prepared.n_events, prepared.n_users, n_rows, seconds, lag)

    def refresh_popular_lists(self) -> int:
        """Refresh popular lists of refreshed users without an embedding, where counts have moved since; the number of users."""
        users, version = self._store.outdated_unknown_users(), self.version
        for some in _split(users):
            lists = self._run_job("popular", some, self._store.read_events(some), version)
            self._live.commit(lists.files, version)
            self._store.mark_listed(some, version)
        return len(users)

    def close(self) -> None:
        self._store.close()

    def _follow_items(self) -> None:
        """Turn to the items table as it is now, where it has another version than before."""
        version = open_delta_table(self._items_folder).version()
        if version != self._items_version:
            self._items, self._items_version = read_current_items(self.artifacts, self._tables, version), version
            self._task = replace(self._task, change=self._items.change)

    def _recover(self) -> None:
        """Bring the store to what topk_live says is done: by what it had prepared, or by filling it again."""
        done = self._live.version()
        if done is None:
            self._store.clear(self._first_version)
            return
        if self._store.version <= done <= self._store.prepared:
            self._store.confirm(done)
        else:
            self._fill_store(done)
        # A second list of the same batch_id would not supersede the first: readers would have both.
        self._store.mark_listed(read_users_of_batch(self._live.where, done), done)

    def _fill_store(self, done: int) -> None:
        """Fill the store with everything since the night up to a version whose lists are written."""
        logger.info("reading again what interactions got since the night, up to version %d", done)
        self._store.clear(self._first_version)
        version = self._first_version
        while version < done:
            appended = [files for files in self._list_appended(version, _EVENTS_PER_FILL) if files.version <= done]
            version = appended[-1].version
            self._store.add_events(self._read_events(appended), version)
        self._store.confirm(version)
        for some in _split(self._store.users()):
            counted = self._run_job("counts", some, self._store.read_events(some, before=False), done)
            # How old their popular lists are is not looked up, unless they are of the newest batch.
            self._store.prepare(counted.counts, some, counted.without_embedding, done, listed=self._first_version - 1)
        self._store.confirm(done)

    def _recent_events(self, users: pa.Array, events: pa.Table) -> pa.Table:
        """Join what came before to the events of a batch, for some users."""
        return pa.concat_tables([self._store.read_events(users), events.filter(pc.is_in(events["user_id"], value_set=users))])

    def _list_appended(self, version: int, max_events: int) -> list[AppendedFiles]:
        try:
            return list_appended_versions(self._interactions, version, max_events)
        except NotAppendOnly as error:
            run_id = self.artifacts.run.run_id
            raise InputMissing(f"the lists of run {run_id} cannot be refreshed: {error}. Run `recsys-batch nightly`") from None

    def _read_events(self, appended: Sequence[AppendedFiles]) -> pa.Table:
        schema = EVENTS.arrow_schema(self.artifacts.ids)
        paths = [path for files in appended for path in files.paths]
        tables = [schema.empty_table(), *(pa.Table.from_batches(read_event_file(path, schema), schema) for path in paths)]
        return pa.concat_tables(tables).combine_chunks()

    def _rank_popular(self, counts: pa.Table) -> pa.Table:
        return rank_popular_items(counts, self._items.available, self.artifacts.config.tables.popular_items)

    def _run_job(self, purpose: Purpose, users: pa.Array, events: pa.Table, version: int) -> _JobResult:
        """Refresh users by Spark tasks, as many as are worth it; their files are not in the table yet."""
        task = replace(self._task, purpose=purpose, batch_id=version)
        if purpose == "popular":
            counts = sum_counts([self._counts_at_night, self._store.read_popularity()], self.artifacts.ids)
            popular = group_by_segment(self._rank_popular(counts), self._items.catalogue)
            task = replace(task, retrieve=replace(task.retrieve, popular=popular))
        n_tasks = min(math.ceil(len(users) / _USERS_PER_TASK), self._spark.sparkContext.defaultParallelism)
        cuts = [int(cut) for cut in np.linspace(0, len(users), n_tasks + 1)]
        function = make_refresher(task, RecentEvents(users, events.sort_by("user_id")), cuts)
        parts = self._spark.range(0, n_tasks, 1, n_tasks).mapInArrow(function, spark_ddl(REFRESH_SCHEMA)).toArrow()
        ids = self.artifacts.ids
        files: WrittenFiles = {}
        for text in parts["files"].to_pylist():
            _add_files(files, {name: [DataFile(**file) for file in written] for name, written in json.loads(text).items()})
        counts = sum_counts([_from_ipc(part) for part in parts["counts"].to_pylist()], ids)
        without = [_from_ipc(part)["user_id"].combine_chunks() for part in parts["without_embedding"].to_pylist()]
        return _JobResult(files, counts, pa.concat_arrays([pa.array([], ids.user_arrow), *without]).sort())


def _split(users: pa.Array) -> Iterator[pa.Array]:
    """Split users into those of a job each."""
    return (users[first : first + _USERS_PER_JOB] for first in range(0, len(users), _USERS_PER_JOB))


def _add_files(files: WrittenFiles, more: Mapping[str, list[DataFile]]) -> None:
    for name, written in more.items():
        files.setdefault(name, []).extend(written)


def _from_ipc(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()
