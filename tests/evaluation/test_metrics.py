"""Metrics against values worked out by hand and against their definitions, user by user."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.errors import RecsysBatchError, UsageError
from recsys_batch.evaluation.metrics import evaluate_lists

N_ITEMS = 12


def ragged(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, lists)])
    return offsets, np.array([code for items in lists for code in items], dtype=np.int64)


def padded(lists: Sequence[Sequence[int]], k: int) -> np.ndarray:
    return np.array([[*items, *[-1] * (k - len(items))] for items in lists], dtype=np.int64).reshape(len(lists), k)


def evaluate(recommended: Sequence[Sequence[int]], truth: Sequence[Sequence[int]], ks: Sequence[int], width: int = 4) -> dict[str, float]:
    return evaluate_lists(padded(recommended, width), *ragged(truth), np.arange(N_ITEMS, dtype=np.int64), ks)


def test_a_user_with_fewer_relevant_items_than_k() -> None:
    found = evaluate([[3, 1, 5, 7]], [[1, 7]], [4])
    assert found["recall_at_4"] == 1.0
    assert found["ndcg_at_4"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)))
    assert found["hit_rate_at_4"] == 1.0
    assert found["mrr_at_4"] == 0.5


def test_a_user_with_more_relevant_items_than_k() -> None:
    found = evaluate([[0, 1, 2, 3]], [[0, 1, 4, 5, 6]], [2])
    assert found["recall_at_2"] == pytest.approx(2 / 5)  # of all relevant, not of the 2 that fit
    assert found["ndcg_at_2"] == 1.0  # the ideal list holds 2


def test_only_users_with_relevant_items_are_averaged_and_those_without_a_list_score_zero() -> None:
    found = evaluate([[0], [1], []], [[0], [], [2]], [1])
    assert found["recall_at_1"] == found["ndcg_at_1"] == found["hit_rate_at_1"] == found["mrr_at_1"] == 0.5


def test_duplicated_truth_counts_once() -> None:
    assert evaluate([[0, 1]], [[0, 0, 0, 5]], [2])["recall_at_2"] == 0.5


def test_padding_never_hits_and_is_no_recommended_place() -> None:
    counts = np.array([7, 1], dtype=np.int64)
    found = evaluate_lists(np.array([[1, -1, -1]]), *ragged([[0]]), counts, [3])
    assert found["hit_rate_at_3"] == 0.0
    assert found["novelty_at_3"] == pytest.approx(-math.log2(2 / 10))
    assert found["popularity_share_at_3"] == 0.0


def test_coverage_is_of_available_items_over_all_lists() -> None:
    available = np.zeros(N_ITEMS, dtype=bool)
    available[:8] = True
    recommended = padded([[0, 1, 9], [1, 2, 0]], 3)
    found = evaluate_lists(recommended, *ragged([[0], []]), np.ones(N_ITEMS, np.int64), [2], available=available)
    assert found["coverage_at_2"] == 3 / 8


def test_popularity_share_counts_the_top_percent_rounded_up_ties_by_code() -> None:
    counts = np.ones(101, dtype=np.int64)
    counts[50] = 9  # the head is 2 of 101 items: 50, then 0 of the tied rest
    found = evaluate_lists(np.array([[50, 0, 1, 2]]), *ragged([[0]]), counts, [4])
    assert found["popularity_share_at_4"] == 0.5


def test_novelty_of_an_untouched_item_is_finite() -> None:
    found = evaluate_lists(np.array([[0]]), *ragged([[1]]), np.array([0, 6], np.int64), [1])
    assert found["novelty_at_1"] == 3.0  # -log2((0 + 1) / (6 + 2))


def test_k_beyond_the_list_keeps_its_own_ideal() -> None:
    found = evaluate([[0, 1, 2, 3]], [list(range(8))], [8])
    assert found["recall_at_8"] == 0.5
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, 9))
    assert found["ndcg_at_8"] == pytest.approx(sum(1 / math.log2(rank + 1) for rank in range(1, 5)) / ideal)


users = st.lists(
    st.tuples(
        st.lists(st.integers(0, N_ITEMS - 1), unique=True, max_size=5),
        st.lists(st.integers(0, N_ITEMS - 1), max_size=8),
    ),
    min_size=1,
    max_size=6,
).filter(lambda lists: any(truth for _, truth in lists))


@given(users, st.integers(1, 7))
def test_ranking_metrics_agree_with_their_definition_user_by_user(lists: list[tuple[list[int], list[int]]], k: int) -> None:
    found = evaluate([items for items, _ in lists], [truth for _, truth in lists], [k], width=5)
    recalls, ndcgs, hit_rates, mrrs = [], [], [], []
    for items, truth in lists:
        relevant = set(truth)
        if not relevant:
            continue
        ranks = [rank for rank, item in enumerate(items[:k], start=1) if item in relevant]
        recalls.append(len(ranks) / len(relevant))
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(relevant), k) + 1))
        ndcgs.append(sum(1 / math.log2(rank + 1) for rank in ranks) / ideal)
        hit_rates.append(float(bool(ranks)))
        mrrs.append(1 / ranks[0] if ranks else 0.0)
    assert found[f"recall_at_{k}"] == pytest.approx(np.mean(recalls))
    assert found[f"ndcg_at_{k}"] == pytest.approx(np.mean(ndcgs))
    assert found[f"hit_rate_at_{k}"] == pytest.approx(np.mean(hit_rates))
    assert found[f"mrr_at_{k}"] == pytest.approx(np.mean(mrrs))


def test_truth_without_a_single_relevant_item_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="none of 2 users"):
        evaluate([[0], [1]], [[], []], [1])


@pytest.mark.parametrize(
    ("recommended", "truth", "message"),
    [
        ([[0, 0]], [[1]], "holds an item twice"),
        ([[N_ITEMS]], [[1]], "recommended codes run from"),
        ([[0]], [[-1]], "truth codes run from"),
        ([[0]], [[1], [2]], "do not fit"),
    ],
)
def test_input_that_would_give_wrong_numbers_is_refused(recommended: list[list[int]], truth: list[list[int]], message: str) -> None:
    with pytest.raises(RecsysBatchError, match=message):
        evaluate(recommended, truth, [1])


def test_no_k_is_refused() -> None:
    with pytest.raises(RecsysBatchError, match="at least one k"):
        evaluate([[0]], [[0]], [])
