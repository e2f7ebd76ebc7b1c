"""Tuning takes the cheapest setting that reaches the target, on users it can measure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.ann.retrievers import Retriever, TunableRetriever
from recsys_batch.ann.tuning import OperatingPoint, Tuning, TuningSample, knn_recall_at_k, tune
from recsys_batch.config import Retrieval
from recsys_batch.errors import IndexDamaged, RecsysBatchError

if TYPE_CHECKING:
    from conftest import Built

OVERFETCHES = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
AUTO = Retrieval()


def sample_of(built: Built, queries: np.ndarray, name: str = "ivf", allowed: np.ndarray | None = None) -> TuningSample:
    retriever: Retriever = built.ivf(name)
    exact: Retriever = built.exact
    if allowed is not None:
        retriever, exact = retriever.restrict(allowed), exact.restrict(allowed)
    return TuningSample(queries, retriever, exact)


def recall_at(sample: TuningSample, nprobe: int, overfetch: float = 1.0) -> float:
    """Of 50, user by user; another item that ties the last one stands for it."""
    assert isinstance(sample.retriever, TunableRetriever)
    scores, _ = sample.retriever.with_nprobe(nprobe, overfetch).search(sample.queries, 50)
    truth, _ = sample.exact.search(sample.queries, 50)
    return float(np.mean([sum(score >= true[-1] for score in found) / 50 for found, true in zip(scores, truth, strict=True)]))


def cost_of(nprobe: int, overfetch: float, mean_list: float, k: int) -> float:
    """Items scanned, and 10 for each that is fetched and scored again."""
    return nprobe * mean_list + 10 * overfetch * k


@pytest.fixture
def queries() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(300, 16)).astype(np.float32)


def test_the_choice_reaches_the_target_and_one_list_less_would_not(built: Built, queries: np.ndarray) -> None:
    sample = sample_of(built, queries)
    target = round(recall_at(sample, 9), 3) - 0.001
    tuning = tune(sample.retriever, [sample], 50, target, AUTO)
    assert tuning.nprobe is not None
    assert tuning.reached
    assert 2 <= tuning.nprobe <= 9
    assert tuning.knn_recall_at_k >= target > recall_at(sample, tuning.nprobe - 1)
    assert (tuning.overfetch, tuning.n_users, tuning.target_recall) == (1.0, 300, target)
    assert [point.nprobe for point in tuning.curve] == sorted({point.nprobe for point in tuning.curve})
    assert {point.overfetch for point in tuning.curve} == {1.0}


def test_a_target_that_a_third_of_the_lists_misses_takes_all_of_them(built: Built, queries: np.ndarray) -> None:
    for name in ("ivf", "int8", "sharded"):
        sample = sample_of(built, queries[:50], name)
        tuning = tune(sample.retriever, [sample], 50, 1.0, AUTO)
        assert recall_at(sample, 62) < 1.0
        assert (tuning.nprobe, tuning.overfetch, tuning.knn_recall_at_k, tuning.reached) == (187, 1.0, 1.0, True)
        assert [point.overfetch for point in tuning.curve if point.nprobe == 187] == [1.0]


def tuned(sample: TuningSample, target: float) -> Tuning:
    return tune(sample.retriever, [sample], 50, target, AUTO)


def test_shards_change_no_choice(built: Built, queries: np.ndarray) -> None:
    whole, sharded = (tuned(sample_of(built, queries, name), 0.8) for name in ("ivf", "sharded"))
    assert [(p.nprobe, p.knn_recall_at_k) for p in whole.curve] == [(p.nprobe, p.knn_recall_at_k) for p in sharded.curve]
    assert (whole.nprobe, whole.knn_recall_at_k) == (sharded.nprobe, sharded.knn_recall_at_k)


def test_a_fixed_nprobe_is_measured_and_told_when_it_misses(built: Built, queries: np.ndarray) -> None:
    sample = sample_of(built, queries)
    tuning = tune(sample.retriever, [sample], 50, 0.999, Retrieval(nprobe=2))
    assert (tuning.nprobe, tuning.reached) == (2, False)
    assert tuning.knn_recall_at_k == pytest.approx(recall_at(sample, 2), abs=1e-6)
    assert [point.nprobe for point in tuning.curve] == [1, 2, 4]  # and half and twice as many, to show what they would give


def test_a_fixed_nprobe_of_int8_leaves_the_over_fetch_to_tuning(built: Built, queries: np.ndarray) -> None:
    sample = sample_of(built, queries, "int8")
    plain, most = recall_at(sample, 20, 1.0), recall_at(sample, 20, 3.0)
    assert plain < most
    reached = tune(sample.retriever, [sample], 50, (plain + most) / 2, Retrieval(nprobe=20))
    assert (reached.nprobe, reached.reached) == (20, True)
    assert reached.overfetch == min(f for f in OVERFETCHES if recall_at(sample, 20, f) >= (plain + most) / 2)
    missed = tune(sample.retriever, [sample], 50, 0.9999, Retrieval(nprobe=20))
    assert (missed.nprobe, missed.reached) == (20, False)
    assert missed.knn_recall_at_k == max(point.knn_recall_at_k for point in missed.curve)
    assert [point.overfetch for point in missed.curve] == list(OVERFETCHES)


@pytest.mark.parametrize("name", ["ivf", "int8"])
def test_the_same_users_give_the_same_choice(built: Built, queries: np.ndarray, name: str) -> None:
    first, second = (tuned(sample_of(built, queries, name), 0.7) for _ in range(2))
    assert [replace(p, seconds_per_1000_users=0) for p in first.curve] == [replace(p, seconds_per_1000_users=0) for p in second.curve]
    assert replace(first, curve=()) == replace(second, curve=())


def test_exact_mode_needs_no_tuning(built: Built, queries: np.ndarray) -> None:
    tuning = tuned(TuningSample(queries, built.exact, built.exact), 0.99)
    assert tuning == Tuning(None, 1.0, 1.0, 0.99, True, 300, ())


@pytest.mark.parametrize("n_samples", [0, 1, 2])
def test_no_sampled_users_is_an_error(built: Built, n_samples: int) -> None:
    with pytest.raises(RecsysBatchError, match="sampled users, found none"):
        tune(built.ivf(), [sample_of(built, np.zeros((0, 16), np.float32))] * n_samples, 50, 0.9, AUTO)


def test_float32_lists_are_searched_for_the_choice_and_beside_it_alone(built: Built, queries: np.ndarray) -> None:
    _, first, n_copies = np.unique(built.stored, axis=0, return_index=True, return_counts=True)
    sample = sample_of(built, queries, allowed=np.isin(np.arange(3000), first[n_copies == 1]))
    tuning = tune(built.ivf(), [sample], 50, 0.5, AUTO)
    assert tuning.nprobe is not None
    assert [point.nprobe for point in tuning.curve] == [tuning.nprobe // 2, tuning.nprobe, 2 * tuning.nprobe]
    assert recall_at(sample, tuning.nprobe) >= 0.5 > recall_at(sample, tuning.nprobe - 1)


@pytest.mark.parametrize("target", [0.5, 0.8, 0.9])
def test_the_over_fetch_of_int8_is_the_cheapest_that_reaches(built: Built, queries: np.ndarray, target: float) -> None:
    sample = sample_of(built, queries[:60], "int8")
    mean_list = 3000 / 187
    costs = {}
    for overfetch in OVERFETCHES:
        fewest = next((nprobe for nprobe in range(1, 63) if recall_at(sample, nprobe, overfetch) >= target), None)
        if fewest is not None:
            costs[fewest, overfetch] = cost_of(fewest, overfetch, mean_list, 50)
    tuning = tune(sample.retriever, [sample], 50, target, AUTO)
    assert (tuning.nprobe, tuning.overfetch) == min(costs, key=lambda key: costs[key])


@dataclass(frozen=True)
class Table:
    """Lists whose recall is written down: all of the k where ``nprobe`` is at least what the over-fetch needs, else ``half``.

    Attributes:
        needs: by over-fetch; more than a third of ``nlist`` is reached by all lists only.
    """

    needs: Sequence[int]
    n_items: int
    half: int
    nlist: int = 90
    nprobe: int = 1
    overfetch: float = 1.0

    @property
    def overfetch_grid(self) -> Sequence[float]:
        return OVERFETCHES[: len(self.needs)]

    def with_nprobe(self, nprobe: int, overfetch: float = 1.0) -> Table:
        return replace(self, nprobe=nprobe, overfetch=overfetch)

    def effective_nprobe(self, k: int) -> int:
        return self.nprobe if self.nprobe * 3 <= self.nlist else self.nlist

    def list_places(self, queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return np.where(codes < self.half, np.minimum(codes, 0), min(self.needs) - 1)

    def restrict(self, allowed: np.ndarray) -> Table:
        raise AssertionError

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = np.tile(-np.arange(k, dtype=np.float32), (len(queries), 1))
        needed = dict(zip(OVERFETCHES, self.needs, strict=False))[self.overfetch]
        if self.effective_nprobe(k) != self.nlist and self.nprobe < needed:
            scores[:, self.half :] = -np.inf
        return scores, np.broadcast_to(np.arange(k), scores.shape)

    def reaching(self, k: int) -> list[tuple[float, int, float]]:
        """(cost, nprobe, over-fetch), for each over-fetch the fewest lists."""
        fewest = [(need, f) if need * 3 <= self.nlist else (self.nlist, 1.0) for need, f in zip(self.needs, OVERFETCHES, strict=False)]
        return [(cost_of(nprobe, f, self.n_items / self.nlist, k), nprobe, f) for nprobe, f in fewest]

    def tuned(self, k: int) -> Tuning:
        exact = replace(self, nprobe=self.nlist)
        return tune(self, [TuningSample(np.zeros((3, 2), np.float32), self, exact)], k, 0.9, AUTO)


@given(
    needs=st.lists(st.integers(1, 60), min_size=1, max_size=6).map(lambda needs: sorted(needs, reverse=True)),
    mean_list=st.sampled_from([1, 10, 200]),
    k=st.sampled_from([2, 10, 200]),
)
def test_the_cheapest_setting_is_taken(needs: list[int], mean_list: int, k: int) -> None:
    table = Table(needs, 90 * mean_list, k // 2)
    costs = [cost for cost, _, _ in table.reaching(k)]
    tuning = table.tuned(k)
    assert tuning.reached
    assert tuning.nprobe is not None
    assert cost_of(tuning.nprobe, tuning.overfetch, mean_list, k) == pytest.approx(min(costs))


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ([60, 60, 8, 8], (8, 1.25)),  # 1.0 and 1.1 both take all lists
        ([20, 20, 5, 5], (5, 1.25)),
    ],
)
def test_the_cheapest_setting_is_taken_where_a_little_more_over_fetch_does_not_help(needs: list[int], expected: tuple[int, float]) -> None:
    table = Table(needs, 90 * 100, 25)
    assert min(table.reaching(50))[1:] == expected
    tuning = table.tuned(50)
    assert (tuning.nprobe, tuning.overfetch) == expected


def test_samples_weigh_by_their_users(built: Built, queries: np.ndarray) -> None:
    some = np.arange(3000) % 4 == 0
    free, bound = sample_of(built, queries[:240]), sample_of(built, queries[240:], allowed=some)
    nothing = sample_of(built, queries[:0], allowed=some)
    tuning = tune(built.ivf(), [free, nothing, bound], 50, 0.9, Retrieval(nprobe=5))
    apart = recall_at(free, 5), recall_at(bound, 5)
    assert abs(apart[0] - apart[1]) > 0.01
    assert (tuning.nprobe, tuning.n_users) == (5, 300)
    assert tuning.knn_recall_at_k == pytest.approx(apart[0] * 0.8 + apart[1] * 0.2, abs=1e-6)


def test_a_choice_for_several_samples_reaches_the_target_for_their_users_together(built: Built, queries: np.ndarray) -> None:
    some = np.arange(3000) % 4 == 0
    samples = [sample_of(built, queries[:200]), sample_of(built, queries[200:], allowed=some)]
    tuning = tune(built.ivf(), samples, 50, 0.75, AUTO)
    assert tuning.nprobe is not None
    together = [sum(recall_at(s, nprobe) * len(s.queries) for s in samples) / 300 for nprobe in (tuning.nprobe, tuning.nprobe - 1)]
    assert together[0] >= 0.75 > together[1]
    assert tuning.knn_recall_at_k == pytest.approx(together[0], abs=1e-6)


def test_a_restricted_sample_may_come_first(built: Built, queries: np.ndarray) -> None:
    some = np.arange(3000) % 2 == 0
    samples = [sample_of(built, queries[:200], allowed=some), sample_of(built, queries[200:])]
    tuning = tune(built.ivf(), samples, 50, 0.9, Retrieval(nprobe=5))
    assert tuning.nprobe == 5
    assert tuning.knn_recall_at_k == pytest.approx(sum(recall_at(s, 5) * len(s.queries) for s in samples) / 300, abs=1e-6)


def test_recall_counts_a_found_item_that_ties_the_kth() -> None:
    true = np.array([[3.0, 2.0, 2.0]], np.float32)  # another item may tie at 2.0 and stand for either
    assert knn_recall_at_k(np.array([[3.0, 2.0, 1.0]], np.float32), true) == pytest.approx(2 / 3)
    assert knn_recall_at_k(np.array([[2.0, 2.0, 2.0]], np.float32), true) == 1.0


def test_recall_of_short_lists_is_of_what_there_is() -> None:
    true = np.array([[3.0, 2.0, -np.inf], [1.0, -np.inf, -np.inf]], np.float32)
    found = np.array([[3.0, -np.inf, -np.inf], [1.0, -np.inf, -np.inf]], np.float32)
    assert knn_recall_at_k(found, true) == pytest.approx((0.5 + 1.0) / 2)


def test_who_has_nothing_to_find_misses_nothing(built: Built, queries: np.ndarray) -> None:
    nothing = np.full((1, 3), -np.inf, np.float32)
    assert knn_recall_at_k(nothing, nothing) == 1.0
    samples = [sample_of(built, queries[:200]), sample_of(built, queries[200:], allowed=np.zeros(3000, dtype=bool))]
    assert tune(built.ivf(), samples, 50, 0.9, AUTO).reached


POINTS = (OperatingPoint(1, 1.0, 0.5, 0.25), OperatingPoint(2, 1.1, 0.9, 0.5))
TUNING = Tuning(2, 1.1, 0.9, 0.85, True, 300, POINTS)


@pytest.mark.parametrize("tuning", [TUNING, Tuning(None, 1.0, 1.0, 0.99, True, 10, ())])
def test_a_tuning_survives_json(tuning: Tuning) -> None:
    assert Tuning.from_dict(json.loads(json.dumps(tuning.to_dict()))) == tuning


@pytest.mark.parametrize(
    "change",
    [
        {"curve": ...},
        {"overfetch": ...},
        {"curve": None},
        {"surplus": 1},
        {"curve": [{"nprobe": 1, "knn_recall_at_k": 0.5, "seconds_per_1000_users": 0.1}]},
        {"curve": [{**POINTS[0].__dict__, "surplus": 1}]},
    ],
)
def test_a_tuning_of_another_release_is_refused(change: dict[str, Any]) -> None:
    values = {key: value for key, value in {**TUNING.to_dict(), **change}.items() if value is not ...}
    with pytest.raises(IndexDamaged, match="build the index again"):
        Tuning.from_dict(values)


def test_measured_time_is_told_and_decides_nothing(built: Built, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys_batch.ann import tuning as module

    chosen = tuned(sample_of(built, queries, "int8"), 0.8)
    assert all(point.seconds_per_1000_users > 0 and math.isfinite(point.seconds_per_1000_users) for point in chosen.curve)
    ticks = iter(np.random.default_rng(0).random(10_000).cumsum())
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    again = tuned(sample_of(built, queries, "int8"), 0.8)
    assert (again.nprobe, again.overfetch) == (chosen.nprobe, chosen.overfetch)
