"""A user who is erased from a snapshot is unknown to a server that had it open, and so in Redis; the others are answered as before."""

from pathlib import Path
from typing import Any

import redis

from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.erasure.redis_records import erase_from_redis, find_in_redis
from recsys_batch.erasure.snapshots import erase_from_snapshots, find_in_snapshots
from recsys_batch.online.snapshot.layout import LMDB_FILE
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.online.snapshot.redis_store import connect, live_key, redis_key, write_records
from recsys_batch.online.snapshot.user_key import user_key

USERS = ErasedUsers(frozenset(["6", "99999"]))


def test_a_running_server_loads_what_was_written_again(make: Any, serve: Any, current: Any, wait_for: Any) -> None:
    folder: Path = make("first")
    current(folder, "first")
    ranker = serve(folder)
    others = ranker.rank(5, k=5)["items"]
    assert ranker.rank(6)["source"] == "ranker" and find_in_snapshots(folder, USERS)["snapshot first"] == 2  # a sample, too
    erase_from_snapshots(folder, USERS)
    wait_for(lambda: ranker.rank(6)["degraded"] == "unknown_user")
    assert ranker.rank(5, k=5)["items"] == others
    assert find_in_snapshots(folder, USERS)["snapshot first"] == 0


def test_a_snapshot_that_this_process_has_open_is_read_on_and_opened_anew(make: Any) -> None:
    folder: Path = make("first")
    before = open_snapshot(folder / "first")
    key = user_key(6, "BIGINT")
    assert key is not None and key in (folder / "first" / LMDB_FILE).read_bytes()
    erase_from_snapshots(folder, USERS)
    assert key not in (folder / "first" / LMDB_FILE).read_bytes()
    after = open_snapshot(folder / "first")
    assert before.lookup(6) is not None and after.lookup(6) is None
    assert (before.manifest.n_users, after.manifest.n_users, len(after.store or ())) == (300, 299, 299)
    assert after.store is not None and before.store is not None
    assert [pair for pair in before.store.records() if pair[0] != key] == list(after.store.records())
    before.close()
    after.close()


def test_records_in_redis_are_deleted_in_every_run(server: Any) -> None:
    client, key, other = connect(server.url), b"s6", b"s5"
    for run in ("one", "two"):
        write_records(client, run, [(key, b"x"), (other, b"y")], 100)
        client.set(live_key(run, key), b"z")
    client.set(redis_key("one", user_key(6, "BIGINT") or b""), b"of a number")
    assert find_in_redis(server.url, ["one", "two"], USERS, cluster=False) == 5
    erase_from_redis(server.url, ["one", "two"], USERS, cluster=False)
    assert find_in_redis(server.url, ["one", "two"], USERS, cluster=False) == 0
    assert sorted(redis.Redis.from_url(server.url).keys()) == sorted(redis_key(run, other).encode() for run in ("one", "two"))
    client.close()
