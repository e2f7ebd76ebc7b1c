import asyncio
import contextlib
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from recsys_batch.online.oip import dynamic_batcher
from recsys_batch.online.oip.dynamic_batcher import ClientLeft, DeadlinePassed, DynamicBatcher
from recsys_batch.online.oip.model_api import InvalidRequest, OipModel, TensorSpec, split_rows
from recsys_batch.online.serving.admission import Overloaded


class Doubling(OipModel):
    """Doubles rows, refuses negative ones, and remembers how many rows each run had."""

    name, version, rows_are_independent = "doubling", "1", True
    inputs: Sequence[TensorSpec] = (TensorSpec("x", "FP32", (-1, -1)),)
    outputs: Sequence[TensorSpec] = (TensorSpec("y", "FP32", (-1, -1)),)

    def __init__(self) -> None:
        self.runs: list[int] = []

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.runs.append(len(inputs["x"]))
        if (inputs["x"] < 0).any():
            raise InvalidRequest("negative")
        return {"y": 2 * inputs["x"]}


def of(n: int, width: int = 2, value: float | None = None) -> dict[str, np.ndarray]:
    return {"x": np.full((n, width), n if value is None else value, np.float32)}


def answers(batching: DynamicBatcher, model: Doubling, requests: list[dict[str, np.ndarray]]) -> list[Any]:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(batching.infer(model, request) for request in requests), return_exceptions=True)

    return asyncio.run(all_at_once())


def test_what_waits_together_runs_together_and_each_gets_its_own() -> None:
    model = Doubling()
    found = answers(DynamicBatcher(max_rows=8), model, [of(1), of(2), of(3)])
    assert model.runs == [6]
    for n, output in enumerate(found, 1):
        np.testing.assert_array_equal(output["y"], np.full((n, 2), 2.0 * n))


def test_a_run_has_no_more_rows_than_allowed() -> None:
    model = Doubling()
    answers(DynamicBatcher(max_rows=4), model, [of(3), of(2), of(1), of(1), of(9)])
    assert sum(model.runs) == 16 and max(n for n in model.runs if n != 9) <= 4


def test_a_bad_request_fails_alone() -> None:
    model = Doubling()
    found = answers(DynamicBatcher(max_rows=8), model, [of(1), of(2, value=-1), of(3)])
    assert isinstance(found[1], InvalidRequest)
    np.testing.assert_array_equal(found[0]["y"], [[2, 2]])
    np.testing.assert_array_equal(found[2]["y"], np.full((3, 2), 6.0))


def test_other_shapes_are_not_joined() -> None:
    model = Doubling()
    found = answers(DynamicBatcher(max_rows=8), model, [of(1, 2), of(1, 3), of(1, 2)])
    assert sorted(model.runs) == [1, 2] and [one["y"].shape for one in found] == [(1, 2), (1, 3), (1, 2)]


def test_one_row_at_a_time_where_batching_is_off() -> None:
    model = Doubling()
    answers(DynamicBatcher(max_rows=1), model, [of(1), of(1)])
    assert model.runs == [1, 1]


def test_with_a_delay_later_requests_are_joined_too() -> None:
    async def apart(delay: float) -> list[int]:
        model, batching = Doubling(), DynamicBatcher(max_rows=8, max_delay=delay)
        first = asyncio.create_task(batching.infer(model, of(1)))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, batching.infer(model, of(1)))
        return model.runs

    assert asyncio.run(apart(0.0)) == [1, 1] and asyncio.run(apart(0.2)) == [2]


def test_past_the_bound_requests_are_refused_and_the_others_answered() -> None:
    model = Doubling()
    found = answers(DynamicBatcher(max_rows=100, max_waiting=3), model, [of(1)] * 5)
    assert [isinstance(one, Overloaded) for one in found] == [False] * 3 + [True] * 2


def test_who_goes_away_costs_the_others_nothing() -> None:
    async def one_leaves() -> Any:
        model, batching = Doubling(), DynamicBatcher(max_rows=8, max_delay=0.05)
        leaving = asyncio.create_task(batching.infer(model, of(1)))
        staying = asyncio.create_task(batching.infer(model, of(2)))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying, model.runs

    output, runs = asyncio.run(one_leaves())
    assert runs == [2] and output["y"].shape == (2, 2)


def test_an_error_of_the_model_is_the_callers() -> None:
    class Broken(Doubling):
        def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            raise RuntimeError("broken")

    found = answers(DynamicBatcher(), Broken(), [of(1), of(1)])
    assert [str(one) for one in found] == ["broken", "broken"]
    with pytest.raises(RuntimeError, match="broken"):
        raise found[0]


class InPieces(Doubling):
    """Of two rows; says when it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.holders = 0

    def split(self, inputs: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        return split_rows(inputs, ["x"], 2)

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        self.holders += 1
        try:
            yield
        finally:
            self.holders -= 1

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        assert len(inputs["x"]) <= 2 and (len(inputs["x"]) < 2 or self.holders >= 1)
        return super().infer(inputs)


def test_a_long_request_is_answered_whole_and_others_between_its_pieces() -> None:
    async def both() -> tuple[list[str], Any]:
        model, batching, order = InPieces(), DynamicBatcher(max_rows=8), []

        async def ask(name: str, request: dict[str, np.ndarray]) -> Any:
            found = await batching.infer(model, request)
            order.append(name)
            return found

        long = np.arange(18, dtype=np.float32).reshape(9, 2)
        found, _ = await asyncio.gather(ask("long", {"x": long}), ask("short", of(1)))
        np.testing.assert_array_equal(found["y"], 2 * long)
        assert model.holders == 0
        return order, model.runs

    order, runs = asyncio.run(both())
    assert order == ["short", "long"] and sorted(runs) == [1, 1, 2, 2, 2, 2]


class Slow(InPieces):
    """Says which request each run was of."""

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.runs.append(int(inputs["x"][0, 0]))
        return {"y": 2 * inputs["x"]}


def test_long_requests_take_turns_so_that_one_run_is_between_two_turns_of_the_loop() -> None:
    async def both() -> list[int]:
        model, batching = Slow(), DynamicBatcher()
        asked = [asyncio.create_task(batching.infer(model, of(6, value=value))) for value in (1, 2)]
        await asyncio.sleep(0)
        most = 0
        while not all(one.done() for one in asked):
            before = len(model.runs)
            await asyncio.sleep(0)
            most = max(most, len(model.runs) - before)
        assert most == 1
        return model.runs

    assert asyncio.run(both()) == [1, 1, 1, 2, 2, 2]


def test_rows_weigh_and_what_is_heavier_than_the_bound_is_answered_where_nothing_waits() -> None:
    model = InPieces()
    found = answers(DynamicBatcher(max_waiting=10), model, [of(20), of(4)])
    assert found[0]["y"].shape == (20, 2) and str(found[1]) == "20 rows wait or are worked on, and 4 more are too many at once: try again"
    found = answers(DynamicBatcher(max_waiting=10), model, [of(4), of(5), of(2), of(1)])
    assert [isinstance(one, Overloaded) for one in found] == [False, False, True, False]


def test_work_stops_between_two_runs_where_the_client_left_and_its_room_is_free_again() -> None:
    async def leave() -> tuple[list[int], Any]:
        model, batching, left = Slow(), DynamicBatcher(max_waiting=20), asyncio.Event()

        async def client_left() -> None:
            await left.wait()

        leaving = asyncio.create_task(batching.infer(model, of(200, value=1), client_left))
        while len(model.runs) < 3:
            await asyncio.sleep(0)
        left.set()
        with pytest.raises(ClientLeft):
            await leaving
        found = await batching.infer(model, of(20, value=2))
        assert model.holders == 0
        return model.runs, found["y"].shape

    runs, shape = asyncio.run(leave())
    assert runs.count(1) < 20 and runs.count(2) == 10 and shape == (20, 2)


def test_the_outputs_of_a_long_request_are_in_memory_once() -> None:
    class Wide(InPieces):
        def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            return {"y": np.ones((len(inputs["x"]), 50_000), np.float32)}

    tracemalloc.start()
    found = asyncio.run(DynamicBatcher().infer(Wide(), of(40)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["y"].nbytes == 8_000_000 and peak < 10_000_000


class Clock:
    """Stands still unless a test turns it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The batcher's clock."""
    clock = Clock()
    monkeypatch.setattr(dynamic_batcher, "time", clock)
    return clock


def test_requests_that_come_one_after_the_other_while_the_loop_is_busy_run_together(clock: Clock) -> None:
    async def one_a_few_turns() -> list[int]:
        model, batching = Doubling(), DynamicBatcher(max_rows=8)
        asked = []
        for _ in range(4):
            asked.append(asyncio.create_task(batching.infer(model, of(1))))
            for _ in range(3):
                await asyncio.sleep(0)
        await asyncio.gather(*asked)
        return model.runs

    assert asyncio.run(one_a_few_turns()) == [4]


def test_a_request_that_comes_alone_does_not_wait_for_others() -> None:
    async def turns() -> int:
        model, batching = Doubling(), DynamicBatcher(max_rows=8)
        asked = asyncio.create_task(batching.infer(model, of(1)))
        n_turns = 0
        while not asked.done():
            await asyncio.sleep(0)
            n_turns += 1
        return n_turns

    assert asyncio.run(turns()) < 50


def test_past_its_deadline_a_request_is_told_so_and_not_run(clock: Clock) -> None:
    async def some_late() -> tuple[list[Any], list[int]]:
        model, batching, now = Doubling(), DynamicBatcher(max_rows=8), clock.now
        deadlines = (None, now - 1, now + 60)
        asked = (batching.infer(model, of(n), deadline=deadline) for n, deadline in enumerate(deadlines, 1))
        return await asyncio.gather(*asked, return_exceptions=True), model.runs

    (first, late, third), runs = asyncio.run(some_late())
    assert isinstance(late, DeadlinePassed) and runs == [4]
    assert (first["y"].shape, third["y"].shape) == ((1, 2), (3, 2))


def test_a_long_request_ends_at_its_deadline(clock: Clock) -> None:
    class Hurried(InPieces):
        def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            clock.now += 1.0
            return super().infer(inputs)

    model = Hurried()

    async def late() -> None:
        with pytest.raises(DeadlinePassed):
            await DynamicBatcher().infer(model, of(1000), deadline=clock.now + 2.5)

    asyncio.run(late())
    assert model.runs == [2, 2, 2]


def test_requests_that_go_on_coming_hold_up_the_first_one_for_a_few_milliseconds_only(clock: Clock) -> None:
    async def a_stream_of_them() -> list[int]:
        model, batching = Doubling(), DynamicBatcher(max_rows=1000)
        asked = []
        for _ in range(20):
            asked.append(asyncio.create_task(batching.infer(model, of(1))))
            clock.now += 0.001
            await asyncio.sleep(0)
        await asyncio.gather(*asked)
        return model.runs

    assert max(asyncio.run(a_stream_of_them())) <= 6
