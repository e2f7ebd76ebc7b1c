"""The Retriever protocol with its exact and IVF implementations. The result of a query does not depend on the batch it is in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from recsys_batch.ann.inverted_lists import InvertedLists, search_lists
from recsys_batch.ann.kernels import exact_search, iterate_blocks, limit_threads, scan_all
from recsys_batch.ann.vector_storage import IndexedItems, IndexShard
from recsys_batch.errors import RecsysBatchError
from recsys_batch.ranking.top_k import NO_CODE, merge_top_k, order_pairs
from recsys_batch.ranking.vector_lengths import normalise_rows

_EXACT_CHEAPER_FRACTION = 3  # exact search is cheaper where more than 1 / this of the lists would be probed
_NPROBE_EXPONENT = 0.75
_GATHER_ROWS = 65_536  # rows copied at once where only some items are searched: 16 MB at 64 dimensions


class Retriever(Protocol):
    """Finds the items of largest inner product (or cosine) for a block of queries."""

    @property
    def n_items(self) -> int:
        """Number of items that a search can return."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search the k >= 1 best items of each query, float32 [B, d].

        Returns (scores float32 [B, k], codes int64 [B, k]) by score descending, then code ascending, padded with (-inf, -1) at the end.
        Raises RecsysBatchError where queries have the wrong shape or are not finite.
        """

    def restrict(self, allowed: np.ndarray) -> Retriever:
        """Restrict the search to the codes where ``allowed`` (bool [n]) is true."""


@runtime_checkable
class TunableRetriever(Retriever, Protocol):
    """Retriever that trades recall for time: by nprobe, the inverted lists it searches, and by over-fetch before re-ranking."""

    @property
    def nlist(self) -> int:
        """Number of inverted lists."""

    @property
    def overfetch_grid(self) -> Sequence[float]:
        """Over-fetch factors to tune over, ascending."""

    def with_nprobe(self, nprobe: int, overfetch: float = 1.0) -> TunableRetriever:
        """Copy the retriever with another operating point."""

    def effective_nprobe(self, k: int) -> int:
        """Number of lists that a search for k results probes."""

    def list_places(self, queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Find the place of each code's list in the order that its query probes them.

        Args:
            queries: float32 [B, d]. codes: int64 [B, K].

        Returns int64 [B, K], 0 for the list that is probed first; -1 for code -1, and for codes that cannot be found.
        """

    def restrict(self, allowed: np.ndarray) -> TunableRetriever: ...


@dataclass(frozen=True)
class ExactRetriever:
    """Retriever that scores all items, or the rows ``keep`` (bool [n]), by matrix products, shard by shard."""

    items: IndexedItems
    n_threads: int
    keep: np.ndarray | None = None

    @property
    def n_items(self) -> int:
        return self.items.n if self.keep is None else int(np.count_nonzero(self.keep))

    def restrict(self, allowed: np.ndarray) -> ExactRetriever:
        return replace(self, keep=_intersect(self.keep, allowed if self.items.codes is None else allowed[self.items.codes]))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries = prepare_queries(queries, k, self.items)
        limit_threads(self.n_threads)
        top_k = _TopKAccumulator(len(queries), k)
        for shard in self.items.shards:
            stored, step = shard.open(), shard.stop - shard.first if self.keep is None else _GATHER_ROWS
            for first in range(shard.first, shard.stop, step):
                rows = np.arange(first, min(first + step, shard.stop))
                if self.keep is not None:
                    rows = rows[self.keep[rows]]
                vectors = stored.take(slice(None) if self.keep is None else rows - shard.first)
                if len(rows):
                    codes = rows if self.items.codes is None else self.items.codes[rows]
                    top_k.add(*exact_search(queries, vectors, self.items.max_norm, k, codes))
        return top_k.scores, top_k.codes


@dataclass(frozen=True)
class IvfRetriever:
    """Retriever that searches the ``nprobe`` inverted lists of largest centroid inner product; float32 lists are searched exactly.

    From int8 lists it fetches ``overfetch`` * k results and re-ranks them by their float32 vectors.

    Attributes:
        search_shards, search_max_norm: vectors in which the lists are searched, ``items.shards`` or int8; bound of their length.
        centroids: float32 [nlist, d], searched by the exact kernel, so the choice of lists does not depend on the batch either;
            the longest has length ``centroid_norm``.
        nprobe, n_candidates: lists searched for ``n_candidates`` results.
        row_of_code: int64 [n + 1], the last one for code -1; None where the lists are float32.
    """

    items: IndexedItems
    search_shards: Sequence[IndexShard]
    search_max_norm: float
    lists: InvertedLists
    centroids: np.ndarray
    centroid_norm: float
    n_candidates: int
    n_threads: int
    nprobe: int
    overfetch: float = 1.0
    row_of_code: np.ndarray | None = None
    keep: np.ndarray | None = None

    @property
    def n_items(self) -> int:
        return int(self.lists.sizes.sum())

    @property
    def nlist(self) -> int:
        return len(self.centroids)

    @property
    def overfetch_grid(self) -> Sequence[float]:
        return (1.0,) if self.row_of_code is None else (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)

    def with_nprobe(self, nprobe: int, overfetch: float = 1.0) -> IvfRetriever:
        return replace(self, nprobe=nprobe, overfetch=overfetch)

    def restrict(self, allowed: np.ndarray) -> IvfRetriever:
        keep = allowed[self._codes]
        return replace(self, keep=_intersect(self.keep, keep), lists=self.lists.restrict(keep))

    def effective_nprobe(self, k: int) -> int:
        """Number of lists to search for k results: nprobe scaled with k / n_candidates * all items / searched items, to keep the recall.

        By that to the power of 0.75. For 0.99 of 264, 456, 1,000 and 1,224 results instead of 200, of 100,000 items, trained vectors need
        1.16, 1.56, 3.3 and 4.0 times the lists, planted tastes 1.13, 1.5, 2.5 and 2.9, one Gaussian 1.05, 1.2, 1.5 and 1.6: this gives
        1.23, 1.86, 3.3 and 3.9.

        All lists where that is more than a third: one product of all queries with all items costs less per item, and from there on
        less in all (50,000 x 64, k = 200, one thread: 6 ns per item in a list, 2 ns per item in a product).
        """
        factor = max(k, self.n_candidates) / self.n_candidates * (self.items.n / max(self.n_items, 1))
        scaled = math.ceil(self.nprobe * factor**_NPROBE_EXPONENT)
        return scaled if scaled * _EXACT_CHEAPER_FRACTION <= self.nlist else self.nlist

    def list_places(self, queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
        queries = prepare_queries(queries, 1, self.items)
        list_of_code = np.full(self.items.n + 1, NO_CODE, dtype=np.int64)
        rows = self.lists.rows_at(np.arange(self.n_items))
        list_of_code[self._codes[rows]] = np.repeat(np.arange(self.nlist), self.lists.sizes)
        places = np.full(codes.shape, NO_CODE, dtype=np.int64)
        for part in iterate_blocks(len(queries), self.nlist):
            _, probed = scan_all(queries[part], self.centroids, self.nlist)
            place_of_list = np.empty_like(probed)
            np.put_along_axis(place_of_list, probed, np.broadcast_to(np.arange(self.nlist), probed.shape), axis=1)
            lists = list_of_code[codes[part]]
            places[part] = np.where(lists >= 0, np.take_along_axis(place_of_list, lists.clip(0), axis=1), NO_CODE)
        return places

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        nprobe = self.effective_nprobe(k)
        if nprobe == self.nlist:
            return ExactRetriever(self.items, self.n_threads, self.keep).search(queries, k)
        return self.search_with_nprobe(queries, k, nprobe)

    def search_with_nprobe(self, queries: np.ndarray, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """Search exactly ``nprobe`` lists; arguments and results as of ``search``."""
        queries = prepare_queries(queries, k, self.items)
        limit_threads(self.n_threads)
        _, probed = exact_search(queries, self.centroids, self.centroid_norm, nprobe)
        fetched = min(math.ceil(k * self.overfetch), max(self.items.n, k))
        top_k = _TopKAccumulator(len(queries), fetched)
        for shard in self.search_shards:
            top_k.add(*search_lists(queries, probed, self.lists, shard, self._codes, self.search_max_norm, fetched))
        return (top_k.scores, top_k.codes) if self.row_of_code is None else self._rerank(queries, top_k.codes, self.row_of_code, k)

    def _rerank(self, queries: np.ndarray, codes: np.ndarray, row_of_code: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Re-rank fetched codes int64 [B, K] by their float32 vectors and keep k: (scores float32, codes int64) [B, k]."""
        scores = np.full(codes.shape, -np.inf, dtype=np.float32)
        for shard in self.items.shards:
            stored = shard.open()
            for part in iterate_blocks(len(queries), codes.shape[1]):
                row = row_of_code[codes[part]]
                in_shard = (row >= shard.first) & (row < shard.stop)
                exact = stored.inner_products(queries[part], np.where(in_shard, row - shard.first, NO_CODE))
                scores[part] = np.where(in_shard, exact, scores[part])
        return order_pairs(scores, codes, k)

    @property
    def _codes(self) -> np.ndarray:
        assert self.items.codes is not None, "inverted lists order their rows"
        return self.items.codes


def _intersect(keep: np.ndarray | None, allowed: np.ndarray) -> np.ndarray:
    return allowed if keep is None else keep & allowed


class _TopKAccumulator:
    """Accumulates the k best results of each query over shards."""

    def __init__(self, n_queries: int, k: int) -> None:
        self.scores = np.full((n_queries, k), -np.inf, dtype=np.float32)
        self.codes = np.full((n_queries, k), NO_CODE, dtype=np.int64)
        self._empty = True

    def add(self, scores: np.ndarray, codes: np.ndarray) -> None:
        if self._empty and scores.shape == self.scores.shape:
            self.scores, self.codes = scores, codes
        elif len(scores):
            self.scores, self.codes = merge_top_k([(self.scores, self.codes), (scores, codes)], self.scores.shape[1])
        self._empty = False


def prepare_queries(queries: np.ndarray, k: int, items: IndexedItems) -> np.ndarray:
    """Check queries float32 [B, d] and make them contiguous, normalised for cosine.

    Raises RecsysBatchError where k < 1, or queries have the wrong shape or are not finite.
    """
    if k < 1:
        raise RecsysBatchError(f"search needs k >= 1, found {k}")
    if queries.ndim != 2 or queries.shape[1] != items.dim:
        raise RecsysBatchError(
            f"queries of shape {queries.shape} against items of {items.dim} dimensions: users and items must come from the same model"
        )
    if not np.isfinite(queries).all():
        row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise RecsysBatchError(f"the query in row {row} is not finite: the model is broken, or its input is")
    return normalise_rows(queries) if items.cosine else np.ascontiguousarray(queries, dtype=np.float32)
