"""A worker's snapshots: each is loaded once however many roles it has, and closed when nobody has it any more."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recsys_batch.online.api.messages import Bounds
from recsys_batch.online.http.endpoints import Endpoints
from recsys_batch.online.http.router import HttpError
from recsys_batch.online.oip.snapshot_models import SnapshotModels
from recsys_batch.online.serving import snapshot_manager
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.serving.traffic_split import TrafficSplit, write_traffic_split
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.lmdb_store import LmdbStore
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.online.snapshot.repository import set_current

NO_REQUEST: Any = None


class Lifecycle:
    """A manager, and what was opened, verified, warmed and closed in its name."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.manager = SnapshotManager(folder, lambda _: None, folder / "load.lock")  # type: ignore[arg-type, return-value]
        self.work: list[str] = []
        for name in ("open_snapshot", "warm_up", "verify_in_subprocess"):
            monkeypatch.setattr(snapshot_manager, name, self._counted(name, getattr(snapshot_manager, name)))
        monkeypatch.setattr(LmdbStore, "close", self._counted("close", LmdbStore.close))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.work.append(name)
            return function(*args)

        return call

    async def go(self, current: str, canary: str | None = None, shadow: str | None = None) -> list[str]:
        """Name the snapshots wanted; what the manager did to go over to them."""
        set_current(self.folder, current)
        write_traffic_split(self.folder, TrafficSplit(canary, 0.5 if canary else 0.0, shadow, 0.5 if shadow else 0.0))
        self.work = []
        assert await self.manager.poll()
        assert self.roles() == (current, canary, shadow)
        return self.work

    def roles(self) -> tuple[str | None, ...]:
        roles = (self.manager.current, self.manager.canary, self.manager.shadow)
        return tuple(loaded and loaded.snapshot.snapshot_id for loaded in roles)


@pytest.fixture
def lifecycle(make: Any, monkeypatch: pytest.MonkeyPatch) -> Lifecycle:
    """Of the snapshots "first", "second" and "third"."""
    for seed, name in enumerate(("first", "second", "third")):
        folder: Path = make(name, seed=seed)
    return Lifecycle(folder, monkeypatch)


def run(steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(steps())


@pytest.mark.parametrize("role", ["canary", "shadow"])
def test_promoting_a_canary_or_a_shadow_opens_verifies_and_warms_nothing(role: str, lifecycle: Lifecycle) -> None:
    async def steps() -> None:
        assert "open_snapshot" in await lifecycle.go("first")
        assert "open_snapshot" in await lifecycle.go("first", **{role: "second"})
        secondary = getattr(lifecycle.manager, role)
        assert await lifecycle.go("second", **{role: "second"}) == ["close"]  # the first one
        assert lifecycle.manager.current is getattr(lifecycle.manager, role) is secondary
        assert await lifecycle.go("second") == []

    run(steps)


def test_snapshots_that_change_places_stay_loaded(lifecycle: Lifecycle) -> None:
    async def steps() -> None:
        await lifecycle.go("first", "second", "third")
        assert await lifecycle.go("second", "third", "first") == []
        assert await lifecycle.go("second", "second", "second") == ["close"] * 2

    run(steps)


def test_a_snapshot_is_closed_when_the_last_request_has_let_go_of_it_and_is_opened_anew_when_it_comes_back(lifecycle: Lifecycle) -> None:
    async def steps() -> None:
        await lifecycle.go("first")
        first = lifecycle.manager.current
        assert first is not None
        with first.lease():
            assert "close" not in await lifecycle.go("second")
            assert "open_snapshot" not in await lifecycle.go("first")
            assert lifecycle.manager.current is first
            await lifecycle.go("second")
            lifecycle.work = []
        assert lifecycle.work == ["close"]
        assert "open_snapshot" in await lifecycle.go("first") and lifecycle.manager.current is not first

    run(steps)


def test_a_refused_snapshot_is_tried_once_and_leaves_the_current_one_in_place(lifecycle: Lifecycle) -> None:
    async def steps() -> None:
        await lifecycle.go("first")
        (lifecycle.folder / "second" / "ranker.onnx").write_bytes(b"damaged")
        with pytest.raises(AssertionError):
            await lifecycle.go("second", "second")
        assert lifecycle.roles() == ("first", None, None)
        assert lifecycle.work == ["verify_in_subprocess"] and "second" in lifecycle.manager.refused

    run(steps)


def test_a_snapshot_can_be_opened_again_where_it_is_open(make: Any) -> None:
    folder = make() / "first"
    one, other = open_snapshot(folder), open_snapshot(folder)
    key = one.key(5)
    assert key is not None and one.store is not None and other.store is not None
    one.close()
    assert other.store.get(key)
    other.close()
    assert str(folder / "users.lmdb") not in Path("/proc/self/maps").read_text()


def test_a_canary_that_is_current_as_well_keeps_its_part_of_the_users(lifecycle: Lifecycle) -> None:
    async def steps() -> None:
        await lifecycle.go("first", "second")
        parts = [lifecycle.manager.route(user)[1] for user in range(300)]
        assert 100 < parts.count("canary") < 200
        await lifecycle.go("second", "second")
        assert [lifecycle.manager.route(user) for user in range(300)] == [(lifecycle.manager.current, part) for part in parts]

    run(steps)


def damage(folder: Path, name: str) -> None:
    with (folder / name / "users.lmdb").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")


def test_who_starts_on_a_damaged_current_takes_the_one_before_and_says_so_until_a_good_one_comes(lifecycle: Lifecycle) -> None:
    async def steps() -> None:
        for name in ("first", "second"):
            set_current(lifecycle.folder, name)
        damage(lifecycle.folder, "second")
        await lifecycle.manager.poll()
        assert lifecycle.roles() == ("first", None, None)
        why = lifecycle.manager.fallback
        assert why is not None and "CURRENT names second, which is refused" in why and "users.lmdb" in why
        assert not await lifecycle.manager.poll()
        await lifecycle.go("third")
        assert lifecycle.manager.fallback is None

    run(steps)


def test_without_the_one_before_the_newest_whole_one_before_current_is_taken(lifecycle: Lifecycle) -> None:
    async def steps() -> None:
        set_current(lifecycle.folder, "third")
        for name in ("third", "second"):
            damage(lifecycle.folder, name)
        await lifecycle.manager.poll()
        assert lifecycle.roles() == ("first", None, None) and set(lifecycle.manager.refused) == {"third", "second"}

    run(steps)


def test_who_answers_already_stays_with_what_it_has_where_current_cannot_be_read(lifecycle: Lifecycle) -> None:
    async def steps() -> None:
        await lifecycle.go("second")
        (lifecycle.folder / "CURRENT").write_bytes(b"\xff\xff")
        assert await lifecycle.manager.poll()
        assert lifecycle.roles() == ("second", None, None) and "cannot be read" in str(lifecycle.manager.fallback)
        await lifecycle.go("first")
        assert lifecycle.manager.fallback is None

    run(steps)


def test_before_anybody_activated_a_snapshot_none_is_taken(lifecycle: Lifecycle) -> None:
    async def steps() -> None:
        assert await lifecycle.manager.poll()
        assert lifecycle.roles() == (None, None, None) and lifecycle.manager.fallback is None

    run(steps)


def test_a_current_that_could_not_be_read_is_read_again_though_it_is_the_same_file(lifecycle: Lifecycle, monkeypatch: Any) -> None:
    async def steps() -> None:
        set_current(lifecycle.folder, "first")
        read = repository.read_current
        monkeypatch.setattr(repository, "read_current", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        await lifecycle.manager.poll()
        assert "Input/output error" in str(lifecycle.manager.reads.failure)
        monkeypatch.setattr(repository, "read_current", read)
        monkeypatch.setattr(lifecycle.manager, "_look_again_at", 0.0)
        assert await lifecycle.manager.poll() and lifecycle.roles()[0] == "first"
        assert lifecycle.manager.reads.failure is None and lifecycle.manager.fallback is None

    run(steps)


def test_live_lists_that_cannot_be_looked_at_keep_nobody_from_the_next_snapshot(lifecycle: Lifecycle) -> None:
    class Broken:
        def poll(self) -> None:
            raise PermissionError(13, "Permission denied")

        def close(self) -> None:
            pass

    async def steps() -> None:
        await lifecycle.go("first")
        assert lifecycle.manager.current is not None
        lifecycle.manager.current.live = Broken()  # type: ignore[assignment]
        await lifecycle.go("second")

    run(steps)


def test_a_manager_that_nobody_polls_has_stalled_unless_it_is_loading(lifecycle: Lifecycle, tmp_path: Path) -> None:
    async def steps() -> None:
        manager, freshness = lifecycle.manager, FreshnessPolicy(36, None)
        await lifecycle.go("first")
        models = SnapshotModels(manager, 50, freshness)
        endpoints = Endpoints(SimpleNamespace(manager=manager, freshness=freshness), Bounds(), lifecycle.folder, tmp_path)  # type: ignore[arg-type]
        assert manager.stall is None and models.ready() and (await endpoints.ready(NO_REQUEST)).status == 200
        manager.looks.looked_at -= 31
        assert manager.stall is not None and not models.ready()
        with pytest.raises(HttpError, match=r"has not looked for snapshots in 3[1-9] s") as refusal:
            await endpoints.ready(NO_REQUEST)
        assert refusal.value.status == 503
        manager._load = slow_load(manager._load, lambda: seen.append(manager.stall))  # type: ignore[method-assign]
        seen: list[str | None] = []
        await lifecycle.go("second")
        assert seen == [None] and manager.stall is not None

    run(steps)


def slow_load(load: Callable[[str], Any], meanwhile: Callable[[], None]) -> Callable[[str], Any]:
    def call(snapshot_id: str) -> Any:
        meanwhile()
        return load(snapshot_id)

    return call


def test_ten_pauses_may_be_longer_than_half_a_minute(tmp_path: Path) -> None:
    manager = SnapshotManager(tmp_path, lambda _: None, tmp_path / "lock", poll_seconds=60.0)  # type: ignore[arg-type, return-value]
    manager.looks.looked_at -= 590
    assert manager.stall is None
    manager.looks.looked_at -= 20
    assert manager.stall is not None
