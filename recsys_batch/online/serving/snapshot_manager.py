"""The snapshots that a worker answers from, and how it goes over to others under load.

A worker looks at CURRENT and ROUTES.json a few times a second. What they name is opened, verified and warmed in a thread beside the one
that answers, once however many roles it has (current, canary, shadow); then one assignment puts it in place. Lists, item features and
model of an answer come from one ``LoadedSnapshot``, so no answer mixes two. It is closed when no role and no request has it any more.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.api.encode import encode_answer, to_json
from recsys_batch.online.ranking.ladder import rank
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.runtime.loop_monitor import LoopMonitor
from recsys_batch.online.serving import traffic_split
from recsys_batch.online.serving.loaded_snapshot import LoadedSnapshot
from recsys_batch.online.serving.traffic_split import TrafficSplit
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.live_overlay import LiveReader
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable
from recsys_batch.online.snapshot.manifest import MANIFEST_FILE, SnapshotRefused, read_manifest
from recsys_batch.online.snapshot.reader import Snapshot, open_snapshot
from recsys_batch.online.snapshot.redis_store import RedisStore
from recsys_batch.online.snapshot.user_record import decode_record
from recsys_batch.online.snapshot.verify_process import verify_in_subprocess
from recsys_batch.storage.file_lock import acquire_flock

logger = logging.getLogger("recsys_batch.online")

WARM_REQUESTS = 24
_MODEL_POLL_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_PAUSE_SECONDS = 0.004
"""Seconds between requests that warm a snapshot: they share the interpreter's lock with those that are answered."""


class SnapshotManager:
    """Keeps a worker's snapshots loaded, each once, and goes over to others without a pause.

    Args:
        folder: of snapshots.
        open_remote: opens the store beside a snapshot of that id.
        open_live: opens the reader of a run's live lists; None where they are not followed, or in Redis.
        live_in_redis: whether they are there.
        check_model: says why the ranker of a snapshot with that model version cannot be used, or None; for rankers that are elsewhere.
        load_lock: a file that a server's workers lock in turn, so that they open a snapshot one after the other, not on all cores at once.
        poll_seconds: between two calls of ``poll``.

    Attributes:
        looks: watches the loop that calls ``poll``.
        current: None before the first snapshot is warm, or where there is none.
        refused: snapshot id -> why it was not taken.
        recent: the newest queries, to warm the next snapshot with.
    """

    def __init__(
        self,
        folder: Path,
        open_remote: Callable[[str], RedisStore],
        load_lock: Path,
        open_live: Callable[[str], LiveReader] | None = None,
        *,
        live_in_redis: bool = False,
        check_model: Callable[[str], Awaitable[str | None]] | None = None,
        poll_seconds: float = 0.1,
    ) -> None:
        self.folder = folder
        self.looks = LoopMonitor("following snapshots")
        self._live_looks = LoopMonitor("reading live lists")
        self._longest_pause = max(_LONGEST_PAUSE_SECONDS, 10 * poll_seconds)
        self._n_loading = 0
        self.current: LoadedSnapshot | None = None
        self.canary: LoadedSnapshot | None = None
        self.shadow: LoadedSnapshot | None = None
        self.routes = TrafficSplit()
        self.refused: dict[str, str] = {}
        self.recent: deque[RankQuery] = deque(maxlen=WARM_REQUESTS)
        self._open_remote, self._load_lock, self._open_live = open_remote, load_lock, open_live
        self._live_in_redis, self._check_model = live_in_redis, check_model
        self._look_again_at = math.inf
        self._loaded: dict[str, LoadedSnapshot] = {}
        self._closing: set[asyncio.Task[None]] = set()  # the loop itself holds its tasks only weakly
        self._seen: tuple[object, ...] | None = None

    def route(self, user_id: int | str) -> tuple[LoadedSnapshot | None, Literal["current", "canary"]]:
        """Choose the snapshot that answers a user, and its part: the canary for a share of the users, always the same ones."""
        if self.canary is not None and self.current is not None:
            key = self.current.snapshot.key(user_id)
            if key is not None and self.routes.is_canary(key):
                return self.canary, "canary"
        return self.current, "current"

    @property
    def stall(self) -> str | None:
        """Why what is served may be out of date: nobody has called ``poll`` for long. None where all is well, or a snapshot is loaded."""
        seconds = self.looks.seconds_since_look
        if seconds <= self._longest_pause or self._n_loading:
            return None
        return f"process {os.getpid()} has not looked for snapshots in {seconds:.0f} s: its log may say why; restart it"

    async def poll(self) -> bool:
        """Look for live lists, and whether other snapshots are wanted; go over to them; whether any were looked into."""
        for loaded in self._loaded.values():
            if loaded.live is not None:
                with self._live_looks.round():
                    loaded.live.poll()
        seen = (*_stamp(self.folder / repository.CURRENT_FILE), *_stamp(self.folder / traffic_split.ROUTES_FILE))
        if seen == self._seen and time.monotonic() < self._look_again_at:
            return False
        self._seen, self._look_again_at = None, math.inf  # what cannot be read now is read again
        current_id = repository.read_current(self.folder)
        try:
            routes = traffic_split.read_traffic_split(self.folder)
        except RecsysBatchError as error:
            logger.error("routes stay as they were: %s", error)
            routes = self.routes
        self._seen = seen
        self.refused = {}
        # Released at the end, so that a snapshot that only changes its role stays loaded.
        before = [loaded for loaded in (self.current, self.canary, self.shadow) if loaded is not None]
        self.current = await self._swap_in(self.current, current_id) or (self.current.acquire() if self.current is not None else None)
        self.canary = await self._swap_in(self.canary, routes.canary)
        self.shadow = await self._swap_in(self.shadow, routes.shadow)
        self.routes = routes
        for loaded in before:
            loaded.release()
        return True

    async def _swap_in(self, old: LoadedSnapshot | None, snapshot_id: str | None) -> LoadedSnapshot | None:
        """Lease the snapshot that a role wants, loading it if no role has it; None where it is refused or none is wanted."""
        if snapshot_id is None or snapshot_id in self.refused:
            return None
        try:
            if snapshot_id not in self._loaded or self._is_replaced(self._loaded[snapshot_id]):
                await self._require_model(snapshot_id)
                self._n_loading += 1
                try:
                    self._loaded[snapshot_id] = await asyncio.to_thread(self._load, snapshot_id)
                finally:
                    self._n_loading -= 1
        except Exception as error:  # whatever is wrong with it: what is served stays
            self._refuse(snapshot_id, error)
            return None
        new = self._loaded[snapshot_id].acquire()
        if new is not old:
            if new.remote is not None and (reason := await _missing_records(new.remote)):
                self._refuse(snapshot_id, RecsysBatchError(reason))
                new.release()
                return None
            logger.info("snapshot %s is in use", snapshot_id)
        return new

    def _is_replaced(self, loaded: LoadedSnapshot) -> bool:
        """Whether the snapshot's files are others than those that are open: an erasure has written it again."""
        stamp = _stamp(loaded.snapshot.folder / MANIFEST_FILE)
        return stamp not in (loaded.stamp, (0, 0))  # a folder that was removed is used on

    async def _require_model(self, snapshot_id: str) -> None:
        """Check that the model server has a snapshot's model. Raises SnapshotRefused: it has another one; it is asked again in a second."""
        if self._check_model is None:
            return
        version = read_manifest(self.folder / repository.check_name(snapshot_id)).facts.model_version
        if reason := await self._check_model(version):
            self._look_again_at = time.monotonic() + _MODEL_POLL_SECONDS
            raise SnapshotRefused(f"it is of model version {version}: {reason}")

    def _refuse(self, snapshot_id: str, error: Exception) -> None:
        self.refused[snapshot_id] = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.error("snapshot %s is refused: %s", snapshot_id, error)

    def _load(self, snapshot_id: str) -> LoadedSnapshot:
        folder = self.folder / repository.check_name(snapshot_id)
        with self._load_lock.open("a") as turn:
            acquire_flock(turn.fileno(), math.inf)
            if self.current is not None:  # somebody is being answered
                verify_in_subprocess(folder)
            stamp = _stamp(folder / MANIFEST_FILE)
            snapshot = open_snapshot(folder)
            store = self._open_remote(snapshot_id) if snapshot.store is None or self._live_in_redis else None
            warm_up(snapshot, list(self.recent))
            live = self._open_live(snapshot_id) if self._open_live is not None else None
            remote = store if snapshot.store is None else None
            return LoadedSnapshot(snapshot, remote, self._unload, live, store if self._live_in_redis else None, stamp=stamp)

    def _unload(self, loaded: LoadedSnapshot) -> None:
        if self._loaded.get(loaded.snapshot.snapshot_id) is loaded:
            del self._loaded[loaded.snapshot.snapshot_id]
        loaded.snapshot.close()
        if loaded.live is not None:
            loaded.live.close()
        store = loaded.remote or loaded.live_store
        if store is not None:
            self._closing.add(task := asyncio.get_running_loop().create_task(store.close()))
            task.add_done_callback(self._closing.discard)


def warm_up(snapshot: Snapshot, recent: list[RankQuery]) -> None:
    """Answer a request of every kind, and the ``recent`` ones of the snapshot before, so that the model's first runs, first imports and
    first reads of pages are nobody's request. Called in the thread that loads the snapshot.
    """
    records = [snapshot.store.get(key) for key in snapshot.store.sample_keys(WARM_REQUESTS)] if snapshot.store is not None else []
    queries = [replace(query, deadline=None) for query in recent] + _warm_up_queries(snapshot)
    for number in range(max(WARM_REQUESTS, len(queries))):
        query = queries[number % len(queries)]
        record = records[number % len(records)] if records else None
        time.sleep(_PAUSE_SECONDS)
        ranked = rank(snapshot, query, decode_record(record) if record else None, LatencyTracker())
        to_json(encode_answer(ranked, query, snapshot, "warm", ranked.stages))
    for query in _warm_up_queries(snapshot):
        rank(snapshot, query, None, LatencyTracker())


def _warm_up_queries(snapshot: Snapshot) -> list[RankQuery]:
    """Make a request of each kind, about the first items."""
    items = snapshot.items.item_ids(np.arange(min(3, len(snapshot.items))))
    now = dt.datetime.now(dt.UTC)
    plain = RankQuery(user_id=0, k=10)
    full = replace(plain, when=now, device="mobile", session_item_ids=items[:2], exclude_item_ids=items[2:], explain=True)
    return [plain, full, replace(plain, categories=snapshot.items.categories(0) if items else ())]


async def _missing_records(remote: RedisStore) -> str | None:
    """A sentence where the store says that it lacks records; a store that does not answer may have all of them."""
    try:
        n_records = await remote.record_count()
    except StoreUnavailable:
        return None
    return None if n_records is not None else "its users' lists are not in Redis, or have expired: export the run again"


def _stamp(path: Path) -> tuple[int, int]:
    """Changes whenever the file is replaced."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_ino)
