"""Search in inverted lists, list by list: all queries that probe a list are multiplied with it at once.

A batch of users probes each list many times over, so the scan is a few hundred small matrix products instead of one dot product
per (user, item): 50,000 x 64, 58 of 894 lists, k = 200, one thread: 28,000 users/s, where faiss, query by query, does 12,500.
The products land in one row per user (ragged, users of similar totals side by side), of which a partition takes the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from recsys_batch.ann.kernels import MARGIN, rounding_error, select_largest
from recsys_batch.ann.vector_storage import IndexShard, StoredRows
from recsys_batch.ranking.top_k import NO_CODE, order_pairs

_SCORES = 8_000_000  # scores of a block of users held at once: 32 MB; a quarter of it costs a fifth more time
_SELECT_ROWS = 64  # rows partitioned and rescored at once: they stay in the second-level cache


@dataclass(frozen=True)
class InvertedLists:
    """Which rows each inverted list holds.

    Attributes:
        starts, ends: int64 [nlist]; list l holds the rows at places starts[l] .. ends[l] - 1.
        rows: int64, the rows at those places, ascending; None where places are row numbers.
    """

    starts: np.ndarray
    ends: np.ndarray
    rows: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        return np.asarray(self.ends - self.starts)

    def restrict(self, keep: np.ndarray) -> InvertedLists:
        """The lists without the rows where ``keep`` (bool [n]) is false."""
        kept = keep if self.rows is None else keep[self.rows]
        n_before = np.concatenate([[0], np.cumsum(kept)])
        rows = np.flatnonzero(kept).astype(np.int64) if self.rows is None else self.rows[kept]
        return InvertedLists(n_before[self.starts], n_before[self.ends], rows)

    def slice_rows(self, shard: IndexShard) -> InvertedLists:
        """The lists without the rows outside of the shard."""
        first, stop = shard.first, shard.stop
        if self.rows is not None:
            first, stop = np.searchsorted(self.rows, [first, stop])
        return InvertedLists(self.starts.clip(first, stop), self.ends.clip(first, stop), self.rows)

    def rows_at(self, places: np.ndarray) -> np.ndarray:
        return places if self.rows is None else self.rows[places]


def search_lists(
    queries: np.ndarray,
    probed: np.ndarray,
    lists: InvertedLists,
    shard: IndexShard,
    codes: np.ndarray,
    max_norm: float,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the shard's rows in the probed lists: exact among them, by ``StoredRows.inner_products``, ties by code.

    Args:
        queries: float32 [B, d]. probed: int64 [B, p], the lists of each query.
        codes: int64 [n], the code of each row of the whole index.
        max_norm: no stored row is longer.

    Returns:
        (scores float32 [B, k], codes int64 [B, k]), padded with (-inf, -1).
    """
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    found = np.full((len(queries), k), NO_CODE, dtype=np.int64)
    lists = lists.slice_rows(shard)
    n_scanned = lists.sizes[probed].sum(axis=1)
    order = np.argsort(n_scanned, kind="stable")
    order = order[np.searchsorted(n_scanned[order], 1) :]  # who scans nothing finds nothing
    stored = shard.open() if len(order) else None
    start = 0
    while stored is not None and start < len(order):
        stop = start + _block_length(n_scanned[order[start:]])
        users = order[start:stop]
        scan = _Scan.of(queries[users], probed[users], lists, stored, shard.first)
        for part in range(0, len(users), _SELECT_ROWS):
            rows = slice(part, part + _SELECT_ROWS)
            scores[users[rows]], found[users[rows]] = scan.best(rows, codes, max_norm, k)
        start = stop
    return scores, found


def _block_length(n_scanned: np.ndarray) -> int:
    """Users whose rows (as wide as the widest, which is the last) fit into ``_SCORES``; ``n_scanned`` is ascending."""
    fits = np.arange(1, len(n_scanned) + 1) * n_scanned <= _SCORES
    return max(1, int(np.count_nonzero(fits)))


@dataclass(frozen=True)
class _Scan:
    """Every product of some queries with the rows of their lists.

    Attributes:
        scores: float32 [B, W], W the largest of ``totals``; -inf behind each row's ``totals`` columns.
        sizes: int64 [B, p], columns of each probed list, in the order of ``probed``.
        shifts: int64 [B, p], what is added to a column to get its place.
    """

    queries: np.ndarray
    lists: InvertedLists
    stored: StoredRows
    first: int
    scores: np.ndarray
    sizes: np.ndarray
    shifts: np.ndarray
    totals: np.ndarray

    @classmethod
    def of(cls, queries: np.ndarray, probed: np.ndarray, lists: InvertedLists, stored: StoredRows, first: int) -> _Scan:
        n_queries, n_probed = probed.shape
        sizes = lists.sizes[probed]
        totals = sizes.sum(axis=1)
        columns = np.cumsum(sizes, axis=1) - sizes
        width = int(totals.max())
        flat = np.full(n_queries * width, -np.inf, dtype=np.float32)
        by_list = np.argsort(probed.ravel(), kind="stable")
        bounds = np.searchsorted(probed.ravel()[by_list], np.arange(len(lists.starts) + 1))
        query_of = by_list // n_probed
        target = (columns + np.arange(n_queries)[:, None] * width).ravel()[by_list]
        for number in np.flatnonzero(np.diff(bounds)):
            pairs, a, b = slice(bounds[number], bounds[number + 1]), lists.starts[number], lists.ends[number]
            if a == b:
                continue
            rows = slice(a - first, b - first) if lists.rows is None else lists.rows[a:b] - first
            products = queries[query_of[pairs]] @ stored.take(rows).T
            # One window of the list's length at each target: rows are copied whole, and no two windows written to overlap.
            windows = as_strided(flat, (len(flat) - (b - a) + 1, b - a), (flat.itemsize, flat.itemsize))
            windows[target[pairs]] = products
        return cls(queries, lists, stored, first, flat.reshape(n_queries, width), sizes, lists.starts[probed] - columns, totals)

    def best(self, part: slice, codes: np.ndarray, max_norm: float, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, codes) [b, k] of some of the queries."""
        totals = self.totals[part]
        width = min(k + MARGIN, int(totals.max()))
        scores = np.ascontiguousarray(self.scores[part, : totals.max()])
        columns = select_largest(scores, width) if width < scores.shape[1] else np.broadcast_to(np.arange(width), (len(scores), width))
        lowest = np.take_along_axis(scores, columns, axis=1).min(axis=1)
        shift = np.repeat(self.shifts[part].ravel(), self.sizes[part].ravel())
        there = columns < totals[:, None]
        cell = np.where(there, columns + (np.cumsum(totals) - totals)[:, None], 0)
        rows = np.where(there, self.lists.rows_at(np.where(there, shift[cell] + columns, 0)), NO_CODE)
        exact = self.stored.inner_products(self.queries[part], np.where(there, rows - self.first, NO_CODE))
        best, best_codes = _padded_order(exact, np.where(there, codes[rows], NO_CODE), k)
        settled = (totals <= width) | (best[:, -1] > lowest + rounding_error(self.queries[part], max_norm))
        for row in np.flatnonzero(~settled):
            best[row], best_codes[row] = self._scan_again(part.start + row, codes, k)
        return best, best_codes

    def _scan_again(self, query: int, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Everything that the query scans, by the product that is the same in any batch."""
        shift, total = np.repeat(self.shifts[query], self.sizes[query]), int(self.totals[query])
        rows = self.lists.rows_at(shift + np.arange(total))
        exact = self.stored.inner_products(self.queries[query : query + 1], rows[None] - self.first)
        scores, found = _padded_order(exact, codes[rows][None], k)
        return scores[0], found[0]


def _padded_order(scores: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """``order_pairs`` with k columns, whatever there is."""
    ordered, ordered_codes = order_pairs(scores, codes, k)
    short = k - ordered.shape[1]
    if short <= 0:
        return ordered, ordered_codes
    padding = ((0, 0), (0, short))
    return np.pad(ordered, padding, constant_values=-np.inf), np.pad(ordered_codes, padding, constant_values=NO_CODE)
