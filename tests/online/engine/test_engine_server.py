"""A real server with a model server as its ranker: every request is answered, whatever becomes of that one."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from recsys_batch.online.snapshot.reader import open_snapshot


class Running:
    """A model server in a thread of this process, that can be ended and started again."""

    def __init__(self, fake: Any, port: int) -> None:
        self.fake, self.port = fake, port
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._runner: web.AppRunner | None = None

    def start(self) -> None:
        async def run() -> None:
            self._runner = web.AppRunner(self.fake.application(), shutdown_timeout=0)
            await self._runner.setup()
            await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def stop(self) -> None:
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
            self._runner = None


@pytest.fixture
def remote(model_server: Any, find_port: Callable[[], int]) -> Iterator[Running]:
    running = Running(model_server, find_port())
    yield running
    running.stop()


@pytest.fixture
def served(remote: Running, make: Any, serve: Any, current: Any) -> Any:
    snapshots = make()
    current(snapshots, "first")
    snapshot = open_snapshot(snapshots / "first")
    remote.fake.version = snapshot.model_version
    snapshot.close()
    remote.start()
    options = ("engine=oip", f"engine_url=http://127.0.0.1:{remote.port}", "engine_timeout_ms=200", "engine_rest_seconds=0.2")
    return serve(snapshots, *(part for option in options for part in ("--set", f"online.{option}")))


def test_a_model_server_that_is_ended_and_started_again_in_a_load_costs_no_answer(served: Any, remote: Running, wait_for: Any) -> None:
    assert served.rank(5)["source"] == "ranker" and remote.fake.calls
    statuses: list[int] = []
    sources: set[str] = set()
    ending = threading.Event()

    def load() -> None:
        while not ending.is_set():
            status, answer, _ = served.call("POST", "/v1/rank", {"user_id": 5, "deadline_ms": 250})
            statuses.append(status)
            sources.add(f"{answer['source']} {answer['degraded']}")

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    remote.stop()
    wait_for(lambda: "batch ranker_unavailable" in sources)
    time.sleep(0.3)
    remote.start()
    wait_for(lambda: served.rank(5)["source"] == "ranker")
    ending.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200} and "ranker None" in sources
    page = served.call("GET", "/metrics")[1].decode()
    assert 'recsys_engine_calls_total{outcome="scored"}' in page and "recsys_engine_breaker" in page


def test_a_snapshot_of_a_model_that_the_model_server_lacks_is_refused_until_it_has_it(
    served: Any, remote: Running, make: Any, current: Any, wait_for: Any
) -> None:
    remote.fake.version = "7"
    assert served.rank(5)["degraded"] == "model_mismatch"
    folder: Path = make("second", seed=2)
    current(folder, "second")
    time.sleep(1.5)
    assert served.rank(5)["snapshot_id"] == "first"
    remote.fake.version = "made-up"
    wait_for(lambda: served.rank(5)["snapshot_id"] == "second")
    assert served.rank(5)["source"] == "ranker"
