"""Waiting times against tables, against a simulation, and what must hold of any."""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.plan import queueing
from recsys_batch.plan.queueing import p99_seconds, required_cores, waiting_probability


@pytest.mark.parametrize(
    ("n_cores", "load", "expected"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (5, 4.0, 0.5541), (10, 8.0, 0.4092), (100, 90.0, 0.2169)]
)
def test_the_probability_of_waiting_is_that_of_erlangs_tables(n_cores: int, load: float, expected: float) -> None:
    assert waiting_probability(n_cores, load) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("spare", [0.5, 5, 30, 60, 120, 900])
def test_for_many_cores_the_limit_is_taken_where_the_recursion_ends(spare: float, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = waiting_probability(1001, 1001 - spare)
    monkeypatch.setattr(queueing, "_MANY_CORES", 10_000)
    assert limit == pytest.approx(waiting_probability(1001, 1001 - spare), rel=0.1, abs=2e-4)


def simulate(n_cores: int, rate: float, service: np.ndarray, seed: int) -> float:
    """The 99th percentile of times in a queue for n cores that requests reach at random."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(service)))
    free = [0.0] * n_cores
    times = []
    for arrived, seconds in zip(arrivals, service, strict=True):
        began = max(arrived, heapq.heappop(free))
        heapq.heappush(free, began + seconds)
        times.append(began + seconds - arrived)
    return float(np.percentile(times, 99))


@pytest.mark.parametrize(("n_cores", "load"), [(1, 0.7), (2, 1.5), (8, 7.0)])
@pytest.mark.parametrize("variation", [0.0, 1.0])
def test_the_p99_is_above_that_of_a_simulation_and_not_far(n_cores: int, load: float, variation: float) -> None:
    n, seconds = 400_000, 0.002
    rng = np.random.default_rng(1)
    service = np.full(n, seconds) if variation == 0 else rng.exponential(seconds, n)
    alone = float(np.percentile(service, 99))
    computed = p99_seconds(n_cores, load / seconds, seconds, alone, variation)
    assert 0.93 <= computed / simulate(n_cores, load / seconds, service, 2) <= 1.5


def test_more_load_than_cores_never_ends() -> None:
    assert p99_seconds(2, 1000.0, 0.002, 0.003) == math.inf
    assert waiting_probability(2, 5.0) == 1.0


def test_one_answer_that_is_too_long_is_not_helped_by_cores() -> None:
    assert required_cores(10.0, 0.2, 0.3, 0.25) is None


@given(st.floats(0.01, 5000), st.floats(1e-5, 0.5), st.floats(1.0, 5.0), st.floats(1.0, 4.0))
def test_the_fewest_cores_are_enough_and_one_less_is_not(rate: float, seconds: float, tail: float, slack: float) -> None:
    alone = seconds * tail
    limit = alone * slack
    n_cores = required_cores(rate, seconds, alone, limit)
    assert n_cores is not None and p99_seconds(n_cores, rate, seconds, alone) <= limit
    assert n_cores == 1 or p99_seconds(n_cores - 1, rate, seconds, alone) > limit
