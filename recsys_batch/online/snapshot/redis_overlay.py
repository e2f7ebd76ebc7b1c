"""Live lists of a run in Redis or Valkey, for the servers of all hosts: one follower writes, under a lease, and the others stand by.

A value is that of live_overlay.py, under the run's prefix; how far the lists go is a key of its own, written after a batch's records,
so that a batch whose writer died is written again. No command touches two keys, as in redis_store.py.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from typing import Any

import redis

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.snapshot.live_overlay import OVERLAY_FORMAT
from recsys_batch.online.snapshot.redis_store import first_line, live_key, progress_key

_PIPELINE_RECORDS = 500
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
    """Another follower writes now; this one begins anew."""


class WriterLease:
    """Makes one follower of a warehouse the one that writes; another one takes over some seconds after it died."""

    def __init__(self, client: Any, warehouse: str) -> None:
        self._client, self._key, self._token = client, f"recs:live:writer:{warehouse}", uuid.uuid4().hex
        self._renew, self._release = client.register_script(_RENEW), client.register_script(_RELEASE)
        self._until = 0.0

    @property
    def is_held(self) -> bool:
        """Whether it is held for a moment yet."""
        return time.monotonic() < self._until

    def renew(self) -> bool:
        """Take the lease, or hold it longer; False where another follower has it. Raises RecsysBatchError: no answer."""
        began, milliseconds = time.monotonic(), int(_LEASE_SECONDS * 1000)
        try:
            held = self._renew([self._key], [self._token, milliseconds]) or self._client.set(
                self._key, self._token, nx=True, px=milliseconds
            )
        except redis.RedisError as error:
            raise _no_answer(error) from None
        # As seen from here it ends sooner than there.
        self._until = began + _LEASE_SECONDS / 2 if held else 0.0
        return bool(held)

    def release(self) -> None:
        """Let another follower take it at once."""
        self._until = 0.0
        try:
            self._release([self._key], [self._token])
        except redis.RedisError:
            return  # it ends by itself


class RedisOverlay:
    """Writes a run's live lists into Redis.

    Args:
        source: whose versions are counted; what goes up to a version of another source is begun anew.

    Raises:
        RecsysBatchError: the server does not answer, here and in every method.
    """

    def __init__(self, client: Any, run_id: str, source: str, expire_seconds: int, lease: WriterLease) -> None:
        self._client, self._run_id, self._expire_seconds, self._lease = client, run_id, expire_seconds, lease
        self._put_newer = client.register_script(_PUT_NEWER)
        self._about = {"format": OVERLAY_FORMAT, "source": source}
        self._version: int | None = None
        found = read_progress(client, run_id)
        if found.items() >= self._about.items():
            self._version = found["version"]
        else:
            self._write_progress()

    @property
    def is_in_place(self) -> bool:
        """Whether nobody has deleted what says how far it goes."""
        return read_progress(self._client, self._run_id).items() >= self._about.items()

    @property
    def version(self) -> int | None:
        """Version of the source that it goes up to; None where it is new."""
        return self._version

    def add(self, records: Iterable[tuple[bytes, bytes]], version: int) -> None:
        """Put (key, value of ``encode_live_record``) of a batch, then move the version on. Raises LeaseLost."""
        batch = list(records)
        for first in range(0, len(batch), _PIPELINE_RECORDS):
            if not self._lease.is_held and not self._lease.renew():
                raise LeaseLost("another follower has taken over the live lists in Redis")
            self._put(batch[first : first + _PIPELINE_RECORDS])
        self._version = version
        self._write_progress()

    def note_checked(self) -> None:
        """Note that it has all that there is now."""
        self._write_progress()

    def close(self) -> None:
        pass

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
        about = {**self._about, "version": self._version, "checked_at": time.time()}
        try:
            self._client.set(progress_key(self._run_id), json.dumps(about), ex=self._expire_seconds)
        except redis.RedisError as error:
            raise _no_answer(error) from None


def read_progress(client: Any, run_id: str) -> dict[str, Any]:
    """Read how far a run's live lists go: format, source, version, checked_at; empty where nobody has written any."""
    try:
        progress: dict[str, Any] = json.loads(client.get(progress_key(run_id)) or b"{}")
    except redis.RedisError as error:
        raise _no_answer(error) from None
    return progress


def _no_answer(error: redis.RedisError) -> RecsysBatchError:
    return RecsysBatchError(f"the Redis store of live lists does not answer: {first_line(error)}")
