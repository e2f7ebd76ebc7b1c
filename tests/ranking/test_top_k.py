"""Exact top-k: one order everywhere, ties included."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys_batch.errors import RecsysBatchError
from recsys_batch.ranking.top_k import merge_top_k, order_pairs, select_top_k_per_row

# Few distinct values, so that ties are the rule; signed zeros, infinities and a subnormal among them.
TIED = st.sampled_from([np.float32(v) for v in (-np.inf, -2.5, -1e-42, -0.0, 0.0, 1e-42, 1.0, 3.0, np.inf)])


def by_lexsort(scores: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The order by definition: score descending, then code ascending."""
    order = np.lexsort((codes, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(codes, order, axis=1)


def matrices(max_columns: int) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(0, 6), st.integers(0, max_columns))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=TIED))


@given(matrices(60), st.integers(1, 70))
def test_top_k_is_the_head_of_the_full_order_however_many_scores_are_tied(scores: np.ndarray, k: int) -> None:
    values, indices = select_top_k_per_row(scores, k)
    expected = by_lexsort(scores, np.broadcast_to(np.arange(scores.shape[1]), scores.shape), k)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(indices, expected[1])
    assert (values.dtype, indices.dtype) == (np.float32, np.int64)


def test_ties_across_the_kth_place_keep_the_lowest_indices_in_every_row() -> None:
    scores = np.zeros((3, 100), dtype=np.float32)
    scores[0, 90] = 1  # three rows: one winner late, no winner, all distinct
    scores[2] = np.arange(100)
    _, indices = select_top_k_per_row(scores, 3)
    np.testing.assert_array_equal(indices, [[90, 0, 1], [0, 1, 2], [99, 98, 97]])


def test_rows_are_independent_of_the_blocks_they_are_worked_on_in(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).integers(0, 20, size=(37, 200)).astype(np.float32)
    whole = select_top_k_per_row(scores, 10)
    monkeypatch.setattr("recsys_batch.ranking.top_k._MAX_BLOCK_SCORES", 700)
    monkeypatch.setattr("recsys_batch.ranking.top_k._MAX_SORTED_PAIRS", 30)
    for expected, found in zip(whole, select_top_k_per_row(scores, 10), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_excluded_columns_come_only_after_every_finite_one() -> None:
    scores = np.array([[-np.inf, 1.0, -np.inf, -5.0]], dtype=np.float32)
    values, indices = select_top_k_per_row(scores, 3)
    np.testing.assert_array_equal(indices, [[1, 3, 0]])
    np.testing.assert_array_equal(values, np.array([[1.0, -5.0, -np.inf]], dtype=np.float32))


@pytest.mark.parametrize("k", [1, 40])
def test_nan_is_refused_and_its_place_named(k: int) -> None:
    scores = np.zeros((2, 50), dtype=np.float32)
    scores[1, 7] = np.nan
    with pytest.raises(RecsysBatchError, match="NaN at row 1, column 7"):
        select_top_k_per_row(scores, k)


@pytest.mark.parametrize(("scores", "k"), [(np.zeros((1, 2)), 1), (np.zeros(3, np.float32), 1), (np.zeros((1, 2), np.float32), 0)])
def test_float64_vectors_and_k_below_one_are_refused(scores: np.ndarray, k: int) -> None:
    with pytest.raises(RecsysBatchError, match="top-k needs"):
        select_top_k_per_row(scores, k)


@given(matrices(40), st.integers(1, 50), st.lists(st.integers(0, 40), max_size=4))
def test_merging_shards_equals_the_top_k_of_everything(scores: np.ndarray, k: int, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, scores.shape[1]) for cut in cuts), scores.shape[1]]
    parts = []
    for start, stop in pairwise(bounds):
        values, indices = select_top_k_per_row(scores[:, start:stop], k)
        parts.append((values, indices + start))
    for expected, found in zip(select_top_k_per_row(scores, k), merge_top_k(parts, k), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_padded_places_of_a_shard_stay_behind_excluded_items() -> None:
    padded = (np.array([[1.0, -np.inf]], np.float32), np.array([[4, -1]]))
    other = (np.array([[2.0, -np.inf]], np.float32), np.array([[9, 3]]))
    _, indices = merge_top_k([padded, other], 4)
    np.testing.assert_array_equal(indices, [[9, 4, 3, -1]])


def test_merging_nothing_is_refused() -> None:
    with pytest.raises(RecsysBatchError, match="no parts"):
        merge_top_k([], 3)


def test_codes_up_to_32_bits_survive_the_packing() -> None:
    codes = np.array([[2**32 - 2, 2**31, 0, -1]])
    scores = np.array([[5.0, 5.0, 5.0, -np.inf]], np.float32)
    _, ordered = order_pairs(scores, codes, 4)
    np.testing.assert_array_equal(ordered, [[0, 2**31, 2**32 - 2, -1]])
