"""Scores by a model server: the same order as the snapshot's own ranker, and the ladder whatever the server does."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from recsys_batch.online.engine.remote_ranker import RemoteRanker
from recsys_batch.online.engine.remote_ranking import RemoteFailure, rank_many_remotely
from recsys_batch.online.ranking.ladder import RankInput, rank_many
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.online.serving.micro_batcher import MicroBatcher
from recsys_batch.online.snapshot.reader import Snapshot

ENGINES: dict[str, dict[str, Any]] = {
    "oip": {"engine": "oip"},
    "oip as JSON": {"engine": "oip", "engine_binary": False},
    "torchserve": {"engine": "torchserve"},
    "tfserving": {"engine": "tfserving"},
}
MAYBE_FAILED = pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("hang", "ranker_unavailable"),
        ("close", "ranker_unavailable"),
        ("busy", "ranker_unavailable"),
        ("error", "ranker_failed"),
        ("nan", "ranker_failed"),
        ("shape", "ranker_failed"),
    ],
)


def with_server(model_server: Any, settings_of: Any, use: Callable[[RemoteRanker], Awaitable[Any]], **settings: Any) -> Any:
    """Run ``use`` with a client of the server."""

    async def run() -> Any:
        async with TestServer(model_server.application()) as server:
            client = RemoteRanker(settings_of(server, **settings))
            try:
                return await use(client)
            finally:
                await client.close()

    return asyncio.run(run())


def some_inputs(snapshot: Snapshot, n: int = 20, deadline: float | None = None) -> list[RankInput]:
    users = range(1, n + 1)
    return [RankInput(RankQuery(user, 5, deadline=deadline), snapshot.lookup(user)) for user in users]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_server_with_the_snapshots_model_gives_its_own_rankers_answers(
    snapshot: Snapshot, model_server: Any, settings_of: Any, engine: str
) -> None:
    model_server.version = snapshot.model_version
    inputs = some_inputs(snapshot)
    expected = rank_many(snapshot, inputs, LatencyTracker())

    async def use(client: RemoteRanker) -> Any:
        assert await client.why_not(snapshot.model_version) is None
        return await rank_many_remotely(snapshot, inputs, LatencyTracker(), None, client)

    answered = with_server(model_server, settings_of, use, **ENGINES[engine])
    assert {result.source for result in answered} == {"ranker"}
    for one, other in zip(answered, expected, strict=True):
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    assert max(model_server.calls) == 16  # together, not one by one


@pytest.mark.parametrize("token", [None, "secret"])
def test_a_token_of_the_environment_goes_with_every_call(
    snapshot: Snapshot, model_server: Any, settings_of: Any, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("RECSYS_BATCH_ENGINE_TOKEN", token)
    model_server.version = snapshot.model_version

    async def use(client: RemoteRanker) -> Any:
        return await rank_many_remotely(snapshot, some_inputs(snapshot, 3), LatencyTracker(), None, client)

    with_server(model_server, settings_of, use)
    assert model_server.tokens == {None if token is None else "Bearer secret"}


@pytest.mark.parametrize("engine", ENGINES)
@MAYBE_FAILED
def test_whatever_the_server_does_the_nights_order_is_the_answer(
    snapshot: Snapshot, model_server: Any, settings_of: Any, engine: str, mode: str, reason: str
) -> None:
    model_server.version, model_server.mode = snapshot.model_version, mode

    async def use(client: RemoteRanker) -> Any:
        began = time.perf_counter()
        results = await rank_many_remotely(snapshot, some_inputs(snapshot, 3), LatencyTracker(), None, client)
        return results, time.perf_counter() - began

    results, seconds = with_server(model_server, settings_of, use, **ENGINES[engine])
    assert {(result.source, result.degraded) for result in results} == {("batch", reason)}
    assert seconds < 5.0  # and not the server's 30


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_went_over_to_another_model_is_noticed(snapshot: Snapshot, model_server: Any, settings_of: Any, engine: str) -> None:
    model_server.version = "another"

    async def use(client: RemoteRanker) -> Any:
        why = await client.why_not(snapshot.model_version)
        assert why is not None and f"no version {snapshot.model_version} of model ranker" in why
        for _ in range(10):  # which is no failure that the breaker counts
            results = await rank_many_remotely(snapshot, some_inputs(snapshot, 1), LatencyTracker(), None, client)
        assert client.breaker_state == "closed"
        return results

    (result,) = with_server(model_server, settings_of, use, **ENGINES[engine])
    assert (result.source, result.degraded) == ("batch", "model_mismatch")


def test_a_server_that_fails_is_left_alone_and_asked_again_later(snapshot: Snapshot, model_server: Any, settings_of: Any) -> None:
    model_server.version, model_server.mode = snapshot.model_version, "error"

    async def rank(client: RemoteRanker) -> str | None:
        (result,) = await rank_many_remotely(snapshot, some_inputs(snapshot, 1), LatencyTracker(), None, client)
        return result.degraded

    async def use(client: RemoteRanker) -> None:
        assert [await rank(client) for _ in range(3)] == ["ranker_failed"] * 3
        assert client.breaker_state == "open"
        n_calls = len(model_server.calls)
        assert await rank(client) == "ranker_unavailable"
        assert len(model_server.calls) == n_calls
        model_server.mode = "ok"
        await asyncio.sleep(0.3)
        assert await rank(client) is None
        assert client.breaker_state == "closed"

    with_server(model_server, settings_of, use, engine_max_failures=3, engine_rest_seconds=0.2)


def test_a_deadline_shortens_the_wait(snapshot: Snapshot, model_server: Any, settings_of: Any) -> None:
    model_server.version, model_server.mode = snapshot.model_version, "hang"

    async def use(client: RemoteRanker) -> float:
        began = time.perf_counter()
        with pytest.raises(RemoteFailure):
            arrays = np.zeros((1, 16), np.float32), np.zeros((1, 2, 16), np.float32), np.zeros((1, 2, 16), np.float32)
            await client.score(snapshot.model_version, *arrays, deadline=began + 0.05)
        return time.perf_counter() - began

    assert with_server(model_server, settings_of, use, engine_timeout_ms=20_000) < 10


class Loaded:
    """A snapshot in use, of which nobody counts the leases."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.latency = snapshot, LatencyTracker()


def submit(batcher: MicroBatcher, loaded: Loaded, rank_input: RankInput) -> asyncio.Future[RankResult]:
    """The future of what a batcher hands over."""
    settled: asyncio.Future[RankResult] = asyncio.get_running_loop().create_future()

    def settle(result: RankResult | Exception) -> None:
        if isinstance(result, Exception):
            settled.set_exception(result)
        else:
            settled.set_result(result)

    batcher.submit(loaded, rank_input, settle)  # type: ignore[arg-type]
    return settled


def test_requests_that_come_while_all_calls_are_out_go_together(snapshot: Snapshot, model_server: Any, settings_of: Any) -> None:
    model_server.version = snapshot.model_version

    async def use(client: RemoteRanker) -> list[Any]:
        batcher, loaded = MicroBatcher(remote=client), Loaded(snapshot)
        first = submit(batcher, loaded, some_inputs(snapshot, 1)[0])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        others = []
        for rank_input in some_inputs(snapshot, 9):
            others.append(submit(batcher, loaded, rank_input))
            await asyncio.sleep(0)
        return await asyncio.gather(first, *others)

    results = with_server(model_server, settings_of, use, engine_connections=1)
    assert {result.source for result in results} == {"ranker"}
    assert model_server.calls == [1, 9]


def test_a_damaged_record_fails_its_own_request_alone(snapshot: Snapshot, model_server: Any, settings_of: Any) -> None:
    model_server.version = snapshot.model_version
    inputs = [RankInput(RankQuery(user, 5, candidate_item_ids=[1, 2, 3]), snapshot.lookup(user)) for user in range(4)]
    assert inputs[1].record is not None and inputs[1].record.embedding is not None
    inputs[1].record = replace(inputs[1].record, embedding=inputs[1].record.embedding[:3])

    async def use(client: RemoteRanker) -> list[Any]:
        batcher, loaded = MicroBatcher(remote=client), Loaded(snapshot)
        calls = (submit(batcher, loaded, rank_input) for rank_input in inputs)
        return await asyncio.gather(*calls, return_exceptions=True)

    results = with_server(model_server, settings_of, use)
    assert isinstance(results[1], ValueError) and [len(result.codes) for result in (results[0], *results[2:])] == [3, 3, 3]
