from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from recsys_batch.ann.index import build_index
from recsys_batch.config import Retrieval
from recsys_batch.online.snapshot import vector_search
from recsys_batch.online.snapshot.vector_search import IvfLists, search_nearest
from recsys_batch.ranking.vector_lengths import row_lengths


def lists_of(owners: list[int], centroids: list[list[float]]) -> IvfLists:
    """Lists by the number of each item's list."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(centroids)))])
    return IvfLists(np.array(centroids, np.float32), np.argsort(owners, kind="stable").astype(np.int32), offsets)


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.booleans()), min_size=1, max_size=60), st.integers(1, 70), st.booleans()
)
def test_the_nearest_allowed_items_are_found_by_score_then_code(items: list[tuple[int, int, bool]], n: int, cosine: bool) -> None:
    vectors, allowed = np.array([(*item[:2], 1, -1) for item in items], np.float32), np.array([item[2] for item in items])
    vectors[(vectors[:, :2] == 0).all(axis=1)] = 0
    norms, query = np.linalg.norm(vectors, axis=1).astype(np.float32), np.full(4, 3, np.float32)  # of length 6: a power of 2 times 3

    def score(code: int) -> float:
        product = np.float32(vectors[code].sum())
        return float(product / 2 / norms[code] if norms[code] else 0) if cosine else float(3 * product)

    expected = sorted((-score(code), code) for code in range(len(items)) if allowed[code])[:n]
    for lists in (None, lists_of([code % 3 for code in range(len(items))], [[1, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 0, 0]])):
        codes, scores = search_nearest(query, vectors, allowed, lists, n, norms if cosine else None)
        assert codes.tolist() == [code for _, code in expected] and scores.tolist() == [-negative for negative, _ in expected]
        assert (codes.dtype, scores.dtype) == (np.int32, np.float32)


def test_only_the_nearest_lists_are_searched_until_they_have_items_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_search, "_MIN_SCANNED", 3)
    vectors = np.array([[9, 0], [1, 0], [2, 0], [7, 0], [3, 0], [8, 0]], np.float32)
    lists = lists_of([0, 1, 1, 2, 2, 2], [[-1, 0], [1, 0], [0.5, 0]])
    query, allowed = np.array([1, 0], np.float32), np.ones(6, bool)
    assert search_nearest(query, vectors, allowed, lists, 1)[0].tolist() == [5]  # 4 are wanted: lists 1 and 2, not 0
    monkeypatch.setattr(vector_search, "_MIN_SCANNED", 2)
    lists = lists_of([0, 1, 1, 1, 1, 2], [[-1, 0], [1, 0], [0.5, 0]])
    assert search_nearest(query, vectors, allowed, lists, 1)[0].tolist() == [3]  # list 1 has them
    monkeypatch.setattr(vector_search, "_MIN_SCANNED", 6)
    assert search_nearest(query, vectors, allowed, lists, 1)[0].tolist() == [0]


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_the_nights_lists_find_nearly_what_an_exact_search_finds(
    metric: Literal["ip", "cosine"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items around 30 centres, of lengths that differ severalfold."""
    monkeypatch.setattr(vector_search, "_MIN_SCANNED", 800)
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((30, 8))[rng.integers(0, 30, 6000)] + 0.2 * rng.standard_normal((6000, 8))
    vectors = (vectors * np.exp(rng.normal(scale=0.5, size=(6000, 1)))).astype(np.float32)
    info = build_index(vectors, Retrieval(mode="ivf", metric=metric), tmp_path, n_threads=1)
    assert info.lists is not None
    tensors = load_file(tmp_path / info.lists.name)
    lists = IvfLists(tensors["centroids"], tensors["codes"].astype(np.int32), np.concatenate([[0], tensors["ends"]]))
    norms, allowed = np.linalg.norm(vectors, axis=1) if metric == "cosine" else None, np.arange(6000) % 4 != 0
    shares = []
    for query in vectors[::200]:
        found, exact = (search_nearest(query, vectors, allowed, searched, 50, norms)[0] for searched in (lists, None))
        shares.append(len(np.intersect1d(found, exact)) / 50)
    assert np.mean(shares) > 0.97 and allowed[found].all()


@pytest.mark.parametrize("query_size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("item_size", [1e-30, 1.0, 1e30])
def test_cosines_do_not_depend_on_lengths(query_size: float, item_size: float) -> None:
    rng = np.random.default_rng(4)
    query, vectors = rng.standard_normal(16).astype(np.float32), rng.standard_normal((300, 16)).astype(np.float32)
    codes, scores = search_nearest(query, vectors, np.ones(300, bool), None, 20, row_lengths(vectors).astype(np.float32))
    sized = (vectors * np.float32(item_size)).astype(np.float32)
    found, cosines = search_nearest(
        query * np.float32(query_size), sized, np.ones(300, bool), None, 20, row_lengths(sized).astype(np.float32)
    )
    assert found.tolist() == codes.tolist()
    np.testing.assert_allclose(cosines, scores, rtol=1e-5)
    assert scores[0] > 0.4
