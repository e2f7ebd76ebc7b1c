"""A loaded snapshot answers with its own run's live list where there is one, whatever store the night's lists are in."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.online.serving.loaded_snapshot import LoadedSnapshot
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.serving.traffic_split import TrafficSplit, write_traffic_split
from recsys_batch.online.snapshot.live_overlay import LiveReader, open_overlay
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.online.snapshot.repository import set_current
from tests.online.live.overlay_values import key_of, live_value


@pytest.fixture
def overlays(tmp_path: Path) -> Callable[..., LiveReader]:
    """Writes the live candidates of users of a run, and opens its overlay."""

    def write(run_id: str, **lists: list[int]) -> LiveReader:
        overlay = open_overlay(tmp_path / "overlays" / run_id, "table")
        for name, codes in lists.items():
            overlay.add([(key_of(int(name.removeprefix("user"))), live_value(1, codes))], 1)
        overlay.close()
        return LiveReader(tmp_path / "overlays" / run_id)

    return write


async def live_codes(loaded: LoadedSnapshot | None, user: int) -> list[int] | None:
    assert loaded is not None
    record, _ = await loaded.lookup(user)
    return record.codes.tolist() if record is not None and record.live is not None else None


def test_current_canary_and_shadow_have_each_the_lists_of_their_own_run(make: Any, overlays: Any, tmp_path: Path) -> None:
    async def steps() -> None:
        manager = SnapshotManager(folder, lambda _: None, tmp_path / "lock", lambda run_id: readers[run_id])  # type: ignore[arg-type, return-value]
        set_current(folder, "first")
        write_traffic_split(folder, TrafficSplit("second", 0.5, "third", 0.5))
        await manager.poll()
        found = [await live_codes(loaded, 5) for loaded in (manager.current, manager.canary, manager.shadow)]
        assert found == [[1], [2], None]
        set_current(folder, "second")
        write_traffic_split(folder, TrafficSplit())
        await manager.poll()
        assert await live_codes(manager.current, 5) == [2]
        assert [readers[run_id].is_open for run_id in readers] == [False, True, False]

    for seed, name in enumerate(("first", "second", "third")):
        folder = make(name, seed=seed)
    readers = {"first": overlays("first", user5=[1]), "second": overlays("second", user5=[2]), "third": overlays("third", user6=[3])}
    asyncio.run(steps())


def test_live_lists_are_there_where_redis_has_the_nights_and_does_not_answer(make: Any, overlays: Any) -> None:
    class Silent:
        async def fetch(self, key: bytes) -> bytes | None:
            raise StoreUnavailable("away")

    async def steps() -> None:
        assert await live_codes(loaded, 5) == [1]
        assert await loaded.lookup(6) == (None, True)

    snapshot = open_snapshot(make() / "first")
    loaded = LoadedSnapshot(snapshot, Silent(), lambda _: None, overlays("first", user5=[1]))  # type: ignore[arg-type]
    asyncio.run(steps())
    snapshot.close()
