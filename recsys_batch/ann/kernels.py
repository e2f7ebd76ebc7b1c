"""The numerical kernels of search, and the rule that makes their results independent of the batch.

Matrix products are computed in blocks, so the last bits of a score depend on which other users share the batch, and near-ties
then come out in another order. Therefore a search takes a few more items than asked for (``MARGIN``), scores them again with
one dot product per pair (``inner_products``: the same bits for the same two vectors, always) and orders by that. A user is
*settled* where the k-th of these scores lies above everything that was left out by more than the two ways of summing can
differ; the few users who are not (exact ties at the k-th place) are scored against everything. The rescoring costs 3 us per
user and 200 items, where the search costs 20 to 100.

faiss is imported inside the functions: it must not be loaded before the Spark daemon forks its workers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from recsys_batch.ranking.top_k import order_pairs, select_top_k_per_row

MARGIN = 16
WIDE_MARGIN = 512  # the second try of those that are not settled: long ties, or millions of items close together
_BLOCK = 1_000_000  # (query, item) results held at once: 4 MB of scores and 8 MB of codes; larger is no faster
_DENSE = 4096  # up to this many vectors one product and a partition of it beat faiss (894 x 64, 58 wanted: 6 us against 13)


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


def iterate_blocks(n_queries: int, width: int, pairs: int | None = None) -> list[slice]:
    """Slices over the queries such that each holds at most ``pairs`` pairs (a million where not given), and at least one query."""
    step = max(1, (pairs or _BLOCK) // max(width, 1))
    return [slice(start, min(start + step, n_queries)) for start in range(0, n_queries, step)]


def normalise_rows(vectors: np.ndarray) -> np.ndarray:
    """A copy with rows of length 1; rows of zeros stay zeros."""
    copy = np.array(vectors, dtype=np.float32, order="C")
    faiss_module().normalize_L2(copy)
    return copy


def max_row_norm(vectors: np.ndarray) -> float:
    """The largest length of a row."""
    return float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64).max()))


def inner_products(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32 [B, M]: the dot product of query b and vector ``rows[b, m]``, -inf for row -1.

    Args:
        queries: float32 [B, d]. vectors: float32 [n, d]. rows: int64 [B, M]. All contiguous.
    """
    scores = np.empty(rows.shape, dtype=np.float32)
    rows = np.ascontiguousarray(rows)  # a name of its own: a pointer keeps nothing alive
    faiss = faiss_module()
    pointers = [faiss.swig_ptr(array) for array in (scores, queries, vectors, rows)]
    faiss.fvec_inner_products_by_idx(*pointers, queries.shape[1], *rows.shape)
    return scores


def rounding_error(queries: np.ndarray, max_norm: float) -> np.ndarray:
    """float64 [B]: how far two float32 sums of the same products can lie apart, for vectors up to ``max_norm`` long.

    A sum of d products in any order errs by at most d * 2**-24 * |q| * |x| (Higham 2002, 3.1); two sums by twice that.
    """
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    return np.asarray(queries.shape[1] * 2.0**-23 * max_norm * lengths)


def select_largest(scores: np.ndarray, width: int) -> np.ndarray:
    """int64 [B, width]: columns of each row's largest scores (float32 [B, N], N > width), in no order."""
    return np.argpartition(scores, scores.shape[1] - width, axis=1)[:, -width:]


def exact_search(
    queries: np.ndarray, vectors: np.ndarray, max_norm: float, k: int, codes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors of largest inner product by ``inner_products``, ties by code: the oracle that everything else is compared with.

    Args:
        queries: float32 [B, d], contiguous, finite. vectors: float32 [n, d], contiguous. max_norm: longest row of vectors.
        codes: int64 [n], what the rows are called; their numbers where not given.

    Returns:
        (scores float32 [B, k'], codes int64 [B, k']), k' = min(k, n).
    """
    k = min(k, len(vectors))
    scores = np.empty((len(queries), k), dtype=np.float32)
    found = np.empty((len(queries), k), dtype=np.int64)
    pending = np.arange(len(queries))
    for margin in (MARGIN, WIDE_MARGIN):
        if k + margin >= len(vectors):
            break
        settled = np.empty(len(pending), dtype=bool)
        for part in iterate_blocks(len(pending), _widest(len(vectors), k + margin)):
            rows = pending[part]
            lowest, near = _roughly(queries[rows], vectors, k + margin)
            exact = inner_products(queries[rows], vectors, near)
            scores[rows], found[rows] = order_pairs(exact, near if codes is None else codes[near], k)
            settled[part] = scores[rows, -1] > lowest + rounding_error(queries[rows], max_norm)
        pending = pending[~settled]
        if len(pending) == 0:
            return scores, found
    scores[pending], found[pending] = scan_all(queries[pending], vectors, k, codes)
    return scores, found


def scan_all(queries: np.ndarray, vectors: np.ndarray, k: int, codes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """``exact_search`` without the shortcut: every pair by ``inner_products``, 5 times slower and certain from the start."""
    k = min(k, len(vectors))
    scores = np.empty((len(queries), k), dtype=np.float32)
    found = np.empty((len(queries), k), dtype=np.int64)
    everything = np.arange(len(vectors), dtype=np.int64)
    for part in iterate_blocks(len(queries), len(vectors)):
        pairs = np.broadcast_to(everything, (part.stop - part.start, len(vectors)))
        exact = inner_products(queries[part], vectors, pairs)
        if codes is None:
            scores[part], found[part] = select_top_k_per_row(exact, k)
        else:
            scores[part], found[part] = order_pairs(exact, np.broadcast_to(codes, exact.shape), k)
    return scores, found


def _roughly(queries: np.ndarray, vectors: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(lowest score kept float32 [B], rows int64 [B, width] in no order) of the largest by matrix product, width < n."""
    if len(vectors) > _DENSE:
        faiss = faiss_module()
        scores, rows = faiss.knn(queries, vectors, width, metric=faiss.METRIC_INNER_PRODUCT)
        return scores[:, -1], rows
    scores = queries @ vectors.T
    rows = select_largest(scores, width)
    return np.take_along_axis(scores, rows, axis=1).min(axis=1), rows


def _widest(n_vectors: int, width: int) -> int:
    return n_vectors if n_vectors <= _DENSE else width
