"""The snapshots that a worker answers from, and how it goes over to others under load.

A worker looks at CURRENT and ROUTES.json a few times a second. What they name is opened, verified and warmed in a thread beside the one
that answers; then one assignment puts it in place. Lists, item features and model of an answer come from one ``Loaded``, so no answer
mixes two. The old one is closed when the last request that has it is through.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.api.encode import encode_answer, to_json
from recsys_batch.online.ranking.ladder import rank
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.serving import traffic_split
from recsys_batch.online.serving.traffic_split import TrafficSplit
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable
from recsys_batch.online.snapshot.reader import Snapshot, open_snapshot
from recsys_batch.online.snapshot.redis_store import RedisStore
from recsys_batch.online.snapshot.user_record import decode_record
from recsys_batch.online.snapshot.verify_process import verify_in_subprocess

logger = logging.getLogger("recsys_batch.online")

WARM_REQUESTS = 24
_BREATH = 0.004
"""Seconds between requests that warm a snapshot: they share the interpreter's lock with those that are answered."""


_CLOSING: set[asyncio.Task[None]] = set()
"""Clients being closed: the loop itself holds its tasks only weakly."""


@dataclass
class LoadedSnapshot:
    """A snapshot in use.

    Attributes:
        remote: the store beside it, None where lists are in the snapshot.
        latency: of its ranker; every model has its own.
    """

    snapshot: Snapshot
    remote: RedisStore | None
    latency: LatencyTracker = field(default_factory=LatencyTracker)
    leases: int = 0
    retired: bool = False

    def acquire(self) -> LoadedSnapshot:
        """Keep it open until ``give``."""
        self.leases += 1
        return self

    def release(self) -> None:
        self.leases -= 1
        self._close_if_free()

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep it open during the ``with`` block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def retire(self) -> None:
        """No new request gets it."""
        self.retired = True
        self._close_if_free()

    def _close_if_free(self) -> None:
        if self.retired and self.leases == 0:
            self.snapshot.close()
            if self.remote is not None:
                _CLOSING.add(task := asyncio.get_running_loop().create_task(self.remote.close()))
                task.add_done_callback(_CLOSING.discard)


class SnapshotManager:
    """What a worker answers from.

    Args:
        turns: a file that a server's workers lock in turn, so that they open a snapshot one after the other, not on all cores at once.

    Attributes:
        current: None before the first snapshot is warm, or where there is none.
        refused: snapshot id -> why it was not taken.
    """

    def __init__(self, folder: Path, open_remote: Callable[[str], RedisStore], turns: Path) -> None:
        self.folder = folder
        self._turns = turns
        self.current: LoadedSnapshot | None = None
        self.canary: LoadedSnapshot | None = None
        self.shadow: LoadedSnapshot | None = None
        self.routes = TrafficSplit()
        self.refused: dict[str, str] = {}
        self.recent: deque[RankQuery] = deque(maxlen=WARM_REQUESTS)
        self._open_remote = open_remote
        self._seen: tuple[object, ...] | None = None

    def route(self, key: bytes | None) -> LoadedSnapshot | None:
        """Whose answer a user gets."""
        if self.canary is not None and key is not None and self.routes.is_canary(key):
            return self.canary
        return self.current

    async def poll(self) -> bool:
        """Look whether other snapshots are wanted, and go over to them; whether anything was looked into."""
        seen = (*_stamp(self.folder / repository.CURRENT_FILE), *_stamp(self.folder / traffic_split.ROUTES_FILE))
        if seen == self._seen:
            return False
        self._seen = seen
        wanted = repository.read_current(self.folder)
        try:
            found = traffic_split.read_traffic_split(self.folder)
        except RecsysBatchError as error:
            logger.error("routes stay as they were: %s", error)
            found = self.routes
        self.refused = {}
        self.current = await self._swap_in(self.current, wanted) or self.current
        self.canary = await self._swap_secondary(self.canary, found.canary)
        self.shadow = await self._swap_secondary(self.shadow, found.shadow)
        self.routes = found
        return True

    async def _swap_secondary(self, old: LoadedSnapshot | None, name: str | None) -> LoadedSnapshot | None:
        """The canary or the shadow: none rather than one that nobody asked for any more."""
        new = await self._swap_in(old, name) if name else None
        if new is None and old is not None:
            old.retire()
        return new

    async def _swap_in(self, old: LoadedSnapshot | None, name: str | None) -> LoadedSnapshot | None:
        """The wanted snapshot in use, None where it is refused or none is wanted."""
        if name is None:
            return None
        if old is not None and old.snapshot.snapshot_id == name:
            return old
        try:
            new = await asyncio.to_thread(self._load, name)
        except Exception as error:  # whatever is wrong with it: what is served stays
            self.refused[name] = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.error("snapshot %s is refused: %s", name, error)
            return None
        if new.remote is not None and (why := await _missing_records(new.remote)):
            self.refused[name] = why
            logger.error("snapshot %s is refused: %s", name, why)
            new.retire()
            return None
        if old is not None:
            old.retire()
        logger.info("snapshot %s is in use", name)
        return new

    def _load(self, name: str) -> LoadedSnapshot:
        folder = self.folder / repository.check_name(name)
        with self._turns.open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if self.current is not None:  # somebody is being answered
                verify_in_subprocess(folder)
            snapshot = open_snapshot(folder)
            loaded = LoadedSnapshot(snapshot, self._open_remote(name) if snapshot.store is None else None)
            warm_up(loaded, list(self.recent))
            return loaded


async def _missing_records(remote: RedisStore) -> str | None:
    """A sentence where the store says that it lacks records; a store that does not answer may have all of them."""
    try:
        n_records = await remote.record_count()
    except StoreUnavailable:
        return None
    return None if n_records is not None else "its users' lists are not in Redis, or have expired: export the run again"


def warm_up(loaded: LoadedSnapshot, recent: list[RankQuery]) -> None:
    """Answer a request of every kind, and the newest requests, so that the model's first runs, first imports and first reads of pages are
    nobody's request.
    """
    snapshot = loaded.snapshot
    records = [snapshot.store.get(key) for key in snapshot.store.sample_keys(WARM_REQUESTS)] if snapshot.store is not None else []
    queries = [replace(query, deadline=None) for query in recent] + _warm_up_queries(snapshot)
    for number in range(max(WARM_REQUESTS, len(queries))):
        query = queries[number % len(queries)]
        record = records[number % len(records)] if records else None
        time.sleep(_BREATH)
        ranked = rank(snapshot, query, decode_record(record) if record else None, LatencyTracker())
        to_json(encode_answer(ranked, query, snapshot, "warm", ranked.stages))
    for query in _warm_up_queries(snapshot):
        rank(snapshot, query, None, LatencyTracker())


def _warm_up_queries(snapshot: Snapshot) -> list[RankQuery]:
    """A request of each kind, about the first items."""
    items = snapshot.items.item_ids(np.arange(min(3, len(snapshot.items))))
    now = dt.datetime.now(dt.UTC)
    plain = RankQuery(user_id=0, k=10)
    full = replace(plain, when=now, device="mobile", session_item_ids=items[:2], exclude_item_ids=items[2:], explain=True)
    return [plain, full, replace(plain, categories=snapshot.items.categories(0) if items else ())]


def _stamp(path: Path) -> tuple[int, int]:
    """Changes whenever the file is replaced."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)
