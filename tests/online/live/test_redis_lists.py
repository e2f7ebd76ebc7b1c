"""Live lists in Redis: one follower of all hosts writes them, every host answers with them, and without Redis the night's hold."""

import asyncio
import datetime as dt
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from recsys_batch.online.live.follower import Follower
from recsys_batch.online.live.overlay_stores import RedisOverlays
from recsys_batch.online.serving.loaded_snapshot import LoadedSnapshot
from recsys_batch.online.settings import LIVE_MARK
from recsys_batch.online.snapshot import redis_overlay
from recsys_batch.online.snapshot.live_overlay import decode_live_record, encode_live_record
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.online.snapshot.redis_overlay import LeaseLost, RedisOverlay, WriterLease, read_progress
from recsys_batch.online.snapshot.redis_store import RedisStore, live_key, progress_key, redis_key
from recsys_batch.online.snapshot.repository import set_current
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import LiveOrigin, UserRecord, encode_record

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def key_of(user: int) -> bytes:
    key = user_key(user, "BIGINT")
    assert key is not None
    return key


def live_value(batch_id: int, *codes: int) -> bytes:
    n = len(codes)
    record = UserRecord(None, 1, None, np.array(codes), np.zeros(n, np.float32), np.arange(n), np.ones(n, np.float32))
    return encode_live_record(LiveOrigin(batch_id, NOON, None), encode_record(record))


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with redis.Redis.from_url(server.url) as opened:
        yield opened


@pytest.fixture
def follower(live_warehouse: Any, snapshots: Path, server: Any, tmp_path: Path) -> Iterator[Callable[[str], Follower]]:
    """Makes the follower of a host, which has its own folder of a server."""
    made: list[Follower] = []
    set_current(snapshots, "first")

    def make(host: str) -> Follower:
        (tmp_path / host).mkdir()
        (tmp_path / host / LIVE_MARK).touch()
        os.utime(tmp_path / host / LIVE_MARK, (0, 0))
        store = RedisOverlays(redis.Redis.from_url(server.url), "warehouse", 3600)
        made.append(Follower(str(live_warehouse.folder), snapshots, tmp_path / host, store))
        return made[-1]

    yield make
    for one in made:
        one.close()


def list_in_redis(client: Any, user: int, run_id: str = "first") -> list[int] | None:
    value = client.get(live_key(run_id, key_of(user)))
    return None if value is None else decode_live_record(value).codes.tolist()


def test_one_follower_writes_and_the_other_stands_by_until_it_ends(live_warehouse: Any, follower: Any, client: Any, tmp_path: Path) -> None:
    one, other = follower("one"), follower("other")
    live_warehouse.refresh(1, {5: [40, 30]})
    one.poll()
    assert list_in_redis(client, 5) == [40, 30]
    live_warehouse.refresh(2, {5: [50]})
    other.poll()
    assert list_in_redis(client, 5) == [40, 30]  # it is not its turn
    marks = [(tmp_path / host / LIVE_MARK).stat().st_mtime for host in ("one", "other")]
    assert marks[0] - 5 < marks[1] <= marks[0]  # and says what the writer knows
    one.close()
    other.poll()
    assert list_in_redis(client, 5) == [50]


def test_a_follower_that_takes_over_goes_on_where_the_other_ended(
    live_warehouse: Any, follower: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = follower("one"), follower("other")
    live_warehouse.refresh(1, {5: [1]})
    one.poll()
    live_warehouse.refresh(2, {6: [2]})
    one.close()
    added: list[int] = []
    add = RedisOverlay.add

    def count(self: RedisOverlay, records: Any, version: int) -> None:
        added.append(len(kept := list(records)))
        add(self, kept, version)

    monkeypatch.setattr(RedisOverlay, "add", count)
    other.poll()
    assert sum(added) == 1  # the second batch alone
    assert [list_in_redis(client, user) for user in (5, 6)] == [[1], [2]]


def test_lists_that_somebody_deletes_are_there_again_with_the_next_look(live_warehouse: Any, follower: Any, client: Any) -> None:
    live_warehouse.refresh(1, {5: [1]})
    one = follower("one")
    one.poll()
    client.flushall()
    one.poll()
    one.poll()
    assert list_in_redis(client, 5) == [1]


def test_an_older_batch_that_comes_late_replaces_nothing(client: Any) -> None:
    lease = WriterLease(client, "warehouse")
    overlay = RedisOverlay(client, "first", "table", 3600, lease)
    overlay.add([(key_of(5), live_value(7, 70))], 1)
    overlay.add([(key_of(5), live_value(6, 60)), (key_of(6), live_value(6, 60))], 2)
    assert [list_in_redis(client, user) for user in (5, 6)] == [[70], [60]]
    assert 0 < client.ttl(live_key("first", key_of(5))) <= 3600
    assert read_progress(client, "first")["version"] == 2


def test_who_lost_the_lease_writes_no_more(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_overlay, "_LEASE_SECONDS", 0.2)
    stopped, other = WriterLease(client, "warehouse"), WriterLease(client, "warehouse")
    overlay = RedisOverlay(client, "first", "table", 3600, stopped)
    overlay.add([(key_of(5), live_value(1, 10))], 1)
    assert not other.renew()
    time.sleep(0.3)  # stopped for longer than its lease
    assert other.renew()
    with pytest.raises(LeaseLost):
        overlay.add([(key_of(5), live_value(2, 20))], 2)
    assert list_in_redis(client, 5) == [10]


def test_what_goes_up_to_another_tables_versions_is_begun_anew(client: Any) -> None:
    lease = WriterLease(client, "warehouse")
    RedisOverlay(client, "first", "table", 3600, lease).add([], 9)
    assert RedisOverlay(client, "first", "table", 3600, lease).version == 9
    assert RedisOverlay(client, "first", "another", 3600, lease).version is None


@pytest.fixture
def cluster(find_port: Any, wait_for: Any, tmp_path: Path) -> Iterator[int]:
    """A cluster of one server; its port."""
    port, folder = find_port(), tmp_path / "cluster"
    while port > 55_000:  # its bus is ten thousand above
        port = find_port()
    folder.mkdir()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--cluster-enabled", "yes", "--dir", str(folder)]
    process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as node:
            wait_for(lambda: node.ping() and node.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383))
            wait_for(lambda: "ok" in str(node.execute_command("CLUSTER INFO")["cluster_state"]))
        yield port
    finally:
        process.kill()
        process.wait()


def test_a_cluster_takes_and_gives_them_too(cluster: int) -> None:
    with redis.RedisCluster(host="127.0.0.1", port=cluster) as client:
        lease = WriterLease(client, "warehouse")
        RedisOverlay(client, "first", "table", 3600, lease).add([(key_of(user), live_value(user, user)) for user in range(50)], 1)
        client.set(redis_key("first", key_of(7)), b"the night's")
        lease.release()

    async def read() -> tuple[bytes | None, bytes | None]:
        store = RedisStore(f"redis://127.0.0.1:{cluster}", "first", cluster=True, timeout=2.0)
        try:
            return await store.fetch_both(key_of(7))
        finally:
            await store.close()

    live, night = asyncio.run(read())
    assert live is not None and decode_live_record(live).codes.tolist() == [7]
    assert night == b"the night's"


def test_a_live_list_is_preferred_wherever_the_nights_is(make: Any, client: Any, server: Any) -> None:
    snapshot = open_snapshot(make() / "first")
    overlay = RedisOverlay(client, "first", "table", 3600, WriterLease(client, "warehouse"))
    overlay.add([(key_of(5), live_value(1, 9)), (key_of(6), b"no record")], 1)
    night = snapshot.lookup(7)
    assert night is not None and snapshot.store is not None
    for user in (5, 6, 7):
        value = snapshot.store.get(key_of(user))
        assert value is not None
        client.set(redis_key("first", key_of(user)), value)

    async def codes(in_redis: bool) -> list[tuple[bool, list[int] | None]]:
        store = RedisStore(server.url, "first", timeout=2.0)
        loaded = LoadedSnapshot(snapshot, store if in_redis else None, lambda _: None, live_store=store)
        found = [await loaded.lookup(user) for user in (5, 6, 7, 10**9)]
        await store.close()
        return [(record is not None and record.live is not None, None if record is None else record.codes.tolist()[:1]) for record in found]

    for in_redis in (False, True):
        told = asyncio.run(codes(in_redis))
        assert [live for live, _ in told] == [True, False, False, False]  # what is damaged is not used
        assert told[0][1] == [9] and told[2][1] == night.codes.tolist()[:1] and told[3][1] is None
    snapshot.close()


@pytest.fixture
def live_server(live_warehouse: Any, snapshots: Path, serve: Any, current: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Answers from the snapshot "first", and follows the warehouse through Redis."""
    monkeypatch.setenv("RECSYS_BATCH_REDIS_URL", server.url)
    current(snapshots, "first")
    options = ("--set", "online.live=redis", "--set", f"paths.warehouse={live_warehouse.folder}", "--set", "online.store_timeout_ms=500")
    return serve(snapshots, *options, "--set", "online.live_max_lag_seconds=2")


def test_a_server_answers_with_live_lists_and_with_the_nights_while_redis_is_away(
    live_server: Any, live_warehouse: Any, server: Any, client: Any, wait_for: Any
) -> None:
    live_warehouse.refresh(1, {5: [40, 30, 20, 10]}, through=NOON)
    wait_for(lambda: live_server.rank(5)["lists"] == "live")
    answer = live_server.rank(5, k=10)
    assert ({item["item_id"] for item in answer["items"]}, answer["events_through"]) == ({10, 20, 30, 40}, "2026-03-01T12:00:00Z")
    assert live_server.call("GET", "/readyz")[1]["live"] == "following"
    server.kill()
    assert all(live_server.rank(5)["lists"] == "night" for _ in range(20))
    wait_for(lambda: live_server.call("GET", "/readyz")[1]["live"] == "behind")
    server.start()  # with nothing in it
    wait_for(lambda: live_server.rank(5)["lists"] == "live")
    wait_for(lambda: live_server.call("GET", "/readyz")[1]["live"] == "following")
    assert client.get(progress_key("first"))


def test_a_follower_that_is_killed_is_followed_by_another_within_seconds(live_server: Any, live_warehouse: Any, wait_for: Any) -> None:
    live_warehouse.refresh(1, {5: [40]})
    wait_for(lambda: live_server.rank(5)["lists"] == "live")
    children = Path(f"/proc/{live_server.process.pid}/task").glob("*/children")
    pids = {int(pid) for file in children for pid in file.read_text().split()}
    (pid,) = (pid for pid in pids if b"online.live.follower" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(pid, signal.SIGKILL)
    live_warehouse.refresh(2, {5: [50]})
    wait_for(lambda: [item["item_id"] for item in live_server.rank(5)["items"]] == [50])
