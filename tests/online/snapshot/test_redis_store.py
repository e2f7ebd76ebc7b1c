"""Users' lists in a real redis-server."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.erasure.redis_records import erase_from_redis
from recsys_batch.erasure.snapshots import erase_from_snapshots, find_in_snapshots
from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.snapshot_models import SnapshotModels
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.snapshot.manifest import file_checksums
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.online.snapshot.redis_store import RedisStore, completion_key, connect, mark_complete, redis_key, write_records
from recsys_batch.online.snapshot.user_fingerprints import make_fingerprints


def put_records(server: Any, records: list[tuple[bytes, bytes]]) -> None:
    with connect(server.url) as client:
        assert write_records(client, "first", records, 1000) == 300
        mark_complete(client, "first", 300, 1000)


def records_of(folder: Path) -> list[tuple[bytes, bytes]]:
    snapshot = open_snapshot(folder / "first")
    assert snapshot.store is not None
    records = list(snapshot.store.records())
    snapshot.close()
    return records


def move_to_redis(folder: Path, *, with_fingerprints: bool) -> None:
    """Make a snapshot's manifest one of lists in Redis, of this release or of one before fingerprints."""
    keys = [key for key, _ in records_of(folder)]
    (folder / "first" / "users.lmdb").unlink()
    if with_fingerprints:
        make_fingerprints(keys).write(folder / "first" / "user_fingerprints.npy")
    manifest = json.loads((folder / "first" / "manifest.json").read_text())
    manifest |= {"store": "redis", "files": file_checksums(folder / "first")}
    (folder / "first" / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def in_redis(make: Any, server: Any) -> Path:
    """The made-up snapshot with its users' lists in Redis instead of LMDB, as releases before fingerprints wrote it."""
    folder: Path = make("first")
    put_records(server, records_of(folder))
    move_to_redis(folder, with_fingerprints=False)
    return folder


@pytest.fixture
def with_fingerprints(make: Any, server: Any) -> Path:
    """The same of this release."""
    folder: Path = make("first")
    put_records(server, records_of(folder))
    move_to_redis(folder, with_fingerprints=True)
    return folder


def test_records_expire_by_themselves_and_keys_name_their_snapshot(server: Any) -> None:
    client = connect(server.url)
    assert write_records(client, "run", ((bytes([n]), b"x" * n) for n in range(1, 256)), 100) == 255
    mark_complete(client, "run", 255, 100)
    for key in (redis_key("run", b"\x01"), completion_key("run")):
        assert 90 < client.ttl(key) <= 100 and key.startswith("recs:run:") and "{" not in key
    assert client.get(redis_key("run", b"\x05")) == b"xxxxx" and client.dbsize() == 256
    client.close()


def test_a_server_that_is_away_is_named_when_filling(server: Any) -> None:
    server.kill()
    with pytest.raises(RecsysBatchError, match="stopped taking records"):
        write_records(connect(server.url), "run", [(b"a", b"b")], 10)


def test_answers_from_redis_and_popular_while_it_is_away_and_back_by_itself(
    in_redis: Path, server: Any, serve: Any, current: Any, wait_for: Any, make: Any
) -> None:
    current(in_redis, "first")
    ranker = serve(in_redis, RECSYS_BATCH_REDIS_URL=server.url)
    told = ranker.rank(5, k=5)
    assert (told["source"], told["degraded"]) == ("ranker", None)
    assert ranker.rank("nobody")["degraded"] == "unknown_user"
    client = redis.Redis.from_url(server.url)
    saved = {key: client.get(key) for key in client.keys("recs:*")}
    server.kill()
    for _ in range(20):
        away = ranker.rank(5, k=5)
        assert (away["source"], away["degraded"]) == ("popular", "store_unavailable") and len(away["items"]) == 5
    assert ranker.call("GET", "/v1/users/5/topk")[0] == 503
    server.start()
    for key, value in saved.items():
        client.set(key, value)
    client.close()
    wait_for(lambda: ranker.rank(5, k=5)["source"] == "ranker", 10)
    assert ranker.rank(5, k=5)["items"] == told["items"]


def test_a_snapshot_whose_records_are_not_all_there_is_refused(
    in_redis: Path, server: Any, serve: Any, current: Any, wait_for: Any
) -> None:
    current(in_redis, "first")
    redis.Redis.from_url(server.url).delete(completion_key("first"))
    ranker = serve(in_redis, ready=False, RECSYS_BATCH_REDIS_URL=server.url)
    told = wait_for(lambda: (found := ranker.call("GET", "/readyz")) and found[0] == 503 and found[1])
    assert "export the run again" in told["error"]


def test_a_snapshot_in_redis_needs_the_url(in_redis: Path, serve: Any, current: Any, wait_for: Any) -> None:
    current(in_redis, "first")
    server = serve(in_redis, ready=False)
    told = wait_for(lambda: (found := server.call("GET", "/readyz")) and found[0] == 503 and found[1])
    assert "RECSYS_BATCH_REDIS_URL" in told["error"]


def test_users_of_a_store_that_lost_its_data_are_no_strangers_until_it_is_filled_again(
    make: Any, server: Any, serve: Any, current: Any, wait_for: Any
) -> None:
    folder: Path = make("first")
    records = records_of(folder)
    put_records(server, records)
    move_to_redis(folder, with_fingerprints=True)
    current(folder, "first")
    ranker = serve(folder, "--set", "online.store_timeout_ms=500", RECSYS_BATCH_REDIS_URL=server.url)
    assert ranker.rank(5)["source"] == "ranker" and ranker.call("GET", "/readyz")[1]["store"] == "available"
    redis.Redis.from_url(server.url).flushall()
    assert (ranker.rank(5)["degraded"], ranker.rank(10**9)["degraded"]) == ("store_unavailable", "unknown_user")
    assert (ranker.call("GET", "/v1/users/5/topk")[0], ranker.call("GET", f"/v1/users/{10**9}/topk")[0]) == (503, 404)
    told = wait_for(lambda: (found := ranker.call("GET", "/readyz")) and found[0] == 503 and found[1])
    assert "store_unavailable" in told["error"] and "export the run again" in told["error"]
    put_records(server, records)
    wait_for(lambda: ranker.call("GET", "/readyz")[0] == 200)
    assert ranker.rank(5)["source"] == "ranker"


def test_a_server_that_starts_before_the_store_is_filled_goes_over_once_it_is(
    make: Any, server: Any, serve: Any, current: Any, wait_for: Any
) -> None:
    folder: Path = make("first")
    records = records_of(folder)
    move_to_redis(folder, with_fingerprints=True)
    current(folder, "first")
    ranker = serve(folder, "--set", "online.store_timeout_ms=500", ready=False, RECSYS_BATCH_REDIS_URL=server.url)
    assert ranker.call("GET", "/readyz")[0] == 503
    put_records(server, records)
    wait_for(lambda: ranker.call("GET", "/readyz")[0] == 200)
    assert ranker.rank(5)["source"] == "ranker"


class Opened:
    """A worker's snapshots and models, in this process."""

    def __init__(self, folder: Path, server: Any, lock: Path) -> None:
        self.stores: list[RedisStore] = []
        self.manager = SnapshotManager(folder, lambda name: RedisStore(server.url, name, timeout=5.0), lock)
        self.models = SnapshotModels(self.manager, 50, FreshnessPolicy(36, None))

    async def recommend(self, *users: int) -> list[list[str]]:
        found = await DynamicBatcher().infer(self.models.get("recommend", None), {"user_id": np.array(users)})
        return [[item.decode() for item in row] for row in found["item_id"].tolist()]

    async def lookup(self, user: int) -> Any:
        assert self.manager.current is not None
        return await self.manager.current.lookup(user)

    async def check_store(self) -> None:
        assert self.manager.current is not None
        self.manager.current._check_store_at = 0.0
        await self.manager.current.check_store()


def test_before_fingerprints_everybody_unknown_counts_as_lost_while_the_store_says_so(in_redis: Path, server: Any, current: Any) -> None:
    async def steps() -> None:
        opened = Opened(in_redis, server, in_redis / "lock")
        await opened.manager.poll()
        await opened.check_store()
        assert await opened.lookup(10**9) == (None, False)
        redis.Redis.from_url(server.url).flushall()
        await opened.check_store()
        assert await opened.lookup(10**9) == (None, True) == await opened.lookup(5)
        assert not opened.models.ready()

    current(in_redis, "first")
    asyncio.run(steps())


def test_a_record_that_was_evicted_is_missed_and_an_erased_user_is_a_stranger(with_fingerprints: Path, server: Any, current: Any) -> None:
    erased = ErasedUsers(frozenset(["6"]))

    async def steps() -> None:
        opened = Opened(with_fingerprints, server, with_fingerprints / "lock")
        await opened.manager.poll()
        assert (await opened.lookup(6)).record is not None
        assert find_in_snapshots(with_fingerprints, erased)["snapshot first"] == 2  # a sample, too
        erase_from_redis(server.url, ["first"], erased, cluster=False)
        assert await opened.lookup(6) == (None, True)
        erase_from_snapshots(with_fingerprints, erased)
        assert find_in_snapshots(with_fingerprints, erased)["snapshot first"] == 0
        await opened.manager.poll()
        assert await opened.lookup(6) == (None, False) and opened.manager.current is not None
        assert opened.manager.current.snapshot.manifest.n_users == 299
        key = opened.manager.current.snapshot.key(7)
        assert key is not None
        redis.Redis.from_url(server.url).delete(redis_key("first", key))
        assert await opened.lookup(7) == (None, True)

    current(with_fingerprints, "first")
    asyncio.run(steps())


def test_recommend_reads_redis_as_it_reads_the_snapshots_own_store(make: Any, server: Any, current: Any) -> None:
    folder: Path = make("first")
    current(folder, "first")
    users = (5, 10**9, *range(250))

    async def ask() -> list[list[str]]:
        opened = Opened(folder, server, folder / "lock")
        await opened.manager.poll()
        return await opened.recommend(*users)

    own = asyncio.run(ask())
    put_records(server, records_of(folder))
    move_to_redis(folder, with_fingerprints=True)
    assert asyncio.run(ask()) == own and own[0] != own[1] != own[2]
    server.kill()

    async def ask_without() -> None:
        opened = Opened(folder, server, folder / "lock")
        await opened.manager.poll()
        assert set(map(tuple, await opened.recommend(*users))) == {tuple(own[1])}  # popular items, as for a stranger

    asyncio.run(ask_without())


def test_a_record_in_redis_that_does_not_fit_the_snapshot_refuses_it(with_fingerprints: Path, server: Any, current: Any) -> None:
    current(with_fingerprints, "first")
    client = redis.Redis.from_url(server.url)
    (key, *_) = client.keys("recs:first:8*")
    record = bytearray(client.get(key) or b"")
    record[16 + 4 * 16 : 16 + 4 * 16 + 4] = (10**6).to_bytes(4, "little")  # the first candidate's code
    for name in client.keys("recs:first:8*"):
        client.set(name, bytes(record))

    async def steps() -> None:
        opened = Opened(with_fingerprints, server, with_fingerprints / "lock")
        await opened.manager.poll()
        assert opened.manager.current is None and "codes outside the 500 items" in opened.manager.refused["first"]

    asyncio.run(steps())
