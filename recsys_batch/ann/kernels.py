"""Numerical kernels of vector search, whose results depend on neither the batch nor the processor. Used by the package's other modules.

Matrix products are computed in blocks, so the last bits of a score depend on which other users share the batch, and near-ties
then come out in another order; so they do on another processor, for which BLAS and faiss choose other kernels. Therefore a search
selects a few more items than asked for (``MARGIN``), scores them again with one dot product per pair (``inner_products``: the same
bits for the same two vectors, always) and orders by that. A user is *settled* where the k-th of these scores exceeds every score
that was left out by more than the two summation orders can differ; the few users who are not (exact ties at the k-th place) are
scored against everything. The rescoring costs 8 us per user and 200 items, where the search costs 20 to 180.

faiss is imported inside the functions: it must not be loaded before the Spark daemon forks its workers.
"""

from functools import cache
from typing import Any

import numpy as np

from recsys_batch.ranking.top_k import order_pairs, select_top_k_per_row

MARGIN = 16
WIDE_MARGIN = 512  # second attempt for queries that are not settled: long ties, or millions of items close together
_BLOCK_PAIRS = 1_000_000  # (query, item) results held at once: 4 MB of scores and 8 MB of codes; larger is no faster
_GATHERED_FLOATS = 100_000  # copied at once for their products: 400 KB stay in the second-level cache
_MAX_DENSE_VECTORS = 4096  # up to this many vectors one product and a partition of it beat faiss (894 x 64, 58 wanted: 6 us against 13)


def import_faiss() -> Any:
    """Import faiss on first use (untyped: its stubs lack half of the functions called here)."""
    import faiss

    return faiss


def limit_threads(n_threads: int) -> None:
    """Limit faiss's OpenMP, faiss's own OpenBLAS and numpy's OpenBLAS to ``n_threads`` threads in this process."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(n_threads)
    # 128000 by default, counted in query floats: below 2,000 queries of 64 faiss would do without BLAS and be 5 times slower.
    faiss.cvar.distance_compute_blas_threshold = 16 * 64
    # Only BLAS: torch, where it is loaded, has an OpenMP of its own, which must stay as it is.
    _threadpools().limit(limits=n_threads, user_api="blas")


@cache
def _threadpools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def iterate_blocks(n_queries: int, width: int, max_pairs: int | None = None) -> list[slice]:
    """Slice ``n_queries`` into blocks of at most ``max_pairs`` (query, result) pairs, a million where not given; one query at least."""
    step = max(1, (max_pairs or _BLOCK_PAIRS) // max(width, 1))
    return [slice(start, min(start + step, n_queries)) for start in range(0, n_queries, step)]


def max_row_norm(vectors: np.ndarray) -> float:
    """Compute the L2 norm of the longest row."""
    return float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64).max()))


def inner_products(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Compute float32 [B, M]: the dot product of query b and vector ``rows[b, m]``, -inf for row -1.

    The sum is einsum's own, whose order is fixed when numpy is built: no processor is asked for its instructions, as BLAS and faiss do.

    Args:
        queries: float32 [B, d], contiguous. vectors: float32 [n, d], contiguous. rows: int64 [B, M], at least -1.
    """
    scores = np.full(rows.shape, -np.inf, dtype=np.float32)
    if len(vectors) == 0:
        return scores
    width = max(1, min(rows.shape[1], _GATHERED_FLOATS // vectors.shape[1]))
    for part in iterate_blocks(len(rows), width * vectors.shape[1], _GATHERED_FLOATS):
        for first in range(0, rows.shape[1], width):
            cells = part, slice(first, first + width)
            gathered = vectors.take(rows[cells], axis=0, mode="wrap")  # -1 is the last row, and overwritten
            np.einsum("bmd,bd->bm", gathered, queries[part], out=scores[cells])
    scores[rows < 0] = -np.inf
    return scores


def all_inner_products(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Compute float32 [B, n] as ``inner_products`` does, of each query and all vectors, which are not copied."""
    return np.asarray(np.einsum("bd,nd->bn", queries, vectors))


def rounding_error(queries: np.ndarray, max_norm: float) -> np.ndarray:
    """Bound the difference of two float32 sums of the same products, float64 [B], for vectors up to ``max_norm`` long.

    A sum of d products in any order errs by at most d * 2**-24 * |q| * |x| (Higham 2002, 3.1); two sums by twice that.
    """
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    return np.asarray(queries.shape[1] * 2.0**-23 * max_norm * lengths)


def select_largest(scores: np.ndarray, width: int) -> np.ndarray:
    """Select the columns int64 [B, width] of each row's largest scores (float32 [B, N], N > width), in no order."""
    return np.argpartition(scores, scores.shape[1] - width, axis=1)[:, -width:]


def exact_search(
    queries: np.ndarray, vectors: np.ndarray, max_norm: float, k: int, codes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Search the k vectors of largest inner product (by ``inner_products``, ties by code): the reference for every other search.

    Args:
        queries: float32 [B, d], contiguous, finite. vectors: float32 [n, d], contiguous. max_norm: L2 norm of the longest vector.
        codes: int64 [n], the code of each row; row numbers where not given.

    Returns (scores float32 [B, k'], codes int64 [B, k']), k' = min(k, n).
    """
    k = min(k, len(vectors))
    scores = np.empty((len(queries), k), dtype=np.float32)
    found_codes = np.empty((len(queries), k), dtype=np.int64)
    pending = np.arange(len(queries))
    for margin in (MARGIN, WIDE_MARGIN):
        if k + margin >= len(vectors):
            break
        settled = np.empty(len(pending), dtype=bool)
        scanned = len(vectors) if len(vectors) <= _MAX_DENSE_VECTORS else k + margin
        for part in iterate_blocks(len(pending), scanned):
            rows = pending[part]
            lowest, nearest = _select_by_matrix_product(queries[rows], vectors, k + margin)
            exact = inner_products(queries[rows], vectors, nearest)
            scores[rows], found_codes[rows] = order_pairs(exact, nearest if codes is None else codes[nearest], k)
            settled[part] = scores[rows, -1] > lowest + rounding_error(queries[rows], max_norm)
        pending = pending[~settled]
        if len(pending) == 0:
            return scores, found_codes
    scores[pending], found_codes[pending] = scan_all(queries[pending], vectors, k, codes)
    return scores, found_codes


def scan_all(queries: np.ndarray, vectors: np.ndarray, k: int, codes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Search like ``exact_search``, with every pair scored by ``inner_products``: 5 times slower, no settling needed."""
    k = min(k, len(vectors))
    scores = np.empty((len(queries), k), dtype=np.float32)
    found_codes = np.empty((len(queries), k), dtype=np.int64)
    for part in iterate_blocks(len(queries), len(vectors)):
        exact = all_inner_products(queries[part], vectors)
        if codes is None:
            scores[part], found_codes[part] = select_top_k_per_row(exact, k)
        else:
            scores[part], found_codes[part] = order_pairs(exact, np.broadcast_to(codes, exact.shape), k)
    return scores, found_codes


def _select_by_matrix_product(queries: np.ndarray, vectors: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Select the ``width`` < n vectors of largest matrix product: (lowest kept score float32 [B], rows int64 [B, width] in no order)."""
    if len(vectors) > _MAX_DENSE_VECTORS:
        faiss = import_faiss()
        scores, rows = faiss.knn(queries, vectors, width, metric=faiss.METRIC_INNER_PRODUCT)
        return scores[:, -1], rows
    scores = queries @ vectors.T
    rows = select_largest(scores, width)
    return np.take_along_axis(scores, rows, axis=1).min(axis=1), rows
