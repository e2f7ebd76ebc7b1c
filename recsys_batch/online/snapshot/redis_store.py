"""Records in Redis or Valkey: filled in pipelines under a prefix of the run, read one key a request.

A key is ``recs:{snapshot}:{user key in hexadecimal}`` without braces, so a cluster spreads users over its slots, and nothing here
touches two keys in one command.
"""

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import redis
import redis.asyncio

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.settings import REDIS_URL, ServerSettings
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable

PIPELINE_RECORDS = 500  # records sent before their answers are read: about a megabyte
_BACKOFF_SECONDS = 0.25  # seconds that a store is left alone after it failed, so that requests don't all wait for it


def redis_key(snapshot_id: str, key: bytes) -> str:
    """Name the Redis key of a user's record."""
    return f"recs:{snapshot_id}:{key.hex()}"


def completion_key(snapshot_id: str) -> str:
    """Name the Redis key that says how many records the snapshot has in the store; it is written last."""
    return f"recs:{snapshot_id}:whole"


def live_key(run_id: str, key: bytes) -> str:
    """Name the Redis key of a user's live record."""
    return f"recs:{run_id}:live:{key.hex()}"


def progress_key(run_id: str) -> str:
    """Name the Redis key that says how far a run's live lists go."""
    return f"recs:{run_id}:live"


def writer_key(run_id: str) -> str:
    """Name the Redis key that says which follower writes a run's live lists."""
    return f"recs:{run_id}:live:writer"


def connect(url: str, cluster: bool = False) -> Any:
    """A client; ``redis://[:PASSWORD@]HOST:PORT/DB`` (rediss:// with TLS). Raises RecsysBatchError: not such a URL."""
    try:
        return (redis.RedisCluster if cluster else redis.Redis).from_url(url, socket_timeout=10)
    except ValueError as error:
        raise RecsysBatchError(f"the store's URL is not one that Redis takes: {error}") from None


def write_records(client: Any, snapshot_id: str, records: Iterable[tuple[bytes, bytes]], expire_seconds: int) -> int:
    """Put records, each expiring by itself; how many. Safe to do again. Raises RecsysBatchError: the server refused or went away."""
    n = 0
    pipe = client.pipeline(transaction=False)
    try:
        for key, value in records:
            pipe.set(redis_key(snapshot_id, key), value, ex=expire_seconds)
            n += 1
            if n % PIPELINE_RECORDS == 0:
                pipe.execute()
        pipe.execute()
    except redis.RedisError as error:
        raise RecsysBatchError(f"the Redis store stopped taking records after {n}: {first_line(error)}") from None
    return n


def mark_complete(client: Any, snapshot_id: str, n_records: int, expire_seconds: int) -> None:
    """Say that all records are there. Raises RecsysBatchError: the server refused or went away."""
    try:
        client.set(completion_key(snapshot_id), n_records, ex=expire_seconds)
    except redis.RedisError as error:
        raise RecsysBatchError(f"the Redis store does not answer: {first_line(error)}") from None


def has_records(client: Any, snapshot_id: str) -> bool:
    """Whether all records of a snapshot were put, and are not said to be gone. Raises RecsysBatchError: the server does not answer."""
    try:
        return bool(client.exists(completion_key(snapshot_id)))
    except redis.RedisError as error:
        raise RecsysBatchError(f"the Redis store does not answer: {first_line(error)}") from None


class RedisStore:
    """Asynchronous reader with a deadline per read and a rest after a failure."""

    def __init__(self, url: str, snapshot_id: str, *, cluster: bool = False, timeout: float = 0.02) -> None:
        kind = redis.asyncio.RedisCluster if cluster else redis.asyncio.Redis
        self._client: Any = kind.from_url(url, socket_timeout=timeout, socket_connect_timeout=max(timeout, 0.1))
        self._snapshot_id = snapshot_id
        self._backoff_until = 0.0

    async def fetch(self, key: bytes) -> bytes | None:
        """The record, None where there is none. Raises StoreUnavailable: no answer; at once while the store rests after a failure."""
        (record,) = await self._get(redis_key(self._snapshot_id, key))
        return record

    async def fetch_live(self, key: bytes) -> bytes | None:
        """The live record, None where there is none. Raises as ``fetch``."""
        (record,) = await self._get(live_key(self._snapshot_id, key))
        return record

    async def fetch_both(self, key: bytes) -> tuple[bytes | None, bytes | None]:
        """(live record, the night's) in one round trip. Raises as ``fetch``."""
        live, night = await self._get(live_key(self._snapshot_id, key), redis_key(self._snapshot_id, key))
        return live, night

    async def fetch_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records of these keys in one round trip, None where there is none. Raises as ``fetch``."""
        return await self._get(*(redis_key(self._snapshot_id, key) for key in keys))

    async def fetch_many_live(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Their live records. Raises as ``fetch``."""
        return await self._get(*(live_key(self._snapshot_id, key) for key in keys))

    async def _get(self, *keys: str) -> list[bytes | None]:
        if time.monotonic() < self._backoff_until:
            raise StoreUnavailable("the store failed a moment ago")
        try:
            if len(keys) == 1:
                return [await self._client.get(keys[0])]
            pipe = self._client.pipeline(transaction=False)
            for key in keys:
                pipe.get(key)
            found: list[bytes | None] = await pipe.execute()
            return found
        except (redis.RedisError, OSError, TimeoutError) as error:
            self._backoff_until = time.monotonic() + _BACKOFF_SECONDS
            raise StoreUnavailable(first_line(error)) from None

    async def record_count(self) -> int | None:
        """Records that were written, None where the writing never ended or has expired. Raises StoreUnavailable: no answer."""
        try:
            n_records = await self._client.get(completion_key(self._snapshot_id))
        except (redis.RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(first_line(error)) from None
        return int(n_records) if n_records is not None and n_records.isdigit() else None

    async def close(self) -> None:
        await self._client.aclose()


def first_line(error: BaseException) -> str:
    """Give the first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_remote_store(settings: ServerSettings, snapshot_id: str) -> RedisStore:
    """The store beside a snapshot. Raises RecsysBatchError: the environment does not name it."""
    url = os.environ.get(REDIS_URL)
    if not url:
        raise RecsysBatchError(f"lists of snapshot {snapshot_id} are in Redis: name the server in {REDIS_URL}")
    return RedisStore(url, snapshot_id, cluster=settings.redis_cluster, timeout=settings.store_timeout_ms / 1000)
