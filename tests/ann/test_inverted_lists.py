"""Inverted lists against their plain definition, and the search in them against scoring one item at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.ann import inverted_lists, kernels
from recsys_batch.ann.inverted_lists import InvertedLists, search_lists
from recsys_batch.ann.vector_storage import FloatRows, IndexShard, Int8Rows, StoredRows, fit_int8_scale, quantize

sizes_of_lists = st.lists(st.one_of(st.just(0), st.integers(0, 14)), min_size=1, max_size=12)


def lists_of(sizes: Sequence[int]) -> InvertedLists:
    ends = np.cumsum(sizes, dtype=np.int64)
    return InvertedLists(ends - np.asarray(sizes, dtype=np.int64), ends)


def members(found: InvertedLists) -> list[list[int]]:
    return [found.rows_at(np.arange(start, end)).tolist() for start, end in zip(found.starts, found.ends, strict=True)]


def shard_of(n: int, first: int, stop: int) -> IndexShard:
    def unopened() -> StoredRows:
        raise AssertionError("opened")

    assert 0 <= first <= stop <= n
    return IndexShard(first, stop, unopened)


@settings(max_examples=200)
@given(sizes=sizes_of_lists, data=st.data())
def test_lists_are_cut_down_as_plain_lists_are(sizes: list[int], data: st.DataObject) -> None:
    n = sum(sizes)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
    first, stop = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    whole, shard = lists_of(sizes), shard_of(n, first, stop)
    plain = members(whole)
    assert plain == [list(range(a, b)) for a, b in zip(whole.starts, whole.ends, strict=True)]
    kept = [[row for row in rows if keep[row]] for rows in plain]
    assert members(whole.restrict(keep)) == kept
    assert members(whole.slice_rows(shard)) == [[row for row in rows if first <= row < stop] for rows in plain]
    assert members(whole.restrict(keep).slice_rows(shard)) == [[row for row in rows if first <= row < stop] for rows in kept]
    for cut, rows in ((whole, plain), (whole.restrict(keep), kept)):
        assert cut.sizes.tolist() == [len(row) for row in rows]


@settings(max_examples=100)
@given(sizes=sizes_of_lists, data=st.data())
def test_lists_that_are_kept_twice_hold_what_both_keep(sizes: list[int], data: st.DataObject) -> None:
    n = sum(sizes)
    one, other = (np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool) for _ in range(2))
    assert members(lists_of(sizes).restrict(one).restrict(other)) == members(lists_of(sizes).restrict(one & other))


@dataclass(frozen=True)
class Searched:
    """Inputs of one search."""

    queries: np.ndarray
    probed: np.ndarray
    lists: InvertedLists
    shard: IndexShard
    codes: np.ndarray
    stored: StoredRows
    max_norm: float

    def found(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        return search_lists(self.queries, self.probed, self.lists, self.shard, self.codes, self.max_norm, k)

    def one_at_a_time(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """By definition, sorted in Python."""
        scores = np.full((len(self.queries), k), -np.inf, dtype=np.float32)
        codes = np.full((len(self.queries), k), -1, dtype=np.int64)
        plain = members(self.lists)
        for number, (query, probed) in enumerate(zip(self.queries, self.probed, strict=True)):
            rows = [row for one in probed for row in plain[one] if self.shard.first <= row < self.shard.stop]
            pairs = [(-self._score(query, row), int(self.codes[row])) for row in rows]
            for place, (score, code) in enumerate(sorted(pairs)[:k]):
                scores[number, place], codes[number, place] = -score, code
        return scores, codes

    def _score(self, query: np.ndarray, row: int) -> float:
        return float(self.stored.inner_products(query[None], np.array([[row - self.shard.first]]))[0, 0])


@st.composite
def searches(draw: st.DrawFn) -> Searched:
    """Small integers, whose products tie often and are exact, or normal vectors; float32 or int8; whole, restricted, one shard."""
    sizes = draw(sizes_of_lists.filter(any))
    n, nlist = sum(sizes), len(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_queries, dim = draw(st.integers(0, 9)), draw(st.sampled_from([1, 3, 8]))
    kind = draw(st.sampled_from(["ties", "one value", "normal"]))

    def matrix(rows: int) -> np.ndarray:
        if kind == "normal":
            return rng.normal(size=(rows, dim)).astype(np.float32)
        return rng.integers(-1, 2 if kind == "ties" else 0, size=(rows, dim)).astype(np.float32)

    vectors = matrix(n)
    found = lists_of(sizes)
    if draw(st.booleans()):
        found = found.restrict(rng.random(n) < draw(st.sampled_from([0.0, 0.3, 0.8])))
    first, stop = draw(st.sampled_from([(0, n), (0, n // 2), (n // 3, n)]))
    stored: StoredRows = FloatRows(np.ascontiguousarray(vectors[first:stop]))
    max_norm = kernels.max_row_norm(vectors)
    if draw(st.booleans()):
        low, step = fit_int8_scale(vectors)
        stored = Int8Rows(quantize(vectors[first:stop], low, step), low, step)
        max_norm += float(np.linalg.norm(step)) / 2
    n_probed = draw(st.integers(1, nlist))
    probed = np.array([rng.permutation(nlist)[:n_probed] for _ in range(n_queries)], dtype=np.int64).reshape(n_queries, n_probed)
    return Searched(matrix(n_queries), probed, found, IndexShard(first, stop, lambda: stored), rng.permutation(n), stored, max_norm)


@settings(max_examples=300, deadline=None)
@given(searched=searches(), k=st.sampled_from([1, 2, 5, 20, 300]), cells=st.sampled_from([1, 60, 10**6]), rows=st.sampled_from([1, 3, 64]))
def test_a_search_finds_what_scoring_one_item_at_a_time_finds(searched: Searched, k: int, cells: int, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inverted_lists, "_BLOCK_SCORES", cells)
        patch.setattr(inverted_lists, "_RESCORE_ROWS", rows)
        scores, codes = searched.found(k)
    assert (scores.dtype, codes.dtype) == (np.float32, np.int64)
    expected, expected_codes = searched.one_at_a_time(k)
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(scores, expected)


def test_a_query_of_empty_lists_finds_nothing_beside_one_that_finds_something() -> None:
    vectors = np.eye(3, dtype=np.float32)
    shard = IndexShard(0, 3, lambda: FloatRows(vectors))
    scores, codes = search_lists(vectors[:2], np.array([[0, 2], [1, 2]]), lists_of([0, 3, 0]), shard, np.array([7, 5, 6]), 1.0, 4)
    np.testing.assert_array_equal(codes, [[-1] * 4, [5, 6, 7, -1]])
    np.testing.assert_array_equal(scores, [[-np.inf] * 4, [1, 0, 0, -np.inf]])


@pytest.mark.parametrize("shard", [shard_of(5, 0, 5), shard_of(5, 0, 0), shard_of(5, 5, 5)])
def test_a_shard_that_nobody_probes_is_not_opened(shard: IndexShard) -> None:
    found = lists_of([0, 5]) if shard.stop - shard.first == 0 else lists_of([0, 5]).restrict(np.zeros(5, dtype=bool))
    _, codes = search_lists(np.ones((2, 3), np.float32), np.array([[0, 1], [1, 0]]), found, shard, np.arange(5), 1.0, 4)
    assert (codes == -1).all()


def test_long_ties_at_the_last_place_go_by_code_and_not_by_row() -> None:
    n = 4 * kernels.MARGIN
    vectors = np.ones((n, 4), np.float32)
    shard = IndexShard(0, n, lambda: FloatRows(vectors))
    _, codes = search_lists(vectors[:1], np.array([[1, 0]]), lists_of([n // 2, n // 2]), shard, np.arange(n)[::-1].copy(), 2.0, 5)
    np.testing.assert_array_equal(codes, [[0, 1, 2, 3, 4]])


@pytest.mark.parametrize(("cells", "users"), [(1, 1), (7, 1), (8, 2), (11, 2), (12, 3), (39, 3), (40, 4), (10**6, 4)])
def test_as_many_users_are_scanned_at_once_as_their_scores_fit(cells: int, users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[int, ...]] = []
    scan = inverted_lists._ListScan.run

    def noted(*arguments: Any) -> inverted_lists._ListScan:
        scanned = scan(*arguments)
        held.append(scanned.scores.shape)
        return scanned

    monkeypatch.setattr(inverted_lists, "_BLOCK_SCORES", cells)
    monkeypatch.setattr(inverted_lists._ListScan, "run", noted)
    vectors = np.ones((19, 2), np.float32)
    shard = IndexShard(0, 19, lambda: FloatRows(vectors))
    search_lists(vectors[:4], np.array([[3], [1], [0], [2]]), lists_of([1, 4, 4, 10]), shard, np.arange(19), 2.0, 3)
    assert held[0][0] == users
    assert sum(rows for rows, _ in held) == 4
    assert all(rows * width <= cells or rows == 1 for rows, width in held)
