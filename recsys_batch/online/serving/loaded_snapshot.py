"""A snapshot in use: its users' records, wherever they are, and who still needs it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.snapshot.live_overlay import LiveReader, decode_live_record
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.redis_store import RedisStore
from recsys_batch.online.snapshot.user_record import UserRecord, decode_record

logger = logging.getLogger("recsys_batch.online")


class FoundRecord(NamedTuple):
    """A user's record; with ``store_failed`` a better one may be in Redis, or the only one."""

    record: UserRecord | None
    store_failed: bool = False


@dataclass(eq=False)
class LoadedSnapshot:
    """A snapshot in use; every role and every request that has it holds a lease.

    Attributes:
        remote: the store beside it, None where lists are in the snapshot.
        unload: called when the last lease is released.
        live: lists of its run that the stream refreshed since, which are preferred; None where they are not followed, or in Redis.
        live_store: the store that has those lists; None where they are not in Redis.
        latency: of its ranker; every model has its own.
        stamp: time and inode of the manifest that it was opened by.
    """

    snapshot: Snapshot
    remote: RedisStore | None
    unload: Callable[[LoadedSnapshot], None]
    live: LiveReader | None = None
    live_store: RedisStore | None = None
    latency: LatencyTracker = field(default_factory=LatencyTracker)
    leases: int = 0
    stamp: tuple[int, int] = (0, 0)

    async def lookup(self, user_id: int | str) -> FoundRecord:
        """Read a user's record: the live one, or that of the snapshot or of Redis beside it. Raises RecsysBatchError: it is damaged."""
        if self.remote is None and self.live_store is None:
            return FoundRecord(self.lookup_here(user_id))
        live = self._lookup_live(user_id)
        key = self.snapshot.key(user_id)
        if live is not None or key is None:
            return FoundRecord(live)
        try:
            live, record = await self._fetch(key)
        except StoreUnavailable:
            return FoundRecord(self.snapshot.lookup(user_id) if self.remote is None else None, store_failed=True)
        if live is None and self.remote is None:
            return FoundRecord(self.snapshot.lookup(user_id))
        return FoundRecord(live or (decode_record(record) if record is not None else None))

    async def _fetch(self, key: bytes) -> tuple[UserRecord | None, bytes | None]:
        """Fetch (live record, the night's) from Redis, each None where Redis does not have it. Raises StoreUnavailable."""
        if self.live_store is None:
            assert self.remote is not None
            return None, await self.remote.fetch(key)
        if self.remote is None:
            return _decode_live(await self.live_store.fetch_live(key)), None
        live, record = await self.remote.fetch_both(key)
        return _decode_live(live), record

    @property
    def follows_live(self) -> bool:
        """Whether live lists are looked for."""
        return self.live is not None or self.live_store is not None

    def lookup_here(self, user_id: int | str) -> UserRecord | None:
        """Read a user's record where nothing is asked over a network. Raises RecsysBatchError: the record is damaged."""
        return self._lookup_live(user_id) or self.snapshot.lookup(user_id)

    def _lookup_live(self, user_id: int | str) -> UserRecord | None:
        if self.live is None or not self.live.is_open:
            return None
        key = self.snapshot.key(user_id)
        return self.live.get(key) if key is not None else None

    def acquire(self) -> LoadedSnapshot:
        """Keep the snapshot open until ``release``."""
        self.leases += 1
        return self

    def release(self) -> None:
        """Give a lease back; the last one closes the snapshot."""
        self.leases -= 1
        if self.leases == 0:
            self.unload(self)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep the snapshot open during the ``with`` block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _decode_live(value: bytes | None) -> UserRecord | None:
    """Decode a live record; None where there is none, or it cannot be read: the night's holds then."""
    try:
        return decode_live_record(value) if value is not None else None
    except RecsysBatchError as error:
        logger.error("a live list in Redis is not used: %s", error)
        return None
