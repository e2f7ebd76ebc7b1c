"""n unseen items for every user, whatever the others in the batch have seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_batch.ann import filtered_search
from recsys_batch.ann.filtered_search import SearchResult, search_unseen
from recsys_batch.ann.index import build_index
from recsys_batch.ann.retrievers import IvfRetriever, Retriever
from recsys_batch.ann.search import open_retriever
from recsys_batch.config import Retrieval
from recsys_batch.errors import RecsysBatchError

if TYPE_CHECKING:
    from conftest import Built

N_ITEMS, MANY = 3000, 12_000


def ragged(lists: Sequence[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    codes = np.concatenate([np.asarray(items, dtype=np.int64) for items in lists]) if len(lists) else np.zeros(0, np.int64)
    return np.cumsum([0, *map(len, lists)]).astype(np.int64), codes


def by_definition(exact: Retriever, query: np.ndarray, seen: Sequence[int] | np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """All items in order, less the seen ones, cut at n."""
    scores, codes = (part[0] for part in exact.search(query[None], exact.n_items))
    unseen = ~np.isin(codes, np.asarray(seen, dtype=np.int64))
    return scores[unseen][:n], codes[unseen][:n]


def assert_row(found: SearchResult, row: int, scores: np.ndarray, codes: np.ndarray) -> None:
    count = len(codes)
    assert found.counts[row] == count
    np.testing.assert_array_equal(found.codes[row], np.pad(codes, (0, found.codes.shape[1] - count), constant_values=-1))
    np.testing.assert_array_equal(found.scores[row], np.pad(scores, (0, found.scores.shape[1] - count), constant_values=-np.inf))


def assert_filled(found: SearchResult, row: int, allowed: set[int], seen: set[int]) -> None:
    """As many as there can be: allowed, unseen, unique, in order, padded at the end."""
    count = min(found.codes.shape[1], len(allowed - seen))
    assert found.counts[row] == count
    codes, scores = found.codes[row, :count], found.scores[row, :count]
    assert set(codes.tolist()) <= allowed - seen
    assert len(set(codes.tolist())) == count
    assert ((np.diff(scores) < 0) | ((np.diff(scores) == 0) & (np.diff(codes) > 0))).all()
    assert np.isfinite(scores).all()
    assert (found.codes[row, count:] == -1).all()
    assert (found.scores[row, count:] == -np.inf).all()


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


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories=histories, n=st.sampled_from([1, 20, 50]), start=st.integers(0, 60))
def test_exact_retrieval_is_the_full_order_less_what_was_seen(
    built: Built, queries: np.ndarray, histories: list[list[int]], n: int, start: int
) -> None:
    block = queries[start : start + len(histories)]
    found = search_unseen(built.exact, built.exact, block, *ragged(histories), n, N_ITEMS)
    for row, seen in enumerate(histories):
        assert_row(found, row, *by_definition(built.exact, block[row], seen, n))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    histories=histories,
    name=st.sampled_from(["ivf", "int8", "sharded"]),
    nprobe=st.sampled_from([1, 5, 62]),
    start=st.integers(0, 60),
)
def test_ivf_retrieval_fills_every_list_with_unseen_unique_items_in_order(
    built: Built, queries: np.ndarray, histories: list[list[int]], name: str, nprobe: int, start: int
) -> None:
    block = queries[start : start + len(histories)]
    ivf = built.ivf(name, nprobe=nprobe, overfetch=1.1)
    found = search_unseen(ivf, built.exact, block, *ragged(histories), 50, N_ITEMS)
    for row, seen in enumerate(histories):
        assert_filled(found, row, set(range(N_ITEMS)), set(seen))
        alone = search_unseen(ivf, built.exact, block[row : row + 1], *ragged([seen]), 50, N_ITEMS)
        np.testing.assert_array_equal(alone.codes[0], found.codes[row])
        np.testing.assert_array_equal(alone.scores[0], found.scores[row])


restrictions = st.one_of(
    st.builds(
        lambda seed, share: np.random.default_rng(seed).random(N_ITEMS) < share, st.integers(0, 99), st.sampled_from([0.05, 0.5, 0.95])
    ),
    st.builds(lambda codes: np.isin(np.arange(N_ITEMS), codes), st.lists(st.integers(0, N_ITEMS - 1), max_size=60)),
    st.sampled_from([np.zeros(N_ITEMS, dtype=bool), np.ones(N_ITEMS, dtype=bool)]),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    histories=histories,
    allowed=restrictions,
    name=st.sampled_from(["exact", "exact of sharded", "ivf", "int8", "sharded"]),
    n=st.sampled_from([1, 50]),
    start=st.integers(0, 60),
)
def test_restricted_retrieval_finds_all_it_needs_among_what_is_allowed(
    built: Built, queries: np.ndarray, histories: list[list[int]], allowed: np.ndarray, name: str, n: int, start: int
) -> None:
    block = queries[start : start + len(histories)]
    histories = [[code for code in seen if allowed[code]] for seen in histories]
    searched = (built.open(name) if name.startswith("exact") else built.ivf(name, overfetch=1.5)).restrict(allowed)
    exact = built.exact.restrict(allowed)
    found = search_unseen(searched, exact, block, *ragged(histories), n, N_ITEMS)
    for row, seen in enumerate(histories):
        assert_filled(found, row, set(np.flatnonzero(allowed).tolist()), set(seen))
        if name.startswith("exact") and allowed.any():
            assert_row(found, row, *by_definition(exact, block[row], seen, n))
        alone = search_unseen(searched, exact, block[row : row + 1], *ragged([seen]), n, N_ITEMS)
        np.testing.assert_array_equal(alone.codes[0], found.codes[row])
        np.testing.assert_array_equal(alone.scores[0], found.scores[row])


@pytest.mark.parametrize("name", ["exact", "ivf", "int8", "sharded"])
def test_all_items_may_be_asked_for(built: Built, queries: np.ndarray, name: str) -> None:
    seen: list[Sequence[int]] = [[], [3, 3, 5], range(2990), range(N_ITEMS), range(0, N_ITEMS, 2)]
    searched = built.exact if name == "exact" else built.ivf(name)
    found = search_unseen(searched, built.exact, queries[58:63], *ragged(seen), N_ITEMS, N_ITEMS)
    assert found.counts.tolist() == [3000, 2998, 10, 0, 1500]
    for row in range(5):
        assert_row(found, row, *by_definition(built.exact, queries[58 + row], seen[row], N_ITEMS))


def test_more_than_all_items_are_all_items(built: Built, queries: np.ndarray) -> None:
    found = search_unseen(built.ivf(), built.exact, queries[:2], *ragged([[], [7]]), N_ITEMS + 100, N_ITEMS)
    assert found.codes.shape == (2, N_ITEMS + 100)
    for row, seen in enumerate(([], [7])):
        assert_row(found, row, *by_definition(built.exact, queries[row], seen, N_ITEMS + 100))


class Spy:
    """A retriever that notes how wide it was searched, and for how many users."""

    def __init__(self, inner: Retriever, n_items: int | None = None) -> None:
        self.inner = inner
        self.n_items = inner.n_items if n_items is None else n_items
        self.calls: list[tuple[int, int]] = []

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append((len(queries), k))
        return self.inner.search(queries, k)

    def restrict(self, allowed: np.ndarray) -> Retriever:
        raise AssertionError


def test_a_heavy_user_makes_nobody_elses_search_wider(built: Built, queries: np.ndarray) -> None:
    spy = Spy(built.exact)
    heavy = np.arange(1000, 1900)
    search_unseen(spy, built.exact, queries[:4], *ragged([[], heavy, [1, 2, 3], []]), 50, N_ITEMS)
    assert sorted(spy.calls) == [(1, 66), (1, 250), (2, 50)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[IvfRetriever, Retriever]:
    """A catalogue that is large enough for a history of 10,000."""
    directory = tmp_path_factory.mktemp("many")
    vectors = np.random.default_rng(11).normal(size=(MANY, 8)).astype(np.float32)
    info = build_index(vectors, Retrieval(mode="ivf", n_candidates=200), directory, n_threads=1)
    ivf = open_retriever(directory, info, nprobe=30)
    assert isinstance(ivf, IvfRetriever)
    return ivf, open_retriever(directory, info.as_exact())


@pytest.mark.parametrize("history", ["best", "random", "worst"])
@pytest.mark.parametrize("ivf", [False, True])
@pytest.mark.parametrize("restricted", [False, True])
def test_a_history_of_ten_thousand_gets_n_items_beside_users_with_none(
    many: tuple[IvfRetriever, Retriever], history: str, ivf: bool, restricted: bool
) -> None:
    allowed = np.random.default_rng(13).random(MANY) < (0.9 if restricted else 2)
    exact = many[1].restrict(allowed)
    searched = Spy(many[0].restrict(allowed) if ivf else exact)
    block = np.random.default_rng(12).normal(size=(21, 8)).astype(np.float32)
    _, order = exact.search(block[:1], exact.n_items)
    chosen = {"best": order[0], "random": np.random.default_rng(14).permutation(order[0]), "worst": order[0][::-1]}
    seen = chosen[history][:10_000]
    found = search_unseen(searched, exact, block, *ragged([seen, *[[]] * 20]), 200, MANY)
    assert (found.counts == 200).all()
    for row in range(21):
        assert_filled(found, row, set(np.flatnonzero(allowed).tolist()), set(seen.tolist()) if row == 0 else set())
    if not ivf or history == "best":
        assert_row(found, 0, *by_definition(exact, block[0], seen, 200))
    assert [call for call in searched.calls if call[0] > 1] == [(20, 200)]
    assert [width for users, width in searched.calls if users == 1] == ([1000] if history == "worst" else [1000, exact.n_items])
    alone = search_unseen(searched, exact, block[1:], *ragged([[]] * 20), 200, MANY)
    np.testing.assert_array_equal(found.codes[1:], alone.codes)
    np.testing.assert_array_equal(found.scores[1:], alone.scores)


def test_users_who_come_short_are_searched_wider_and_then_exactly(built: Built, queries: np.ndarray) -> None:
    _, order = built.exact.search(queries[:1], N_ITEMS)
    best_seen = order[0, :400]  # all of the first 250 results are seen
    wide, exact = Spy(built.exact), Spy(built.exact)
    found = search_unseen(wide, exact, queries[:1], *ragged([best_seen]), 50, N_ITEMS)
    np.testing.assert_array_equal(found.codes[0], order[0, 400:450])
    assert (wide.calls, exact.calls) == ([(1, 250), (1, 1074)], [])

    narrow, exact = Spy(built.ivf(nprobe=1)), Spy(built.exact)
    found = search_unseen(narrow, exact, queries[:60], *ragged([[]] * 60), 50, N_ITEMS)
    assert (found.counts == 50).all()
    assert narrow.calls == [(60, 50)]
    assert len(exact.calls) == 1
    assert exact.calls[0][0] < 60  # only the short ones


def test_a_restricted_search_is_no_wider_than_what_is_allowed(built: Built, queries: np.ndarray) -> None:
    allowed = np.arange(N_ITEMS) < 120
    spy = Spy(built.exact.restrict(allowed))
    found = search_unseen(spy, built.exact.restrict(allowed), queries[:3], *ragged([range(100), [], range(120)]), 50, N_ITEMS)
    assert found.counts.tolist() == [20, 50, 0]
    assert sorted(spy.calls) == [(1, 50), (1, 120)]


def test_a_user_who_has_seen_everything_gets_an_empty_list_and_costs_no_search(built: Built, queries: np.ndarray) -> None:
    for allowed in (np.ones(N_ITEMS, dtype=bool), np.arange(N_ITEMS) < 40, np.zeros(N_ITEMS, dtype=bool)):
        spy = Spy(built.exact.restrict(allowed))
        found = search_unseen(spy, spy, queries[:1], *ragged([np.flatnonzero(allowed)]), 50, N_ITEMS)
        assert (found.counts[0], spy.calls) == (0, [])


def test_no_users_give_no_rows(built: Built) -> None:
    found = search_unseen(built.exact, built.exact, np.zeros((0, 16), np.float32), *ragged([]), 50, N_ITEMS)
    assert found.codes.shape == found.scores.shape == (0, 50)


@pytest.mark.parametrize("small", [False, True])
def test_many_users_are_the_same_as_one_by_one(built: Built, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:
        monkeypatch.setattr(filtered_search, "_SEARCH_RESULTS", 500)
        monkeypatch.setattr(filtered_search, "_BITMAP_CELLS", 2 * N_ITEMS)
    rng = np.random.default_rng(3)
    block = rng.normal(size=(200, 16)).astype(np.float32)
    histories = [rng.integers(0, N_ITEMS, size=size) for size in rng.integers(0, 300, size=200)]
    found = search_unseen(built.exact, built.exact, block, *ragged(histories), 50, N_ITEMS)
    for row in range(200):
        assert_row(found, row, *by_definition(built.exact, block[row], histories[row], 50))


@pytest.mark.parametrize(
    ("lists", "n_items", "message"),
    [
        ([[N_ITEMS]], N_ITEMS, "seen codes run from 3000 to 3000"),
        ([[-1]], N_ITEMS, "seen codes run from -1"),
        ([[1], [2]], N_ITEMS, "3 seen offsets from 0 to 2 for 1 users"),
        ([[]], N_ITEMS - 1000, "the index is over other items"),
    ],
)
def test_input_that_does_not_fit_the_index_is_refused(
    built: Built, queries: np.ndarray, lists: list[list[int]], n_items: int, message: str
) -> None:
    with pytest.raises(RecsysBatchError, match=message):
        search_unseen(built.exact, built.exact, queries[:1], *ragged(lists), 400, n_items)


@pytest.mark.parametrize("offsets", [[1, 2], [0, 3, 2]])
def test_offsets_that_do_not_start_at_zero_or_fall_are_refused(built: Built, queries: np.ndarray, offsets: list[int]) -> None:
    users = len(offsets) - 1
    with pytest.raises(RecsysBatchError, match="seen offsets"):
        search_unseen(built.exact, built.exact, queries[:users], np.array(offsets), np.array([7, 8]), 50, N_ITEMS)


def test_an_exact_search_that_misses_items_is_refused(built: Built, queries: np.ndarray) -> None:
    missing = Spy(built.exact, N_ITEMS + 500)
    with pytest.raises(RecsysBatchError, match="found 100 of the 400 items that user 1 has left: it must be over the same 3500 items"):
        search_unseen(built.exact, missing, queries[:2], *ragged([[], range(2900)]), 400, N_ITEMS + 500)
