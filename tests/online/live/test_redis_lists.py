"""Live lists in Redis: one follower of all hosts writes them, every host answers with them, and without Redis the night's hold."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from recsys_batch.online.live.follower import Follower
from recsys_batch.online.live.overlay_stores import RedisOverlays
from recsys_batch.online.serving.loaded_snapshot import LoadedSnapshot
from recsys_batch.online.settings import LIVE_MARK
from recsys_batch.online.snapshot import redis_overlay
from recsys_batch.online.snapshot.live_overlay import decode_live_record
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.online.snapshot.redis_overlay import LeaseLost, RedisOverlay, WriterLease, read_progress
from recsys_batch.online.snapshot.redis_store import RedisStore, live_key, progress_key, redis_key, writer_key
from recsys_batch.online.snapshot.repository import set_current
from tests.online.live.overlay_values import WRITTEN, key_of, live_value

LONG_AGO = 1_000_000_000.0


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with redis.Redis.from_url(server.url) as opened:
        yield opened


@pytest.fixture
def follower(live_warehouse: Any, snapshots: Path, server: Any, tmp_path: Path) -> Iterator[Callable[..., Follower]]:
    """Makes the follower of a host, which has its own folders."""
    made: list[Follower] = []

    def start(host: str, run_id: str = "first") -> Follower:
        shutil.copytree(snapshots, own := tmp_path / host / "snapshots")
        (tmp_path / host / LIVE_MARK).touch()
        os.utime(tmp_path / host / LIVE_MARK, (LONG_AGO, LONG_AGO))
        set_current(own, run_id)
        store = RedisOverlays(redis.Redis.from_url(server.url), 3600)
        made.append(Follower(str(live_warehouse.folder), own, tmp_path / host, store))
        return made[-1]

    yield start
    for one in made:
        one.close()


def checked_at(host: Path) -> float:
    return (host / LIVE_MARK).stat().st_mtime


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
    assert (
        checked_at(tmp_path / "one") - 5 < checked_at(tmp_path / "other") <= checked_at(tmp_path / "one")
    )  # and says what the writer knows
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


def test_hosts_that_serve_different_runs_have_each_its_live_lists(live_warehouse: Any, follower: Any, client: Any, tmp_path: Path) -> None:
    one, other = follower("one", "first"), follower("other", "second")
    live_warehouse.refresh(1, {5: [1]}, run_id="first")
    live_warehouse.refresh(2, {5: [2]}, run_id="second")
    began = time.time()
    one.poll()
    other.poll()
    assert [list_in_redis(client, 5, run_id) for run_id in ("first", "second")] == [[1], [2]]
    assert min(checked_at(tmp_path / "one"), checked_at(tmp_path / "other")) >= began


def test_a_host_knows_nothing_of_lists_that_another_has_not_read_yet(
    live_warehouse: Any, follower: Any, client: Any, tmp_path: Path
) -> None:
    live_warehouse.refresh(1, {5: [1]})
    lease = WriterLease(client, "first")
    assert lease.acquire()
    other = follower("other")
    other.poll()
    assert checked_at(tmp_path / "other") == LONG_AGO
    overlay = RedisOverlay(client, "first", str(uuid.uuid4()), 3600, lease)
    other.poll()
    assert checked_at(tmp_path / "other") == LONG_AGO  # it has begun, no more
    overlay.note_checked()
    other.poll()
    assert checked_at(tmp_path / "other") == pytest.approx(time.time(), abs=60)
    overlay.close()


def leased(client: Any, expire_seconds: int = 3600) -> RedisOverlay:
    lease = WriterLease(client, "first")
    assert lease.acquire()
    return RedisOverlay(client, "first", "table", expire_seconds, lease)


def test_lists_expire_and_are_all_put_again_before_they_do(client: Any) -> None:
    overlay = leased(client, 3)
    overlay.add([(key_of(5), live_value(7, [70]))], 1)
    overlay.note_checked()
    assert 0 < client.ttl(live_key("first", key_of(5))) <= 3
    assert overlay.is_in_place
    time.sleep(1.6)
    overlay.note_checked()
    assert not overlay.is_in_place
    overlay.close()
    again = leased(client, 3)
    assert again.version is None  # so that a follower reads all batches again
    assert read_progress(client, "first")["checked_at"]  # and the other hosts still know when all lists were there
    again.add([(key_of(5), live_value(7, [70]))], 1)
    assert client.pttl(live_key("first", key_of(5))) > 2_000 and again.is_in_place
    again.close()


def test_a_lease_is_held_beside_work_that_takes_longer(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_overlay, "_LEASE_SECONDS", 0.6)
    overlay = leased(client)
    time.sleep(1.5)
    assert not WriterLease(client, "first").acquire()
    overlay.add([(key_of(5), live_value(1, [10]))], 1)
    overlay.close()
    assert WriterLease(client, "first").acquire()


def test_who_lost_the_lease_writes_no_more(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_overlay, "_LEASE_SECONDS", 0.6)
    overlay = leased(client)
    overlay.add([(key_of(5), live_value(1, [10]))], 1)
    client.set(writer_key("first"), "another's")  # which took it while this one was stopped
    time.sleep(0.5)
    for write in (lambda: overlay.add([(key_of(5), live_value(2, [20]))], 2), overlay.note_checked):
        with pytest.raises(LeaseLost):
            write()
    assert not overlay.is_in_place
    overlay.close()
    assert list_in_redis(client, 5) == [10] and client.get(writer_key("first")) == b"another's"


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
        overlay = leased(client)
        overlay.add([(key_of(user), live_value(user, [user])) for user in range(50)], 1)
        client.set(redis_key("first", key_of(7)), b"the night's")
        overlay.close()

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
    overlay = leased(client)
    overlay.add([(key_of(5), live_value(1, [9])), (key_of(6), b"no record")], 1)
    overlay.close()
    night = snapshot.lookup(7)
    assert night is not None and snapshot.store is not None
    for user in (5, 6, 7):
        value = snapshot.store.get(key_of(user))
        assert value is not None
        client.set(redis_key("first", key_of(user)), value)

    async def codes(in_redis: bool) -> list[tuple[bool, list[int] | None]]:
        store = RedisStore(server.url, "first", timeout=2.0)
        loaded = LoadedSnapshot(snapshot, store if in_redis else None, lambda _: None, live_store=store)
        found = [(await loaded.lookup(user)).record for user in (5, 6, 7, 10**9)]
        await store.close()
        return [(record is not None and record.live is not None, None if record is None else record.codes.tolist()[:1]) for record in found]

    for in_redis in (False, True):
        told = asyncio.run(codes(in_redis))
        assert [live for live, _ in told] == [True, False, False, False]  # what is damaged is not used
        assert told[0][1] == [9] and told[2][1] == night.codes.tolist()[:1] and told[3][1] is None
    snapshot.close()


@pytest.fixture
def host(
    live_warehouse: Any, snapshots: Path, serve: Any, current: Any, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Any]:
    """Starts a server with a folder of snapshots of its own; it answers from "first", and follows the warehouse through Redis."""
    monkeypatch.setenv("RECSYS_BATCH_REDIS_URL", server.url)
    warehouse = f"paths.warehouse={live_warehouse.folder}"
    options = ("online.live=redis", warehouse, "online.store_timeout_ms=500", "online.live_max_lag_seconds=2")

    def start(name: str) -> Any:
        shutil.copytree(snapshots, own := tmp_path / name)
        current(own, "first")
        return serve(own, *(word for option in options for word in ("--set", option)))

    return start


@pytest.fixture
def live_server(host: Any) -> Any:
    return host("one")


def test_a_server_answers_with_live_lists_and_with_the_nights_while_redis_is_away(
    live_server: Any, live_warehouse: Any, server: Any, client: Any, wait_for: Any
) -> None:
    live_warehouse.refresh(1, {5: [40, 30, 20, 10]}, through=WRITTEN)
    wait_for(lambda: live_server.rank(5)["lists"] == "live")
    answer = live_server.rank(5, k=10)
    assert ({item["item_id"] for item in answer["items"]}, answer["events_through"]) == ({10, 20, 30, 40}, "2026-03-01T12:00:00.000005Z")
    wait_for(lambda: live_server.call("GET", "/readyz")[1]["live"] == "following")
    server.kill()
    assert all((answer := live_server.rank(5))["lists"] == "night" and answer["degraded"] == "store_unavailable" for _ in range(20))
    wait_for(lambda: live_server.call("GET", "/readyz")[1]["live"] == "behind")
    server.start()  # with nothing in it
    wait_for(lambda: live_server.rank(5)["lists"] == "live")
    wait_for(lambda: live_server.call("GET", "/readyz")[1]["live"] == "following")
    assert client.get(progress_key("first"))


def list_descendants(pid: int) -> list[int]:
    children = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [*children, *(grandchild for child in children for grandchild in list_descendants(child))]


def find_follower(served: Any) -> int:
    pids = list_descendants(served.process.pid)
    (pid,) = (pid for pid in pids if b"online.live.follower" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return pid


def test_a_follower_that_is_killed_is_followed_by_another_within_seconds(live_server: Any, live_warehouse: Any, wait_for: Any) -> None:
    live_warehouse.refresh(1, {5: [40]})
    wait_for(lambda: live_server.rank(5)["lists"] == "live")
    os.kill(find_follower(live_server), signal.SIGKILL)
    live_warehouse.refresh(2, {5: [50]})
    wait_for(lambda: [item["item_id"] for item in live_server.rank(5)["items"]] == [50])


def test_where_a_host_dies_another_one_writes_within_seconds(host: Any, live_warehouse: Any, client: Any, wait_for: Any) -> None:
    writer = host("one")
    live_warehouse.refresh(1, {5: [40]})
    wait_for(lambda: writer.rank(5)["lists"] == "live")
    other, written_by = host("other"), client.get(writer_key("first"))
    for pid in (writer.process.pid, *list_descendants(writer.process.pid)):
        with contextlib.suppress(ProcessLookupError):  # what sees its parent gone ends by itself
            os.kill(pid, signal.SIGKILL)
    live_warehouse.refresh(2, {5: [50]})
    wait_for(lambda: [item["item_id"] for item in other.rank(5)["items"]] == [50])
    assert client.get(writer_key("first")) not in (None, written_by)
    wait_for(lambda: other.call("GET", "/readyz")[1]["live"] == "following")
