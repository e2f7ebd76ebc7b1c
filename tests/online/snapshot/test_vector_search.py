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


def lists_of(owners: list[int], centroids: list[list[float]]) -> IvfLists:
    """Lists by the number of each item's list."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(centroids)))])
    return IvfLists(np.array(centroids, np.float32), np.argsort(owners, kind="stable").astype(np.int32), offsets)


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.booleans()), min_size=1, max_size=60), st.integers(1, 70), st.booleans()
)
def test_the_nearest_allowed_items_are_found_by_score_then_code(items: list[tuple[int, int, bool]], n: int, cosine: bool) -> None:
    vectors, allowed = np.array([item[:2] for item in items], np.float32), np.array([item[2] for item in items])
    norms, query = np.linalg.norm(vectors, axis=1).astype(np.float32), np.array([3, 4], np.float32)

    def score(code: int) -> float:
        product = float(vectors[code] @ query)
        return float(np.float32(product) / max(norms[code] * np.float32(5), np.float32(1e-12))) if cosine else product

    expected = sorted((-score(code), code) for code in range(len(items)) if allowed[code])[:n]
    for lists in (None, lists_of([code % 3 for code in range(len(items))], [[1, 0], [0, 1], [-1, 0]])):
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
