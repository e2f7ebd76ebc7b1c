"""A snapshot in use: its users' records, wherever they are, and who still needs it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.snapshot.live_overlay import LiveReader, decode_live_record
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.redis_store import RedisStore
from recsys_batch.online.snapshot.user_record import UserRecord, decode_record

logger = logging.getLogger("recsys_batch.online")

StoreStatus = Literal["available", "unavailable", "lost"]
"""Status of the store beside a snapshot: it has the snapshot's records, does not answer, or says that it has them no more."""
_CHECK_SECONDS = 1.0
_USERS_PER_TRIP = 100


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
        store_status: as ``check_store`` found it last; always available where lists are in the snapshot.
    """

    snapshot: Snapshot
    remote: RedisStore | None
    unload: Callable[[LoadedSnapshot], None]
    live: LiveReader | None = None
    live_store: RedisStore | None = None
    latency: LatencyTracker = field(default_factory=LatencyTracker)
    leases: int = 0
    stamp: tuple[int, int] = (0, 0)
    store_status: StoreStatus = "available"
    _check_store_at: float = -math.inf

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
            return self._without_store(user_id)
        return self._choose(user_id, key, live, record)

    async def lookup_many(self, user_ids: Sequence[int | str]) -> list[FoundRecord]:
        """``lookup`` of each of these users, a hundred in a round trip, where ``asks_network``."""
        found: list[FoundRecord] = []
        for start in range(0, len(user_ids), _USERS_PER_TRIP):
            found += await self._lookup_in_one_trip(user_ids[start : start + _USERS_PER_TRIP])
        return found

    async def _lookup_in_one_trip(self, user_ids: Sequence[int | str]) -> list[FoundRecord]:
        found = {user_id: FoundRecord(self._lookup_live(user_id)) for user_id in user_ids}
        keys = {user_id: key for user_id in user_ids if found[user_id].record is None and (key := self.snapshot.key(user_id)) is not None}
        try:
            fetched = await self._fetch_many(list(keys.values()))
        except StoreUnavailable:
            found |= {user_id: self._without_store(user_id) for user_id in keys}
        else:
            found |= {user_id: self._choose(user_id, key, *pair) for (user_id, key), pair in zip(keys.items(), fetched, strict=True)}
        return [found[user_id] for user_id in user_ids]

    def _choose(self, user_id: int | str, key: bytes, live: UserRecord | None, record: bytes | None) -> FoundRecord:
        """Choose among a user's live record and the night's, which are None where Redis does not have them."""
        if live is not None:
            return FoundRecord(live)
        if self.remote is None:
            return FoundRecord(self.snapshot.lookup(user_id))
        return FoundRecord(None, store_failed=self._has_lost(key)) if record is None else FoundRecord(decode_record(record))

    def _without_store(self, user_id: int | str) -> FoundRecord:
        return FoundRecord(self.snapshot.lookup(user_id) if self.remote is None else None, store_failed=True)

    def _has_lost(self, key: bytes) -> bool:
        """Whether the store should have the record of a key, and does not: its user is no stranger."""
        fingerprints = self.snapshot.fingerprints
        return self.store_status == "lost" if fingerprints is None else key in fingerprints

    async def check_store(self) -> None:
        """Ask the store, once a second at most, whether it still has the snapshot's records."""
        if self.remote is None or time.monotonic() < self._check_store_at:
            return
        self._check_store_at = time.monotonic() + _CHECK_SECONDS
        with self.lease():
            status = await find_store_status(self.remote)
        if status != self.store_status:
            logger.log(logging.INFO if status == "available" else logging.ERROR, "the store of %s is %s", self.snapshot.snapshot_id, status)
        self.store_status = status

    async def _fetch(self, key: bytes) -> tuple[UserRecord | None, bytes | None]:
        """Fetch (live record, the night's) from Redis, each None where Redis does not have it. Raises StoreUnavailable."""
        if self.live_store is None:
            assert self.remote is not None
            return None, await self.remote.fetch(key)
        if self.remote is None:
            return _decode_live(await self.live_store.fetch_live(key)), None
        live, record = await self.remote.fetch_both(key)
        return _decode_live(live), record

    async def _fetch_many(self, keys: Sequence[bytes]) -> list[tuple[UserRecord | None, bytes | None]]:
        """``_fetch`` for each of these keys."""
        live: Sequence[bytes | None] = [None] * len(keys) if self.live_store is None else await self.live_store.fetch_many_live(keys)
        night: Sequence[bytes | None] = [None] * len(keys) if self.remote is None else await self.remote.fetch_many(keys)
        return list(zip(map(_decode_live, live), night, strict=True))

    @property
    def asks_network(self) -> bool:
        """Whether some users' records are in Redis."""
        return self.remote is not None or self.live_store is not None

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


async def find_store_status(remote: RedisStore) -> StoreStatus:
    """Ask a store whether it has a snapshot's records."""
    try:
        return "lost" if await remote.record_count() is None else "available"
    except StoreUnavailable:
        return "unavailable"


def _decode_live(value: bytes | None) -> UserRecord | None:
    """Decode a live record; None where there is none, or it cannot be read: the night's holds then."""
    try:
        return decode_live_record(value) if value is not None else None
    except RecsysBatchError as error:
        logger.error("a live list in Redis is not used: %s", error)
        return None
