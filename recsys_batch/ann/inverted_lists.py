"""Scan inverted lists for a batch of queries: all queries that probe a list are multiplied with its vectors at once.

A batch of users probes each list many times over, so the scan is a few hundred small matrix products instead of one dot product
per (user, item): 50,000 x 64, 58 of 894 lists, k = 200, one thread: 28,000 users/s, where faiss, query by query, does 12,500.
The products land in one row per user (ragged, users of similar totals side by side), of which a partition selects the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from recsys_batch.ann.kernels import MARGIN, rounding_error, select_largest
from recsys_batch.ann.vector_storage import IndexShard, StoredRows
from recsys_batch.ranking.top_k import NO_CODE, order_pairs

_BLOCK_SCORES = 8_000_000  # scores of a block of users held at once: 32 MB; a quarter of it costs a fifth more time
_RESCORE_ROWS = 64  # rows partitioned and rescored at once: they stay in the second-level cache


@dataclass(frozen=True)
class InvertedLists:
    """Rows of each inverted list: list l holds the rows at positions starts[l] .. ends[l] - 1 (both int64 [nlist]).

    ``rows``, int64, are the rows at those positions, ascending; None where positions are row numbers.
    """

    starts: np.ndarray
    ends: np.ndarray
    rows: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """int64 [nlist]: rows of each list."""
        return np.asarray(self.ends - self.starts)

    def restrict(self, keep: np.ndarray) -> InvertedLists:
        """Drop the rows where ``keep`` (bool [n]) is false."""
        kept = keep if self.rows is None else keep[self.rows]
        n_before = np.concatenate([[0], np.cumsum(kept)])
        rows = np.flatnonzero(kept).astype(np.int64) if self.rows is None else self.rows[kept]
        return InvertedLists(n_before[self.starts], n_before[self.ends], rows)

    def slice_rows(self, shard: IndexShard) -> InvertedLists:
        """Drop the rows outside of the shard."""
        first, stop = shard.first, shard.stop
        if self.rows is not None:
            first, stop = np.searchsorted(self.rows, [first, stop])
        return InvertedLists(self.starts.clip(first, stop), self.ends.clip(first, stop), self.rows)

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers at the given positions, int64 of the same shape."""
        return positions if self.rows is None else self.rows[positions]


def search_lists(
    queries: np.ndarray, probed: np.ndarray, lists: InvertedLists, shard: IndexShard, codes: np.ndarray, max_norm: float, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search one shard's rows of the probed lists for k results per query: exact, by ``StoredRows.inner_products``, ties by code.

    Args:
        queries: float32 [B, d]. probed: int64 [B, p], the lists of each query.
        codes: int64 [n], the code of each row of the whole index.
        max_norm: upper bound of the length of a stored row.

    Returns (scores float32 [B, k], codes int64 [B, k]), padded with (-inf, -1).
    """
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    found_codes = np.full((len(queries), k), NO_CODE, dtype=np.int64)
    lists = lists.slice_rows(shard)
    n_scanned = lists.sizes[probed].sum(axis=1)
    query_order = np.argsort(n_scanned, kind="stable")
    query_order = query_order[np.searchsorted(n_scanned[query_order], 1) :]  # queries without rows to scan keep the padding
    stored = shard.open() if len(query_order) else None
    start = 0
    while stored is not None and start < len(query_order):
        stop = start + _block_length(n_scanned[query_order[start:]])
        users = query_order[start:stop]
        scan = _ListScan.run(queries[users], probed[users], lists, stored, shard.first)
        for block_start in range(0, len(users), _RESCORE_ROWS):
            rows = slice(block_start, block_start + _RESCORE_ROWS)
            scores[users[rows]], found_codes[users[rows]] = scan.select_top_k(rows, codes, max_norm, k)
        start = stop
    return scores, found_codes


def _block_length(n_scanned: np.ndarray) -> int:
    """Count the queries whose scores, padded to the widest (the last), fit into ``_BLOCK_SCORES``; ``n_scanned`` is ascending."""
    fits = np.arange(1, len(n_scanned) + 1) * n_scanned <= _BLOCK_SCORES
    return max(1, int(np.count_nonzero(fits)))


@dataclass(frozen=True)
class _ListScan:
    """Inner products of a block of queries with all rows of their probed lists.

    Attributes:
        scores: float32 [B, W], W the largest of ``n_scanned``; -inf behind the ``n_scanned`` columns of each query.
        list_sizes: int64 [B, p], columns of each probed list, in the order of ``probed``.
        position_shifts: int64 [B, p], position in ``lists`` minus column of ``scores``.
        n_scanned: int64 [B], rows scanned for each query.
    """

    queries: np.ndarray
    lists: InvertedLists
    stored: StoredRows
    first_row: int
    scores: np.ndarray
    list_sizes: np.ndarray
    position_shifts: np.ndarray
    n_scanned: np.ndarray

    @classmethod
    def run(cls, queries: np.ndarray, probed: np.ndarray, lists: InvertedLists, stored: StoredRows, first: int) -> _ListScan:
        n_queries, n_probed = probed.shape
        sizes = lists.sizes[probed]
        n_scanned = sizes.sum(axis=1)
        columns = np.cumsum(sizes, axis=1) - sizes
        width = int(n_scanned.max())
        flat = np.full(n_queries * width, -np.inf, dtype=np.float32)
        by_list = np.argsort(probed.ravel(), kind="stable")
        bounds = np.searchsorted(probed.ravel()[by_list], np.arange(len(lists.starts) + 1))
        query_of_pair = by_list // n_probed
        target = (columns + np.arange(n_queries)[:, None] * width).ravel()[by_list]
        for list_number in np.flatnonzero(np.diff(bounds)).tolist():
            pairs, start, stop = slice(bounds[list_number], bounds[list_number + 1]), lists.starts[list_number], lists.ends[list_number]
            if start == stop:
                continue
            rows = slice(start - first, stop - first) if lists.rows is None else lists.rows[start:stop] - first
            products = queries[query_of_pair[pairs]] @ stored.take(rows).T
            # One window of the list's length at each target: rows are copied whole, and no two windows written to overlap.
            windows = as_strided(flat, (len(flat) - (stop - start) + 1, stop - start), (flat.itemsize, flat.itemsize))
            windows[target[pairs]] = products
        return cls(queries, lists, stored, first, flat.reshape(n_queries, width), sizes, lists.starts[probed] - columns, n_scanned)

    def select_top_k(self, part: slice, codes: np.ndarray, max_norm: float, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Select the k best rows of the queries ``part``: (scores float32, codes int64) [b, k]."""
        n_scanned = self.n_scanned[part]
        width = min(k + MARGIN, int(n_scanned.max()))
        scores = np.ascontiguousarray(self.scores[part, : n_scanned.max()])
        columns = select_largest(scores, width) if width < scores.shape[1] else np.broadcast_to(np.arange(width), (len(scores), width))
        lowest = np.take_along_axis(scores, columns, axis=1).min(axis=1)
        shift = np.repeat(self.position_shifts[part].ravel(), self.list_sizes[part].ravel())
        is_scanned = columns < n_scanned[:, None]
        flat_column = np.where(is_scanned, columns + (np.cumsum(n_scanned) - n_scanned)[:, None], 0)
        rows = np.where(is_scanned, self.lists.rows_at(np.where(is_scanned, shift[flat_column] + columns, 0)), NO_CODE)
        exact = self.stored.inner_products(self.queries[part], np.where(is_scanned, rows - self.first_row, NO_CODE))
        best, best_codes = _order_padded(exact, np.where(is_scanned, codes[rows], NO_CODE), k)
        settled = (n_scanned <= width) | (best[:, -1] > lowest + rounding_error(self.queries[part], max_norm))
        for row in np.flatnonzero(~settled):
            best[row], best_codes[row] = self._rescan_query(part.start + row, codes, k)
        return best, best_codes

    def _rescan_query(self, query: int, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Score all scanned rows of one query by the inner product that is the same in any batch."""
        shift, total = np.repeat(self.position_shifts[query], self.list_sizes[query]), int(self.n_scanned[query])
        rows = self.lists.rows_at(shift + np.arange(total))
        exact = self.stored.inner_products(self.queries[query : query + 1], rows[None] - self.first_row)
        scores, ordered_codes = _order_padded(exact, codes[rows][None], k)
        return scores[0], ordered_codes[0]


def _order_padded(scores: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Order by ``order_pairs`` and pad to k columns."""
    ordered, ordered_codes = order_pairs(scores, codes, k)
    short = k - ordered.shape[1]
    if short <= 0:
        return ordered, ordered_codes
    padding = ((0, 0), (0, short))
    return np.pad(ordered, padding, constant_values=-np.inf), np.pad(ordered_codes, padding, constant_values=NO_CODE)
