"""n unseen items for every user, whatever the others in the batch have seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_batch.ann.search import Retrieved, Retriever, retrieve
from recsys_batch.errors import RecsysBatchError

if TYPE_CHECKING:
    from conftest import Built

N_ITEMS = 3000


def ragged(lists: Sequence[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    codes = np.concatenate([np.asarray(items, dtype=np.int64) for items in lists]) if len(lists) else np.zeros(0, np.int64)
    return np.cumsum([0, *map(len, lists)]).astype(np.int64), codes


def by_definition(exact: Retriever, query: np.ndarray, seen: Sequence[int] | np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """All items in order, less the seen ones, cut at n."""
    scores, codes = (part[0] for part in exact.search(query[None], N_ITEMS))
    unseen = ~np.isin(codes, np.asarray(seen, dtype=np.int64))
    return scores[unseen][:n], codes[unseen][:n]


def assert_row(found: Retrieved, row: int, scores: np.ndarray, codes: np.ndarray) -> None:
    count = len(codes)
    assert found.counts[row] == count
    np.testing.assert_array_equal(found.codes[row], np.pad(codes, (0, found.codes.shape[1] - count), constant_values=-1))
    np.testing.assert_array_equal(found.scores[row], np.pad(scores, (0, found.scores.shape[1] - count), constant_values=-np.inf))


histories = st.lists(
    st.one_of(
        st.lists(st.integers(0, N_ITEMS - 1), max_size=40),  # random items, duplicates among them
        st.builds(lambda first, n: list(range(first, first + n)), st.integers(0, 1000), st.integers(0, 2000)),
        st.sampled_from([list(range(N_ITEMS)), list(range(N_ITEMS - 1)), list(range(5, N_ITEMS))]),  # nothing or little is left
        st.just([5] * (N_ITEMS + 1)),  # one item, seen more often than there are items
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories=histories, n=st.sampled_from([1, 20, 50]), start=st.integers(0, 60))
def test_exact_retrieval_is_the_full_order_less_what_was_seen(
    built: Built, queries: np.ndarray, histories: list[list[int]], n: int, start: int
) -> None:
    block = queries[start : start + len(histories)]
    found = retrieve(built.exact, built.exact, block, *ragged(histories), n, N_ITEMS)
    for row, seen in enumerate(histories):
        assert_row(found, row, *by_definition(built.exact, block[row], seen, n))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories=histories, nprobe=st.sampled_from([1, 5, 18]), start=st.integers(0, 60))
def test_ivf_retrieval_fills_every_list_with_unseen_unique_items_in_order(
    built: Built, queries: np.ndarray, histories: list[list[int]], nprobe: int, start: int
) -> None:
    block = queries[start : start + len(histories)]
    ivf = built.backend("ivf").at_nprobe(nprobe)
    found = retrieve(ivf, built.exact, block, *ragged(histories), 50, N_ITEMS)
    for row, seen in enumerate(histories):
        count = min(50, N_ITEMS - len(set(seen)))
        assert found.counts[row] == count
        codes, scores = found.codes[row, :count], found.scores[row, :count]
        assert not set(codes) & set(seen)
        assert len(set(codes)) == count
        assert ((np.diff(scores) < 0) | ((np.diff(scores) == 0) & (np.diff(codes) > 0))).all()
        assert (found.codes[row, count:] == -1).all()
        alone = retrieve(ivf, built.exact, block[row : row + 1], *ragged([seen]), 50, N_ITEMS)
        np.testing.assert_array_equal(alone.codes[0], found.codes[row])
        np.testing.assert_array_equal(alone.scores[0], found.scores[row])


class Spy:
    """A retriever that notes how wide it was searched, and for how many users."""

    def __init__(self, inner: Retriever) -> None:
        self.inner = inner
        self.calls: list[tuple[int, int]] = []

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append((len(queries), k))
        return self.inner.search(queries, k)


def test_a_heavy_user_makes_nobody_elses_search_wider(built: Built, queries: np.ndarray) -> None:
    spy = Spy(built.exact)
    heavy = np.arange(1000, 1900)
    retrieve(spy, built.exact, queries[:4], *ragged([[], heavy, [1, 2, 3], []]), 50, N_ITEMS)
    assert sorted(spy.calls) == [(1, 66), (1, 250), (2, 50)]


def test_users_who_come_short_are_searched_wider_and_then_exactly(built: Built, queries: np.ndarray) -> None:
    _, order = built.exact.search(queries[:1], N_ITEMS)
    best_seen = order[0, :400]  # all of the first 250 results are seen
    wide, exact = Spy(built.exact), Spy(built.exact)
    found = retrieve(wide, exact, queries[:1], *ragged([best_seen]), 50, N_ITEMS)
    np.testing.assert_array_equal(found.codes[0], order[0, 400:450])
    assert (wide.calls, exact.calls) == ([(1, 250), (1, 1074)], [])

    narrow, exact = Spy(built.backend("ivf").at_nprobe(1)), Spy(built.exact)
    found = retrieve(narrow, exact, queries[:60], *ragged([[]] * 60), 50, N_ITEMS)
    assert (found.counts == 50).all()
    assert narrow.calls == [(60, 50)]
    assert len(exact.calls) == 1
    assert exact.calls[0][0] < 60  # only the short ones


def test_a_user_who_has_seen_everything_gets_an_empty_list_and_costs_no_search(built: Built, queries: np.ndarray) -> None:
    spy = Spy(built.exact)
    found = retrieve(spy, spy, queries[:1], *ragged([range(N_ITEMS)]), 50, N_ITEMS)
    assert (found.counts[0], spy.calls) == (0, [])


def test_no_users_give_no_rows(built: Built) -> None:
    found = retrieve(built.exact, built.exact, np.zeros((0, 16), np.float32), *ragged([]), 50, N_ITEMS)
    assert found.codes.shape == found.scores.shape == (0, 50)


def test_many_users_are_the_same_as_one_by_one(built: Built) -> None:
    rng = np.random.default_rng(3)
    block = rng.normal(size=(200, 16)).astype(np.float32)
    histories = [rng.integers(0, N_ITEMS, size=size) for size in rng.integers(0, 300, size=200)]
    found = retrieve(built.exact, built.exact, block, *ragged(histories), 50, N_ITEMS)
    for row in range(200):
        assert_row(found, row, *by_definition(built.exact, block[row], histories[row], 50))


@pytest.mark.parametrize(
    ("lists", "n_items", "message"),
    [
        ([[N_ITEMS]], N_ITEMS, "seen codes run from 3000 to 3000"),
        ([[-1]], N_ITEMS, "seen codes run from -1"),
        ([[1], [2]], N_ITEMS, "seen offsets"),
        ([[]], N_ITEMS - 1000, "the index is over other items"),
        ([range(2900)], N_ITEMS + 500, "must be over the same 3500 items"),
    ],
)
def test_input_that_does_not_fit_the_index_is_refused(
    built: Built, queries: np.ndarray, lists: list[list[int]], n_items: int, message: str
) -> None:
    with pytest.raises(RecsysBatchError, match=message):
        retrieve(built.exact, built.exact, queries[:1], *ragged(lists), 400, n_items)
