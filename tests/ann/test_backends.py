"""The contract that every retriever keeps, and what exact means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from recsys_batch.ann import kernels
from recsys_batch.ann.backends import IvfRetriever
from recsys_batch.errors import RecsysBatchError

if TYPE_CHECKING:
    from conftest import Built

NAMES = ["exact", "exact-2-threads", "ivf", "ivf-2-threads", "ivf-all-lists"]
EXACT_NAMES = ["exact", "exact-2-threads", "ivf-all-lists"]


def assert_same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    """Bit for bit."""
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


def true_scores(built: Built, queries: np.ndarray) -> np.ndarray:
    """float64 [B, n], by definition of the metric."""
    q, x = queries.astype(np.float64), built.vectors.astype(np.float64)
    if built.info.metric == "cosine":
        q, x = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30) for v in (q, x))
    return np.asarray(q @ x.T)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 50, 333])
def test_results_are_in_order_unique_and_carry_the_true_score(built: Built, queries: np.ndarray, name: str, k: int) -> None:
    scores, codes = built.backend(name).search(queries, k)
    assert (scores.shape, scores.dtype, codes.dtype) == ((len(queries), k), np.float32, np.int64)
    truth = true_scores(built, queries)
    for row, (row_scores, row_codes) in enumerate(zip(scores, codes, strict=True)):
        n_found = int((row_codes >= 0).sum())
        assert n_found == k or name.startswith("ivf")
        assert (row_codes[n_found:] == -1).all()
        assert (row_scores[n_found:] == -np.inf).all()
        found, found_codes = row_scores[:n_found], row_codes[:n_found]
        assert ((np.diff(found) < 0) | ((np.diff(found) == 0) & (np.diff(found_codes) > 0))).all()
        np.testing.assert_allclose(found, truth[row, found_codes], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_query_gets_the_same_bits_alone_and_in_any_batch(built: Built, queries: np.ndarray, name: str) -> None:
    retriever = built.backend(name)
    together = retriever.search(queries, 50)
    alone = [retriever.search(query[None], 50) for query in queries]
    assert_same((np.concatenate([s for s, _ in alone]), np.concatenate([c for _, c in alone])), together)
    many = np.concatenate([queries, np.random.default_rng(2).normal(size=(3000, queries.shape[1])).astype(np.float32)])
    assert_same(tuple(part[: len(queries)] for part in retriever.search(many, 50)), together)


@pytest.mark.parametrize("name", EXACT_NAMES)
@pytest.mark.parametrize("k", [1, 7, 50, 130, 2999, 3000])
def test_exact_search_finds_what_scoring_every_item_finds(built: Built, queries: np.ndarray, name: str, k: int) -> None:
    scores, codes = built.backend(name).search(queries, k)
    truth = true_scores(built, queries)
    np.testing.assert_allclose(scores, -np.sort(-truth, axis=1)[:, :k], atol=1e-4)
    # Exact ties cannot be seen in float64 sums of other order: compare with the slow path, which has no shortcut.
    vectors = built.exact.vectors
    assert_same((scores, codes), kernels.scan_all(vectors.prepare(queries, k), vectors.matrix, k))


@pytest.mark.parametrize("k", [1, 50, 1000])
def test_ivf_that_looks_into_every_list_equals_exact_search(built: Built, queries: np.ndarray, k: int) -> None:
    ivf = built.backend("ivf")
    assert isinstance(ivf, IvfRetriever)
    found = ivf.search_lists(ivf.vectors.prepare(queries, k), k, ivf.nlist)  # search() would take the product instead
    assert_same(found, built.exact.search(queries, k))


def test_ivf_keeps_its_recall_where_more_results_are_asked_for(built: Built, queries: np.ndarray) -> None:
    ivf = built.backend("ivf")
    assert isinstance(ivf, IvfRetriever)
    assert (ivf.probes(1), ivf.probes(50), ivf.probes(75)) == (10, 10, 15)
    assert ivf.probes(200) == ivf.nlist  # past a tenth of the lists the product is cheaper
    few, many = (np.isfinite(ivf.at_nprobe(1).search(queries, k)[0]).sum(axis=1) for k in (50, 300))
    assert few.min() < 50
    assert many.mean() > 4 * few.mean()


def test_places_that_no_item_fills_are_padded_at_the_end(built: Built, queries: np.ndarray) -> None:
    scores, codes = built.exact.search(queries, 3005)
    assert (codes[:, :3000] >= 0).all()
    assert (codes[:, 3000:] == -1).all()
    assert (scores[:, 3000:] == -np.inf).all()


@pytest.mark.parametrize("name", ["exact", "ivf"])
def test_no_queries_give_no_rows(built: Built, name: str) -> None:
    scores, codes = built.backend(name).search(np.zeros((0, 16), np.float32), 5)
    assert scores.shape == codes.shape == (0, 5)


@pytest.mark.parametrize("name", ["exact", "ivf"])
@pytest.mark.parametrize(
    ("query", "k", "message"),
    [
        (np.full((2, 16), np.nan, np.float32), 5, "row 0 is not finite"),
        (np.zeros((2, 8), np.float32), 5, "same model"),
        (np.zeros((2, 16), np.float32), 0, "k >= 1"),
    ],
)
def test_queries_that_cannot_be_searched_are_refused(built: Built, name: str, query: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(RecsysBatchError, match=message):
        built.backend(name).search(query, k)


def test_a_search_uses_no_more_threads_than_it_was_given(built: Built, queries: np.ndarray) -> None:
    from threadpoolctl import threadpool_info

    for name, n_threads in (("exact-2-threads", 2), ("exact", 1), ("ivf-2-threads", 2), ("ivf", 1)):
        built.backend(name).search(queries, 5)
        ours = [pool for pool in threadpool_info() if "faiss" in pool["filepath"] or "numpy" in pool["filepath"]]
        assert [pool["num_threads"] for pool in ours] == [n_threads] * 3  # faiss's OpenMP and BLAS, numpy's BLAS


def test_the_dot_product_of_no_item_is_minus_infinity(built: Built) -> None:
    codes = np.array([[0, -1], [-1, 2]])
    scores = kernels.inner_products(built.vectors[:2], built.vectors, codes)
    np.testing.assert_array_equal(scores == -np.inf, codes == -1)


def test_small_blocks_change_nothing(built: Built, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [built.backend(name).search(queries, 50) for name in ("exact", "ivf")]
    monkeypatch.setattr(kernels, "_BLOCK", 500)
    for name, result in zip(("exact", "ivf"), expected, strict=True):
        assert_same(built.backend(name).search(queries, 50), result)
