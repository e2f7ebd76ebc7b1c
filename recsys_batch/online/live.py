"""The snapshots that a worker answers from, and how it goes over to others under load.

A worker looks at CURRENT and ROUTES.json a few times a second. What they name is opened, verified and warmed in a thread beside the one
that answers; then one assignment puts it in place. Lists, item features and model of an answer come from one ``Loaded``, so no answer
mixes two. The old one is closed when the last request that has it is through.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online import folders, routes
from recsys_batch.online.latency import Latency
from recsys_batch.online.query import Query
from recsys_batch.online.ranking import rank
from recsys_batch.online.records import decode
from recsys_batch.online.redis_store import RedisStore
from recsys_batch.online.routes import Routes
from recsys_batch.online.snapshot import Snapshot, open_snapshot

logger = logging.getLogger("recsys_batch.online")

WARM_REQUESTS = 64


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

    def retire(self) -> None:
        """No new request gets it."""
        self.retired = True
        self._close_if_free()

    def _close_if_free(self) -> None:
        if self.retired and self.leases == 0:
            self.snapshot.close()


class Live:
    """What a worker answers from.

    Attributes:
        current: None before the first snapshot is warm, or where there is none.
        refused: snapshot id -> why it was not taken.
    """

    def __init__(self, folder: Path, open_remote: Callable[[str], RedisStore]) -> None:
        self.folder = folder
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
        seen = (*_stamp(self.folder / folders.CURRENT), *_stamp(self.folder / routes.NAME))
        if seen == self._seen:
            return False
        self._seen = seen
        wanted = folders.current(self.folder)
        try:
            found = routes.read_routes(self.folder)
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
        if old is not None:
            old.retire()
        logger.info("snapshot %s is in use", name)
        return new

    def _load(self, name: str) -> Loaded:
        snapshot = open_snapshot(self.folder / folders.check_name(name))
        loaded = Loaded(snapshot, self._open_remote(name) if snapshot.store is None else None)
        warm(loaded, list(self.recent))
        return loaded


def warm(loaded: Loaded, recent: list[Query]) -> None:
    """Answer the newest requests, or some of the snapshot's users where there were none yet, so that the model's first runs and the pages'
    first reads are nobody's request.
    """
    snapshot = loaded.snapshot
    records = [snapshot.store.get(key) for key in snapshot.store.some(WARM_REQUESTS)] if snapshot.store is not None else []
    queries = recent or [Query(user_id=0, k=10)]
    for number in range(WARM_REQUESTS):
        query = replace(queries[number % len(queries)], deadline=None)
        key = snapshot.key(query.user_id)
        own = snapshot.store.get(key) if snapshot.store is not None and key is not None else None
        record = own or (records[number % len(records)] if records else None)
        rank(snapshot, query, decode(record) if record else None, Latency())


def _stamp(path: Path) -> tuple[int, int]:
    """Changes whenever the file is replaced."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)
