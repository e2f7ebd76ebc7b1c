"""Records of erased users in Redis or Valkey: those of every snapshot and of every run's live lists."""

from collections.abc import Collection, Iterator
from contextlib import closing
from typing import Any

import redis

from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.snapshot.redis_store import connect, first_line, live_key, redis_key
from recsys_batch.online.snapshot.user_key import user_key


def find_in_redis(url: str, run_ids: Collection[str], users: ErasedUsers, *, cluster: bool) -> int:
    """Count the records of these users."""
    with closing(connect(url, cluster)) as client:
        return sum(_ask(client.exists, key) for key in _record_keys(run_ids, users))


def erase_from_redis(url: str, run_ids: Collection[str], users: ErasedUsers, *, cluster: bool) -> None:
    """Delete the records of these users. Raises RecsysBatchError: the server does not answer."""
    with closing(connect(url, cluster)) as client:
        for key in _record_keys(run_ids, users):
            _ask(client.unlink, key)


def _record_keys(run_ids: Collection[str], users: ErasedUsers) -> Iterator[str]:
    """List the names that a user's records may have, whatever the type of ids is."""
    keys = {key for text in users.ids for kind in ("BIGINT", "STRING") if (key := user_key(text, kind)) is not None}
    return (name(run_id, key) for run_id in run_ids for key in sorted(keys) for name in (redis_key, live_key))


def _ask(command: Any, key: str) -> int:
    try:
        return int(command(key))
    except redis.RedisError as error:
        raise RecsysBatchError(f"the Redis store does not answer: {first_line(error)}") from None
