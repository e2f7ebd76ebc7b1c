"""Activations at the same time as others, and as a night's export: nobody undoes what somebody else was told is done."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.online.serving import activation
from recsys_batch.online.serving.activation import ActivationFailed, activate, roll_back, set_traffic_split
from recsys_batch.online.serving.traffic_split import TrafficSplit, read_traffic_split, write_traffic_split
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.manifest import SnapshotRefused, file_checksums
from recsys_batch.online.snapshot.repository import Pointers

WAIT = 20.0


class Worker:
    """A worker that says what a test has it say; its process is this one."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder, self.state = folder, state
        state.mkdir()
        self.report(current="first")

    def report(self, current: str, refused: dict[str, str] | None = None, routes: TrafficSplit | None = None) -> None:
        looked_at = {name: repository.file_stamp(self.folder / name) for name in ("CURRENT", "ROUTES.json")}
        told = {"pid": os.getpid(), "current": current, "refused": refused or {}, "looked_at": looked_at}
        text = json.dumps({**told, "routes": (routes or TrafficSplit()).to_dict()})
        (self.state / ".draft").write_text(text)
        (self.state / ".draft").rename(self.state / "worker-1.json")


@pytest.fixture
def worker(make: Any, tmp_path: Path) -> Worker:
    """Of a folder with "first", which is current, "second" and "third"."""
    for name in ("first", "second", "third"):
        folder = make(name, users=5, items=20, with_ranker=False)
    repository.set_current(folder, "first")
    return Worker(folder, tmp_path / "state")


def run(steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(steps(), WAIT))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def begin(worker: Worker, snapshot_id: str, seconds: float = WAIT) -> asyncio.Task[None]:
    """Begin an activation, and wait until CURRENT names its snapshot."""
    task = asyncio.create_task(activate(worker.folder, worker.state, snapshot_id, seconds))
    await until(lambda: task.done() or repository.read_current(worker.folder) == snapshot_id)
    return task


def test_a_second_activation_is_refused_at_once_and_the_first_one_holds(worker: Worker) -> None:
    async def steps() -> None:
        first = await begin(worker, "second")
        for other in (
            activate(worker.folder, worker.state, "third", WAIT),
            roll_back(worker.folder, worker.state, WAIT),
            set_traffic_split(worker.folder, worker.state, TrafficSplit("third", 0.1), WAIT),
        ):
            with pytest.raises(ActivationFailed, match="is under way already by process"):
                await other
        worker.report("second")
        await first
        assert repository.read_pointers(worker.folder) == Pointers("second", "first")

    run(steps)


def test_a_nights_export_during_an_activation_holds_and_the_activation_ends_at_once(worker: Worker) -> None:
    async def steps() -> None:
        activating = await begin(worker, "second")
        repository.set_current(worker.folder, "third")  # as the export does
        with pytest.raises(ActivationFailed, match="CURRENT was changed meanwhile, and names third"):
            await activating
        assert repository.read_current(worker.folder) == "third"

    run(steps)


def test_a_refused_activation_puts_back_what_was_current_and_what_was_before(worker: Worker) -> None:
    async def steps() -> None:
        repository.set_current(worker.folder, "third")
        repository.set_current(worker.folder, "first")
        activating = await begin(worker, "second")
        worker.report("first", {"second": "it is damaged"})
        with pytest.raises(ActivationFailed, match=r"it is damaged.*first stays"):
            await activating
        assert repository.read_pointers(worker.folder) == Pointers("first", "third")

    run(steps)


def test_what_a_worker_refused_before_it_was_activated_again_does_not_count(worker: Worker) -> None:
    async def steps() -> None:
        worker.report("first", {"second": "it was damaged then"})
        activating = await begin(worker, "second")
        await asyncio.sleep(0.1)
        assert not activating.done()
        worker.report("second")
        await activating

    run(steps)


def test_an_activation_that_takes_too_long_says_so_and_is_undone(worker: Worker) -> None:
    async def steps() -> None:
        with pytest.raises(ActivationFailed, match=r"not every worker had it after 0.1 s.*first stays"):
            await (await begin(worker, "second", 0.1))
        assert repository.read_current(worker.folder) == "first"

    run(steps)


def test_routes_that_are_refused_leave_those_before_and_routes_that_were_set_since_stay(worker: Worker) -> None:
    before, since = TrafficSplit("third", 0.2), TrafficSplit("third", 0.7)

    async def refused_while(change: Callable[[], None]) -> TrafficSplit:
        write_traffic_split(worker.folder, before)
        wanted = TrafficSplit("second", 0.5)
        setting = asyncio.create_task(set_traffic_split(worker.folder, worker.state, wanted, WAIT))
        await until(lambda: read_traffic_split(worker.folder) == wanted)
        change()
        with pytest.raises(ActivationFailed, match="routes were not taken"):
            await setting
        return read_traffic_split(worker.folder)

    async def steps() -> None:
        routes = TrafficSplit("second", 0.5)
        assert await refused_while(lambda: worker.report("first", {"second": "odd"}, routes)) == before
        assert await refused_while(lambda: write_traffic_split(worker.folder, since)) == since

    run(steps)


def test_routes_do_not_fail_for_what_another_role_is_refused(worker: Worker) -> None:
    async def steps() -> None:
        routes = TrafficSplit("second", 0.5)
        setting = asyncio.create_task(set_traffic_split(worker.folder, worker.state, routes, WAIT))
        await until(lambda: read_traffic_split(worker.folder) == routes)
        worker.report("first", {"third": "CURRENT's, and damaged"}, routes)
        await setting

    run(steps)


_ACTIVATE = """
import asyncio, sys
from pathlib import Path
from recsys_batch.online.serving.activation import activate
asyncio.run(activate(Path(sys.argv[1]), Path(sys.argv[2]), "second", 60))
"""


def test_a_process_that_is_killed_in_the_middle_leaves_a_verified_snapshot_current_and_the_way_free(worker: Worker) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", _ACTIVATE, str(worker.folder), str(worker.state)], env=environment)
    ends = time.monotonic() + 60
    while repository.read_current(worker.folder) != "second" and time.monotonic() < ends:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert repository.read_pointers(worker.folder) == Pointers("second", "first")

    async def steps() -> None:
        rolling_back = asyncio.create_task(roll_back(worker.folder, worker.state, WAIT))
        await until(lambda: rolling_back.done() or repository.read_current(worker.folder) == "first")
        worker.report("first")
        await rolling_back

    run(steps)


def test_a_snapshot_that_cannot_answer_is_never_current(worker: Worker) -> None:
    second = worker.folder / "second"
    (second / "items" / "categories.json").write_text("[]")
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps(manifest | {"files": file_checksums(second)}))
    before = repository.file_stamp(worker.folder / "CURRENT")
    with pytest.raises(SnapshotRefused, match="categories without a name"):
        asyncio.run(activate(worker.folder, worker.state, "second", WAIT))
    assert repository.file_stamp(worker.folder / "CURRENT") == before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no folder"):
        asyncio.run(activation.activate(tmp_path / "none", tmp_path, "first", 1.0))
    assert not (tmp_path / "none").exists()
