"""Tuning takes the cheapest setting that reaches the target, on users it can measure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from recsys_batch.ann.backends import IvfRetriever
from recsys_batch.ann.tuning import knn_recall_at_k, tune
from recsys_batch.config import Retrieval
from recsys_batch.errors import RecsysBatchError

if TYPE_CHECKING:
    from conftest import Built


def ivf_of(built: Built) -> IvfRetriever:
    ivf = built.backend("ivf")
    assert isinstance(ivf, IvfRetriever)
    return ivf


def recall_at(built: Built, queries: np.ndarray, nprobe: int) -> float:
    """By sets of codes, on queries without ties."""
    _, found = ivf_of(built).at_nprobe(nprobe).search(queries, 50)
    _, truth = built.exact.search(queries, 50)
    return float(np.mean([len(set(a) & set(b)) / 50 for a, b in zip(found, truth, strict=True)]))


@pytest.fixture
def sample() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(300, 16)).astype(np.float32)


def test_the_choice_reaches_the_target_and_one_list_less_would_not(built: Built, sample: np.ndarray) -> None:
    target = round(recall_at(built, sample, 9), 3) - 0.001
    tuning = tune(ivf_of(built), built.exact, sample, 50, target, Retrieval())
    assert tuning.nprobe is not None
    assert tuning.reached
    assert 2 <= tuning.nprobe <= 9
    assert tuning.knn_recall_at_k >= target > recall_at(built, sample, tuning.nprobe - 1)
    assert [point.nprobe for point in tuning.curve] == sorted({point.nprobe for point in tuning.curve})
    assert json.loads(json.dumps(tuning.to_dict()))["curve"][0]["nprobe"] == tuning.curve[0].nprobe


def test_a_target_that_a_tenth_of_the_lists_misses_takes_all_of_them(built: Built, sample: np.ndarray) -> None:
    ivf = ivf_of(built)
    tuning = tune(ivf, built.exact, sample, 50, 1.0, Retrieval())
    assert (tuning.nprobe, tuning.knn_recall_at_k, tuning.reached) == (ivf.nlist, 1.0, True)


def test_a_fixed_nprobe_is_measured_and_told_when_it_misses(built: Built, sample: np.ndarray) -> None:
    tuning = tune(ivf_of(built), built.exact, sample, 50, 0.999, Retrieval(nprobe=2))
    assert (tuning.nprobe, tuning.reached) == (2, False)
    assert tuning.knn_recall_at_k == pytest.approx(recall_at(built, sample, 2), abs=0.02)
    assert len(tuning.curve) == 1


def test_the_same_users_give_the_same_choice(built: Built, sample: np.ndarray) -> None:
    first, second = (tune(ivf_of(built), built.exact, sample, 50, 0.7, Retrieval()) for _ in range(2))
    assert (first.nprobe, first.knn_recall_at_k) == (second.nprobe, second.knn_recall_at_k)


def test_exact_mode_needs_no_tuning(built: Built, sample: np.ndarray) -> None:
    tuning = tune(built.exact, built.exact, sample, 50, 0.99, Retrieval())
    assert (tuning.nprobe, tuning.knn_recall_at_k, tuning.reached, tuning.curve) == (None, 1.0, True, ())


def test_no_sampled_users_is_an_error(built: Built) -> None:
    with pytest.raises(RecsysBatchError, match="sampled users, found none"):
        tune(ivf_of(built), built.exact, np.zeros((0, 16), np.float32), 50, 0.9, Retrieval())


def test_recall_counts_a_found_item_that_ties_the_kth() -> None:
    true = np.array([[3.0, 2.0, 2.0]], np.float32)  # another item may tie at 2.0 and stand for either
    assert knn_recall_at_k(np.array([[3.0, 2.0, 1.0]], np.float32), true) == pytest.approx(2 / 3)
    assert knn_recall_at_k(np.array([[2.0, 2.0, 2.0]], np.float32), true) == 1.0


def test_recall_of_short_lists_is_of_what_there_is() -> None:
    true = np.array([[3.0, 2.0, -np.inf], [1.0, -np.inf, -np.inf]], np.float32)
    found = np.array([[3.0, -np.inf, -np.inf], [1.0, -np.inf, -np.inf]], np.float32)
    assert knn_recall_at_k(found, true) == pytest.approx((0.5 + 1.0) / 2)
