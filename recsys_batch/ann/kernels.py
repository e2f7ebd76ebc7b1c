"""The few faiss calls that search is made of, and the rule that makes their results independent of the batch.

faiss multiplies matrices in blocks, so the last bits of a score depend on which other users share the batch, and near-ties
then come out in another order. Therefore a search takes a few more items than asked for (``MARGIN``), scores them again with
one dot product per pair (``inner_products``: the same bits for the same two vectors, always) and orders by that. A user is
*settled* where the k-th of these scores lies above everything that was left out by more than the two ways of summing can
differ; the few users who are not (exact ties at the k-th place) are scored against everything. The rescoring costs 3 us per
user and 200 items, where the search costs 50 to 100.

faiss is imported inside the functions: it must not be loaded before the Spark daemon forks its workers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from recsys_batch.topk import NO_CODE, order_pairs, top_k

MARGIN = 16
WIDE_MARGIN = 512  # the second try of those that are not settled: long ties, or millions of items close together
_BLOCK = 1_000_000  # (query, item) results held at once: 4 MB of scores and 8 MB of codes; larger is no faster


def faiss_module() -> Any:
    """faiss, imported on first use (untyped, as its stubs lack half of what is called here)."""
    import faiss

    return faiss


def limit_threads(n_threads: int) -> None:
    """Let faiss's OpenMP, faiss's own OpenBLAS and numpy's OpenBLAS use at most ``n_threads`` threads in this process."""
    faiss = faiss_module()
    faiss.omp_set_num_threads(n_threads)
    # 128000 by default, counted in query floats: below 2,000 queries of 64 faiss would do without BLAS and be 5 times slower.
    faiss.cvar.distance_compute_blas_threshold = 16 * 64
    # Only BLAS: torch, where it is loaded, keeps an OpenMP of its own, which is not ours to set.
    _threadpools().limit(limits=n_threads, user_api="blas")


@cache
def _threadpools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def blocks(n_queries: int, width: int) -> list[slice]:
    """Slices over the queries such that each holds at most ``_BLOCK`` pairs."""
    step = max(1, _BLOCK // max(width, 1))
    return [slice(start, min(start + step, n_queries)) for start in range(0, n_queries, step)]


def normalised(vectors: np.ndarray) -> np.ndarray:
    """A copy with rows of length 1; rows of zeros stay zeros."""
    copy = np.array(vectors, dtype=np.float32, order="C")
    faiss_module().normalize_L2(copy)
    return copy


def longest(vectors: np.ndarray) -> float:
    """The largest length of a row."""
    return float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64).max()))


def inner_products(queries: np.ndarray, vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """float32 [B, M]: the dot product of query b and row ``codes[b, m]``, -inf for code -1.

    Args:
        queries: float32 [B, d]. vectors: float32 [n, d]. codes: int64 [B, M].
    """
    scores = np.empty(codes.shape, dtype=np.float32)
    codes = np.ascontiguousarray(codes)
    faiss = faiss_module()
    pointers = [faiss.swig_ptr(array) for array in (scores, queries, vectors, codes)]
    faiss.fvec_inner_products_by_idx(*pointers, queries.shape[1], *codes.shape)
    return scores


def settle(
    queries: np.ndarray, vectors: np.ndarray, max_norm: float, rough_scores: np.ndarray, codes: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rescore and order a rough result; say which rows are certain.

    Args:
        rough_scores, codes: [B, M] of a search that leaves out only items whose rough score is at most the row's lowest;
            M > k, or all there are. Code -1 where there was nothing more to find.

    Returns:
        (scores float32 [B, k'], codes int64 [B, k'], settled bool [B]), k' = min(k, M). Settled: every item left out is certain
        to score below the k-th.
    """
    scores, ordered = order_pairs(inner_products(queries, vectors, codes), codes, k)
    if codes.shape[1] >= len(vectors):
        return scores, ordered, np.ones(len(queries), dtype=bool)
    # A sum of d float32 products in any order errs by at most d * 2**-24 * |q| * |x| (Higham 2002, 3.1); two sums by twice that.
    error = queries.shape[1] * 2.0**-23 * max_norm * np.linalg.norm(queries.astype(np.float64), axis=1)
    nothing_left = codes[:, -1] == NO_CODE
    return scores, ordered, nothing_left | (scores[:, -1] > rough_scores[:, -1] + error)


def exact_search(queries: np.ndarray, vectors: np.ndarray, max_norm: float, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of largest inner product by ``inner_products``, ties by row: the oracle that everything else is compared with.

    Args:
        queries: float32 [B, d], contiguous, finite. vectors: float32 [n, d], contiguous. max_norm: longest row of vectors.

    Returns:
        (scores float32 [B, k'], codes int64 [B, k']), k' = min(k, n).
    """
    k = min(k, len(vectors))
    scores = np.empty((len(queries), k), dtype=np.float32)
    codes = np.empty((len(queries), k), dtype=np.int64)
    pending = np.arange(len(queries))
    for margin in (MARGIN, WIDE_MARGIN):
        pending = pending[~_search_wider(queries, vectors, max_norm, margin, pending, scores, codes)]
        if len(pending) == 0:
            return scores, codes
    scores[pending], codes[pending] = scan_all(queries[pending], vectors, k)
    return scores, codes


def _search_wider(
    queries: np.ndarray,
    vectors: np.ndarray,
    max_norm: float,
    margin: int,
    pending: np.ndarray,
    scores: np.ndarray,
    codes: np.ndarray,
) -> np.ndarray:
    """Write the results of the pending rows into ``scores`` and ``codes``; bool [len(pending)], which of them are settled."""
    faiss = faiss_module()
    k = scores.shape[1]
    width = min(k + margin, len(vectors))
    settled = np.empty(len(pending), dtype=bool)
    for part in blocks(len(pending), width):
        rows = pending[part]
        rough, found = faiss.knn(queries[rows], vectors, width, metric=faiss.METRIC_INNER_PRODUCT)
        scores[rows], codes[rows], settled[part] = settle(queries[rows], vectors, max_norm, rough, found, k)
    return settled


def scan_all(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """``exact_search`` without the shortcut: every pair by ``inner_products``, 5 times slower and certain from the start."""
    scores = np.empty((len(queries), k), dtype=np.float32)
    codes = np.empty((len(queries), k), dtype=np.int64)
    everything = np.arange(len(vectors), dtype=np.int64)
    for part in blocks(len(queries), len(vectors)):
        pairs = np.broadcast_to(everything, (part.stop - part.start, len(vectors)))
        scores[part], codes[part] = top_k(inner_products(queries[part], vectors, pairs), k)
    return scores, codes
