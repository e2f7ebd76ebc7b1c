"""Search for n unseen items per user, however many the user has seen. Called by the executors that retrieve candidates; knows no Spark."""

from dataclasses import dataclass

import numpy as np

from recsys_batch.ann.kernels import iterate_blocks
from recsys_batch.ann.retrievers import Retriever
from recsys_batch.errors import RecsysBatchError
from recsys_batch.ranking.top_k import NO_CODE
from recsys_batch.tables.list_columns import sorted_unique

_FIRST_WIDTH_FACTOR = 5
_SEARCH_RESULTS = 4_000_000  # (user, item) results of one search: 48 MB; every search goes through a sharded index once
_BITMAP_CELLS = 16_000_000  # bytes of the (user, item) bitmap in which seen items are marked


@dataclass(frozen=True)
class SearchResult:
    """Each user's best unseen items: scores float32 [B, n] (-inf padded), codes int64 [B, n] (-1 padded), counts int64 [B]."""

    scores: np.ndarray
    codes: np.ndarray
    counts: np.ndarray


def search_unseen(
    retriever: Retriever,
    exact: Retriever,
    queries: np.ndarray,
    seen_offsets: np.ndarray,
    seen_codes: np.ndarray,
    n_candidates: int,
    n_items: int,
) -> SearchResult:
    """Search the best ``n_candidates`` unseen items of each user, or all unseen items where a user has fewer.

    A user with s seen items needs at most n + s results. Users are grouped by s (rounded up to a power of 4) and each group is
    searched as wide as it needs, so one heavy user does not widen the search of the others. Heavy users are first searched only
    5 n wide, as many of their seen items rank lower; users who get too few results are searched n + s wide, then exactly.

    Args:
        retriever, exact: over the same items, all ``n_items`` or some of them (``Retriever.among``).
        queries: float32 [B, d].
        seen_offsets: int64 [B + 1]; user b has seen ``seen_codes[seen_offsets[b]:seen_offsets[b + 1]]`` (duplicates allowed).
        seen_codes: int64 [total], of items that the retrievers are over.
        n_items: exclusive upper bound of the codes.

    Raises RecsysBatchError where seen codes are out of range, offsets do not fit, or ``exact`` lacks items.
    """
    seen = _build_seen_keys(seen_offsets, seen_codes, len(queries), n_items)
    n_seen = np.bincount(seen // n_items, minlength=len(queries)).astype(np.int64)
    needed = np.minimum(n_candidates, exact.n_items - n_seen)
    shape = (len(queries), n_candidates)
    result = SearchResult(np.full(shape, -np.inf, np.float32), np.full(shape, NO_CODE, np.int64), np.zeros(len(queries), np.int64))
    full_widths = np.minimum(n_candidates + _round_up_seen_count(n_seen), exact.n_items)
    first_widths = np.minimum(full_widths, _FIRST_WIDTH_FACTOR * n_candidates)

    def search(searched: Retriever, widths: np.ndarray, is_short: np.ndarray) -> None:
        for width in np.unique(widths[is_short]):
            group = np.flatnonzero(is_short & (widths == width))
            for part in iterate_blocks(len(group), int(width), _SEARCH_RESULTS):
                scores, codes = searched.search(queries[group[part]], int(width))
                _write_unseen(result, group[part], scores, codes, seen, n_items)

    search(retriever, first_widths, needed > 0)
    search(retriever, full_widths, (result.counts < needed) & (full_widths > first_widths))
    search(exact, full_widths, result.counts < needed)
    if (result.counts < needed).any():
        worst = int(np.argmax(needed - result.counts))
        raise RecsysBatchError(
            f"exact search found {result.counts[worst]} of the {needed[worst]} items that user {worst} has left: "
            f"it must be over the same {exact.n_items} items"
        )
    return result


def _build_seen_keys(offsets: np.ndarray, codes: np.ndarray, n_users: int, n_items: int) -> np.ndarray:
    """Encode each (user, seen item) as user * n_items + code, int64, unique and ascending."""
    if len(offsets) != n_users + 1 or offsets[0] != 0 or offsets[-1] != len(codes) or (np.diff(offsets) < 0).any():
        raise RecsysBatchError(
            f"{len(offsets)} seen offsets from {offsets[0]} to {offsets[-1]} for {n_users} users and {len(codes)} codes: "
            "expected one more than users, rising from 0 to the number of codes"
        )
    if len(codes) and (codes.min() < 0 or codes.max() >= n_items):
        raise RecsysBatchError(
            f"seen codes run from {codes.min()} to {codes.max()}, the index has {n_items} items: map them to its rows first"
        )
    return sorted_unique(np.repeat(np.arange(n_users, dtype=np.int64) * n_items, np.diff(offsets)) + codes)


def _round_up_seen_count(n_seen: np.ndarray) -> np.ndarray:
    """Round up to 0, 16, 64, 256, ... (powers of 4): independent of the other users in the batch."""
    edges = np.array([0] + [4**power for power in range(2, 20)], dtype=np.int64)
    return edges[np.searchsorted(edges, n_seen)]


def _write_unseen(result: SearchResult, users: np.ndarray, scores: np.ndarray, codes: np.ndarray, seen: np.ndarray, n_items: int) -> None:
    """Overwrite the rows ``users`` (ascending) of ``result`` with their first unseen search results."""
    if codes.max() >= n_items:
        raise RecsysBatchError(f"a search over {n_items} items returned code {codes.max()}: the index is over other items")
    starts, ends = np.searchsorted(seen, users * n_items), np.searchsorted(seen, (users + 1) * n_items)
    positions = np.arange(result.codes.shape[1])
    if (starts == ends).all():
        width = min(codes.shape[1], len(positions))
        result.codes[users, :width], result.scores[users, :width] = codes[:, :width], scores[:, :width]
        result.counts[users] = (codes[:, :width] != NO_CODE).sum(axis=1)
        return
    step = max(1, min(64, _BITMAP_CELLS // n_items))
    is_seen = np.zeros(step * n_items, dtype=bool)
    for start in range(0, len(users), step):
        rows = users[start : start + step]
        block_codes, block_scores = codes[start : start + step], scores[start : start + step]
        bounds = zip(starts[start : start + step], ends[start : start + step], strict=True)
        cells = np.concatenate([seen[a:b] - (rows[i] - i) * n_items for i, (a, b) in enumerate(bounds)])
        is_seen[cells] = True
        keep = (block_codes != NO_CODE) & ~is_seen[np.arange(len(rows))[:, None] * n_items + block_codes]
        is_seen[cells] = False
        keep &= np.cumsum(keep, axis=1, dtype=np.int32) <= len(positions)
        counts = keep.sum(axis=1)
        # Row by row, kept results fall into the first positions in order: two masks with the same count in every row.
        filled = positions < counts[:, None]
        row_codes = np.full(filled.shape, NO_CODE, dtype=np.int64)
        row_scores = np.full(filled.shape, -np.inf, dtype=np.float32)
        row_codes[filled], row_scores[filled] = block_codes[keep], block_scores[keep]
        result.codes[rows], result.scores[rows], result.counts[rows] = row_codes, row_scores, counts
