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
from recsys_batch.online.api.encode import answer, encode
from recsys_batch.online.ranking.ladder import rank
from recsys_batch.online.ranking.latency import Latency
from recsys_batch.online.ranking.rank_query import Query
from recsys_batch.online.serving import traffic_split
from recsys_batch.online.serving.traffic_split import Routes
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable
from recsys_batch.online.snapshot.reader import Snapshot, open_snapshot
from recsys_batch.online.snapshot.redis_store import RedisStore
from recsys_batch.online.snapshot.user_record import decode
from recsys_batch.online.snapshot.verify_process import verify_apart

logger = logging.getLogger("recsys_batch.online")

WARM_REQUESTS = 24
_BREATH = 0.004
"""Seconds between requests that warm a snapshot: they share the interpreter's lock with those that are answered."""


_CLOSING: set[asyncio.Task[None]] = set()
"""Clients being closed: the loop itself holds its tasks only weakly."""


@dataclass
class Loaded:
    """A snapshot in use.

    Attributes:
        remote: the store beside it, None where lists are in the snapshot.
        latency: of its ranker; every model has its own.
    """

    snapshot: Snapshot
    remote: RedisStore | None
    latency: Latency = field(default_factory=Latency)
    leases: int = 0
    retired: bool = False

    def take(self) -> Loaded:
        """Keep it open until ``give``."""
        self.leases += 1
        return self

    def give(self) -> None:
        self.leases -= 1
        self._close_if_free()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it open during the ``with`` block."""
        self.take()
        try:
            yield
        finally:
            self.give()

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


class Live:
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
        self.current: Loaded | None = None
        self.canary: Loaded | None = None
        self.shadow: Loaded | None = None
        self.routes = Routes()
        self.refused: dict[str, str] = {}
        self.recent: deque[Query] = deque(maxlen=WARM_REQUESTS)
        self._open_remote = open_remote
        self._seen: tuple[object, ...] | None = None

    def choose(self, key: bytes | None) -> Loaded | None:
        """Whose answer a user gets."""
        if self.canary is not None and key is not None and self.routes.to_canary(key):
            return self.canary
        return self.current

    async def refresh(self) -> bool:
        """Look whether other snapshots are wanted, and go over to them; whether anything was looked into."""
        seen = (*_stamp(self.folder / repository.CURRENT), *_stamp(self.folder / traffic_split.NAME))
        if seen == self._seen:
            return False
        self._seen = seen
        wanted = repository.current(self.folder)
        try:
            found = traffic_split.read_routes(self.folder)
        except RecsysBatchError as error:
            logger.error("routes stay as they were: %s", error)
            found = self.routes
        self.refused = {}
        self.current = await self._over_to(self.current, wanted) or self.current
        self.canary = await self._beside(self.canary, found.canary)
        self.shadow = await self._beside(self.shadow, found.shadow)
        self.routes = found
        return True

    async def _beside(self, old: Loaded | None, name: str | None) -> Loaded | None:
        """The canary or the shadow: none rather than one that nobody asked for any more."""
        new = await self._over_to(old, name) if name else None
        if new is None and old is not None:
            old.retire()
        return new

    async def _over_to(self, old: Loaded | None, name: str | None) -> Loaded | None:
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
        if new.remote is not None and (why := await _why_not_whole(new.remote)):
            self.refused[name] = why
            logger.error("snapshot %s is refused: %s", name, why)
            new.retire()
            return None
        if old is not None:
            old.retire()
        logger.info("snapshot %s is in use", name)
        return new

    def _load(self, name: str) -> Loaded:
        folder = self.folder / repository.check_name(name)
        with self._turns.open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if self.current is not None:  # somebody is being answered
                verify_apart(folder)
            snapshot = open_snapshot(folder)
            loaded = Loaded(snapshot, self._open_remote(name) if snapshot.store is None else None)
            warm(loaded, list(self.recent))
            return loaded


async def _why_not_whole(remote: RedisStore) -> str | None:
    """A sentence where the store says that it lacks records; a store that does not answer may have all of them."""
    try:
        n_records = await remote.whole()
    except StoreUnavailable:
        return None
    return None if n_records is not None else "its users' lists are not in Redis, or have expired: export the run again"


def warm(loaded: Loaded, recent: list[Query]) -> None:
    """Answer a request of every kind, and the newest requests, so that the model's first runs, first imports and first reads of pages are
    nobody's request.
    """
    snapshot = loaded.snapshot
    records = [snapshot.store.get(key) for key in snapshot.store.some(WARM_REQUESTS)] if snapshot.store is not None else []
    queries = [replace(query, deadline=None) for query in recent] + _kinds(snapshot)
    for number in range(max(WARM_REQUESTS, len(queries))):
        query = queries[number % len(queries)]
        record = records[number % len(records)] if records else None
        time.sleep(_BREATH)
        ranked = rank(snapshot, query, decode(record) if record else None, Latency())
        encode(answer(ranked, query, snapshot, "warm", ranked.stages))
    for query in _kinds(snapshot):
        rank(snapshot, query, None, Latency())


def _kinds(snapshot: Snapshot) -> list[Query]:
    """A request of each kind, about the first items."""
    items = snapshot.items.item_ids(np.arange(min(3, len(snapshot.items))))
    now = dt.datetime.now(dt.UTC)
    plain = Query(user_id=0, k=10)
    full = replace(plain, when=now, device="mobile", session_item_ids=items[:2], exclude_item_ids=items[2:], explain=True)
    return [plain, full, replace(plain, categories=snapshot.items.categories(0) if items else ())]


def _stamp(path: Path) -> tuple[int, int]:
    """Changes whenever the file is replaced."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)
