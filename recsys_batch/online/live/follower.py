"""The process that follows the stream for a server: tails topk_live, and adds each micro-batch to the overlay of its run.

Whatever goes wrong ends a ``Follower``, and another one takes its place, as server/supervisor.py starts a process that died again: an
overlay says how far it goes, so nothing is lost but time.
"""

import contextlib
import datetime as dt
import itertools
import logging
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from recsys_batch import logs
from recsys_batch.online import metrics
from recsys_batch.online.live.batch_records import LiveRun, open_live_run
from recsys_batch.online.live.overlay_stores import LocalOverlays, OtherWriter, Overlay, OverlayStore, RedisOverlays
from recsys_batch.online.runtime.loop_monitor import LoopMonitor
from recsys_batch.online.runtime.parent_watch import end_with_parent
from recsys_batch.online.runtime.process_marks import mark_started
from recsys_batch.online.serving.traffic_split import read_traffic_split
from recsys_batch.online.serving.worker_state import drop_dead_worker_gauges, read_worker_states
from recsys_batch.online.settings import LIVE_MARK, REDIS_URL, ServerSettings, settings_from_environment
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.live_overlay import overlays_folder
from recsys_batch.online.snapshot.redis_store import connect
from recsys_batch.storage.filesystems import absolute, exists, is_remote, join
from recsys_batch.tables.delta_log import iterate_commits, open_delta_table
from recsys_batch.tables.live_records import LiveBatch, read_batches

logger = logging.getLogger("recsys_batch.online")

_STORE_POLL_SECONDS = 1.0
"""Least seconds between two looks at a table in an object store: each is a request that is paid for."""
_PAUSE_SECONDS = 1.0
"""After a look that failed."""


class Follower:
    """Keeps the overlays of the runs whose snapshots a server answers from, or is about to.

    Args:
        state: the server's folder: what its workers have loaded, and the mark that says when all was known.
        store: of the overlays.
    """

    def __init__(self, warehouse: str, snapshots: Path, state: Path, store: OverlayStore) -> None:
        self._warehouse, self._snapshots, self._state, self._store = absolute(warehouse), snapshots, state, store
        self._root = join(self._warehouse, "topk_live")
        self._table: DeltaTable | None = None
        self._runs: dict[str, LiveRun] = {}
        self._overlays: dict[str, Overlay] = {}

    def poll(self) -> None:
        """Bring the overlays up to what topk_live has now, but those that others write, and mark the time when all runs last had all."""
        wanted = self._wanted_runs()
        if wanted != self._runs.keys():
            self._turn_to(wanted)
        if self._table is None:
            self._table = _open_table(self._root)
        times: list[float | None] = []
        if self._table is not None:
            if exists(join(self._root, "_delta_log", f"{self._table.version() + 1:020d}.json")):
                self._table.update_incremental()
            times = [self._follow(run, self._table) for run in self._runs.values()]
        known = [moment for moment in times if moment is not None]
        if len(known) == len(times):  # or else the last mark holds
            self._mark(min(known, default=time.time()))

    def close(self) -> None:
        for overlay in self._overlays.values():
            overlay.close()
        self._store.close()

    def _mark(self, seconds: float) -> None:
        with contextlib.suppress(FileNotFoundError):  # the server has ended
            os.utime(self._state / LIVE_MARK, (seconds, seconds))

    def _wanted_runs(self) -> set[str]:
        roles = [worker[role] for worker in read_worker_states(self._state) for role in ("current", "canary", "shadow")]
        named = {repository.read_pointers(self._snapshots).current, *read_traffic_split(self._snapshots).snapshot_ids, *roles}
        return named & set(repository.list_snapshots(self._snapshots))

    def _turn_to(self, wanted: set[str]) -> None:
        """Follow these runs, and remove the overlays of all others."""
        for run_id in self._overlays.keys() - wanted:
            self._overlays.pop(run_id).close()
        self._store.keep_only(wanted)
        runs = {run_id: self._runs.get(run_id) or open_live_run(self._warehouse, self._snapshots / run_id) for run_id in sorted(wanted)}
        self._runs, self._table = runs, None  # a new run may be another table's

    def _follow(self, run: LiveRun, table: DeltaTable) -> float | None:
        """Bring a run's overlay up to the table; when it, or who writes it, last had all lists, None where that one never had yet."""
        overlay = self._overlays.get(run.run_id)
        if overlay is not None and not overlay.is_in_place:
            self._overlays.pop(run.run_id).close()
            overlay = None
        if overlay is None:
            opened = self._store.open(run.run_id, str(table.metadata().id))
            if isinstance(opened, OtherWriter):
                return opened.checked_at
            overlay = self._overlays[run.run_id] = opened
        if overlay.version != table.version():
            for commit in reversed(_commits_since(self._root, table.version(), overlay.version, run.generated_at)):
                _add_batches(run, overlay, commit)
            overlay.add((), table.version())  # other runs' batches are passed over
        overlay.note_checked()
        return time.time()


def _add_batches(run: LiveRun, overlay: Overlay, commit: dict[str, Any]) -> None:
    for batch in read_batches([commit]):
        written_at = dt.datetime.fromtimestamp(commit["timestamp"] / 1000, dt.UTC)
        if batch.run_id != run.run_id or not _has_records(batch):
            continue
        try:
            overlay.add(run.records(batch, written_at), commit["version"])
        except FileNotFoundError as error:
            logger.warning("live lists of batch %d are gone, the ones before hold: %s", batch.version, error)
        metrics.LIVE_BATCHES.inc()


def _has_records(batch: LiveBatch) -> bool:
    if batch.files.get("topk_live") and not batch.files.get("candidates"):
        logger.warning("live lists of batch %d have no candidates: run the stream with online.live = table, or redis", batch.version)
    return bool(batch.files.get("candidates"))


def _open_table(root: str) -> DeltaTable | None:
    """Open topk_live; None before the first stream of the warehouse."""
    try:
        return open_delta_table(root)
    except TableNotFoundError:
        return None


def _commits_since(root: str, newest: int, version: int | None, since: dt.datetime) -> list[dict[str, Any]]:
    """List the commits of topk_live after a version, newest first; where it is None, those after a time."""
    commits = iterate_commits(root, newest)
    if version is not None:
        return list(itertools.takewhile(lambda commit: commit["version"] > version, commits))
    # A commit need not tell its time; the stream's do.
    return list(itertools.takewhile(lambda commit: commit.get("timestamp", math.inf) / 1000 >= since.timestamp(), commits))


def run_follower(settings: ServerSettings, stop: threading.Event) -> None:
    """Follow until ``stop`` is set. What goes wrong ends a follower, and the next one begins where its overlays end."""
    seconds = settings.poll_ms / 1000
    if is_remote(absolute(settings.warehouse)):
        seconds = max(seconds, _STORE_POLL_SECONDS)
    snapshots, state = Path(settings.snapshots), Path(settings.state)
    looks, follower = LoopMonitor("following live lists"), None
    mark_started(state, "live")
    while not stop.is_set():
        with looks.round():
            follower = follower or Follower(settings.warehouse, snapshots, state, _open_store(settings, snapshots))
            follower.poll()
        metrics.show_last_look("live", looks)
        metrics.count_failed_rounds()
        if looks.failure and follower is not None:
            _close(follower)
            follower = None
        stop.wait(max(seconds, _PAUSE_SECONDS) if looks.failure else seconds)
    if follower is not None:
        follower.close()


def _close(follower: Follower) -> None:
    try:
        follower.close()
    except Exception as error:  # of what has failed already
        logger.warning("a follower that failed could not be closed: %s", error)


def _open_store(settings: ServerSettings, snapshots: Path) -> OverlayStore:
    if settings.live == "table":
        return LocalOverlays(overlays_folder(snapshots))
    client = connect(os.environ[REDIS_URL], settings.redis_cluster)
    return RedisOverlays(client, int(settings.redis_expire_hours * 3600))


def follower_main() -> None:
    """Run the process that ``serve`` starts."""
    logs.configure(os.environ.get("RECSYS_BATCH_LOG_FORMAT", "text"))
    os.nice(10)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = settings_from_environment()
    end_with_parent(settings.server_pid, "the server")
    drop_dead_worker_gauges(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    run_follower(settings, stop)


if __name__ == "__main__":
    follower_main()
