"""Live lists of a run in Redis or Valkey, for the servers of all hosts: one follower writes, under a lease, and the others stand by.

A value is that of live_overlay.py, under the run's prefix; how far the lists go is a key of its own, written after a batch's records,
so that a batch whose writer died is written again. No command touches two keys, as in redis_store.py.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any

import redis

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.snapshot.live_overlay import OVERLAY_FORMAT
from recsys_batch.online.snapshot.redis_store import PIPELINE_RECORDS, first_line, live_key, progress_key, writer_key

_LEASE_SECONDS = 6.0

# A header begins with the batch_id. Two followers may write for a moment, when one was stopped longer than its lease.
_PUT_NEWER = """
local old = redis.call('GET', KEYS[1])
if old and struct.unpack('<i8', old) > struct.unpack('<i8', ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) else return 0 end"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end"


class LeaseLost(RecsysBatchError):
    """Another follower may write now; this one begins anew."""


class WriterLease:
    """Makes one follower the one that writes a run's live lists; another one takes over some seconds after it died.

    A thread holds it on beside the work, however long that takes.
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._key, self._token = client, writer_key(run_id), uuid.uuid4().hex
        self._renew, self._release = client.register_script(_RENEW), client.register_script(_RELEASE)
        self._until = 0.0
        self._released = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=self._key, daemon=True)

    @property
    def is_held(self) -> bool:
        """Whether this follower holds it for a moment yet."""
        return time.monotonic() < self._until

    def acquire(self) -> bool:
        """Take the lease, once; False where another follower has it. Raises RecsysBatchError: no answer."""
        began = time.monotonic()
        try:
            taken = self._client.set(self._key, self._token, nx=True, px=int(_LEASE_SECONDS * 1000))
        except redis.RedisError as error:
            raise _no_answer(error) from None
        if taken:
            self._extend(began)
            self._keeper.start()
        return bool(taken)

    def release(self) -> None:
        """Let another follower take it at once."""
        self._released.set()
        if self._keeper.ident is not None:
            self._keeper.join()
        self._until = 0.0
        try:
            self._release([self._key], [self._token])
        except redis.RedisError:
            return  # it ends by itself

    def _keep(self) -> None:
        while not self._released.wait(_LEASE_SECONDS / 6):
            began = time.monotonic()
            try:
                held = self._renew([self._key], [self._token, int(_LEASE_SECONDS * 1000)])
            except redis.RedisError:
                continue  # it may answer before the lease ends
            if not held:
                self._until = 0.0
                return
            self._extend(began)

    def _extend(self, began: float) -> None:
        self._until = began + _LEASE_SECONDS / 2  # as seen from here it ends sooner than there


class RedisOverlay:
    """Writes a run's live lists into Redis.

    They go after a time, one by one, as their users' keys expire, or sooner where the server is short of memory. So it is begun anew after
    half of that time, which puts all of them again.

    Args:
        source: whose versions are counted; what goes up to a version of another source is begun anew.
        lease: held, of this run; ``close`` releases it.

    Raises:
        RecsysBatchError: the server does not answer, here and in every method.
    """

    def __init__(self, client: Any, run_id: str, source: str, expire_seconds: int, lease: WriterLease) -> None:
        self._client, self._run_id, self._expire_seconds, self._lease = client, run_id, expire_seconds, lease
        self._put_newer = client.register_script(_PUT_NEWER)
        self._about = {"format": OVERLAY_FORMAT, "source": source}
        found = read_progress(client, run_id)
        is_ours = found.items() >= self._about.items()
        self._progress: dict[str, Any] = {"version": None, "checked_at": None, "began_at": time.time()}
        if is_ours:
            kept = self._progress if self._is_young(found) else ("checked_at",)
            self._progress |= {name: found[name] for name in kept}
        if self.version is None:
            self._write_progress()

    @property
    def is_in_place(self) -> bool:
        """Whether the overlay may be written on: the lease is held, its progress is not deleted, and it is not to begin anew."""
        if not self._lease.is_held:
            return False
        found = read_progress(self._client, self._run_id)
        return found.items() >= self._about.items() and self._is_young(found)

    @property
    def version(self) -> int | None:
        """Version of the source that it goes up to; None where it is new."""
        version: int | None = self._progress["version"]
        return version

    def add(self, records: Iterable[tuple[bytes, bytes]], version: int) -> None:
        """Put (key, value of ``encode_live_record``) of a batch, then move the version on. Raises LeaseLost."""
        batch = list(records)
        for first in range(0, len(batch), PIPELINE_RECORDS):
            self._require_lease()
            self._put(batch[first : first + PIPELINE_RECORDS])
        self._require_lease()
        self._progress["version"] = version
        self._write_progress()

    def note_checked(self) -> None:
        """Note that it has all that there is now. Raises LeaseLost."""
        self._require_lease()
        self._progress["checked_at"] = time.time()
        self._write_progress()

    def close(self) -> None:
        """Let another follower write it."""
        self._lease.release()

    def _is_young(self, progress: dict[str, Any]) -> bool:
        return time.time() - float(progress["began_at"]) < self._expire_seconds / 2

    def _require_lease(self) -> None:
        if not self._lease.is_held:
            raise LeaseLost(f"another follower may have taken over the live lists of {self._run_id} in Redis")

    def _put(self, records: list[tuple[bytes, bytes]]) -> None:
        try:
            # A cluster's pipeline takes no scripts: there it is a round trip for each record.
            pipe = None if isinstance(self._client, redis.RedisCluster) else self._client.pipeline(transaction=False)
            for key, value in records:
                self._put_newer([live_key(self._run_id, key)], [value, self._expire_seconds], client=pipe)
            if pipe is not None:
                pipe.execute()
        except redis.RedisError as error:
            raise _no_answer(error) from None

    def _write_progress(self) -> None:
        try:
            self._client.set(progress_key(self._run_id), json.dumps(self._about | self._progress), ex=self._expire_seconds)
        except redis.RedisError as error:
            raise _no_answer(error) from None


def read_progress(client: Any, run_id: str) -> dict[str, Any]:
    """Read how far a run's live lists go: format, source, version, checked_at, began_at; empty where nobody has written any."""
    try:
        progress: dict[str, Any] = json.loads(client.get(progress_key(run_id)) or b"{}")
    except redis.RedisError as error:
        raise _no_answer(error) from None
    return progress


def _no_answer(error: redis.RedisError) -> RecsysBatchError:
    return RecsysBatchError(f"the Redis store of live lists does not answer: {first_line(error)}")
