"""Finding n unseen items for every user, however much they have seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys_batch.ann.kernels import iterate_blocks
from recsys_batch.ann.retrievers import Retriever
from recsys_batch.errors import RecsysBatchError
from recsys_batch.ranking.top_k import NO_CODE
from recsys_batch.tables.list_columns import sorted_unique

_FIRST_WIDTH = 5
_RESULTS = 4_000_000  # (user, item) results of one search: 48 MB; a sharded index is walked through once for each
_SEEN_CELLS = 16_000_000  # bytes of the (user, item) bitmap that seen items are looked up in


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
    """``n_candidates`` unseen items per user, or all that the user has left.

    A user with s seen items needs at most n + s results. Users are grouped by s (rounded up to a power of 4) and each group is
    searched as wide as it needs, so one heavy user makes nobody else's search wider. Heavy users are first searched only
    5 n wide, as many of their seen items rank lower; whoever comes short is searched n + s wide, then exactly.

    Args:
        retriever, exact: over the same items, all ``n_items`` or some of them (``Retriever.among``).
        queries: float32 [B, d].
        seen_offsets: int64 [B + 1]; user b has seen ``seen_codes[seen_offsets[b]:seen_offsets[b + 1]]`` (duplicates allowed).
        seen_codes: int64 [total], of items that the retrievers are over.
        n_items: codes are below it.

    Raises:
        RecsysBatchError: seen codes out of range, offsets that do not fit, or an ``exact`` that misses items.
    """
    seen = _seen_keys(seen_offsets, seen_codes, len(queries), n_items)
    n_seen = np.bincount(seen // n_items, minlength=len(queries)).astype(np.int64)
    needed = np.minimum(n_candidates, exact.n_items - n_seen)
    found = SearchResult(
        scores=np.full((len(queries), n_candidates), -np.inf, dtype=np.float32),
        codes=np.full((len(queries), n_candidates), NO_CODE, dtype=np.int64),
        counts=np.zeros(len(queries), dtype=np.int64),
    )
    full = np.minimum(n_candidates + _bucket(n_seen), exact.n_items)
    first = np.minimum(full, _FIRST_WIDTH * n_candidates)

    def search(searcher: Retriever, widths: np.ndarray, short: np.ndarray) -> None:
        for width in np.unique(widths[short]):
            group = np.flatnonzero(short & (widths == width))
            for part in iterate_blocks(len(group), int(width), _RESULTS):
                scores, codes = searcher.search(queries[group[part]], int(width))
                _keep_unseen(found, group[part], scores, codes, seen, n_items)

    search(retriever, first, needed > 0)
    search(retriever, full, (found.counts < needed) & (full > first))
    search(exact, full, found.counts < needed)
    if (found.counts < needed).any():
        worst = int(np.argmax(needed - found.counts))
        raise RecsysBatchError(
            f"exact search found {found.counts[worst]} of the {needed[worst]} items that user {worst} has left: "
            f"it must be over the same {exact.n_items} items"
        )
    return found


def _seen_keys(offsets: np.ndarray, codes: np.ndarray, n_users: int, n_items: int) -> np.ndarray:
    """user * n_items + code, unique and ascending."""
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


def _bucket(n_seen: np.ndarray) -> np.ndarray:
    """0, else the next power of 4 from 16 up: the same for a user whoever else is in the batch."""
    edges = np.array([0] + [4**power for power in range(2, 20)], dtype=np.int64)
    return edges[np.searchsorted(edges, n_seen)]


def _keep_unseen(found: SearchResult, users: np.ndarray, scores: np.ndarray, codes: np.ndarray, seen: np.ndarray, n_items: int) -> None:
    """Write the first unseen results of ``users`` (ascending) into ``found``, over what stood there."""
    if codes.max() >= n_items:
        raise RecsysBatchError(f"a search over {n_items} items returned code {codes.max()}: the index is over other items")
    starts, ends = np.searchsorted(seen, users * n_items), np.searchsorted(seen, (users + 1) * n_items)
    places = np.arange(found.codes.shape[1])
    if (starts == ends).all():
        width = min(codes.shape[1], len(places))
        found.codes[users, :width], found.scores[users, :width] = codes[:, :width], scores[:, :width]
        found.counts[users] = (codes[:, :width] != NO_CODE).sum(axis=1)
        return
    step = max(1, min(64, _SEEN_CELLS // n_items))
    is_seen = np.zeros(step * n_items, dtype=bool)
    for start in range(0, len(users), step):
        rows = users[start : start + step]
        block_codes, block_scores = codes[start : start + step], scores[start : start + step]
        bounds = zip(starts[start : start + step], ends[start : start + step], strict=True)
        cells = np.concatenate([seen[a:b] - (rows[i] - i) * n_items for i, (a, b) in enumerate(bounds)])
        is_seen[cells] = True
        keep = (block_codes != NO_CODE) & ~is_seen[np.arange(len(rows))[:, None] * n_items + block_codes]
        is_seen[cells] = False
        keep &= np.cumsum(keep, axis=1, dtype=np.int32) <= len(places)
        counts = keep.sum(axis=1)
        # Row by row, kept results fall into the first places in order: two masks with the same count in every row.
        filled = places < counts[:, None]
        row_codes = np.full(filled.shape, NO_CODE, dtype=np.int64)
        row_scores = np.full(filled.shape, -np.inf, dtype=np.float32)
        row_codes[filled], row_scores[filled] = block_codes[keep], block_scores[keep]
        found.codes[rows], found.scores[rows], found.counts[rows] = row_codes, row_scores, counts
