"""The search protocol and its backends. All keep one promise: a query's result depends on the query alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from recsys_batch.ann.inverted_lists import InvertedLists, search_lists
from recsys_batch.ann.kernels import exact_search, iterate_blocks, limit_threads, normalise_rows
from recsys_batch.ann.vector_storage import IndexedItems, IndexShard
from recsys_batch.errors import RecsysBatchError
from recsys_batch.ranking.top_k import NO_CODE, merge_top_k, order_pairs

_EXACT_IS_CHEAPER = 3  # where more than 1 / this of the lists would be searched
_GATHER = 65_536  # rows copied at once where only some items are searched: 16 MB at 64 dimensions


class Retriever(Protocol):
    """Finds the items of largest inner product (or cosine) for a block of queries."""

    @property
    def n_items(self) -> int:
        """Items that can be found."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """k items per query.

        Args:
            queries: float32 [B, d], finite.
            k: at least 1.

        Returns:
            (scores float32 [B, k], codes int64 [B, k]) by score descending, then code ascending; places that could not be filled
            hold (-inf, -1) and come last.

        Raises:
            RecsysBatchError: queries of another shape, or not finite.
        """

    def restrict(self, allowed: np.ndarray) -> Retriever:
        """The same search over the codes where ``allowed`` (bool [n]) is true only."""


@runtime_checkable
class Probing(Retriever, Protocol):
    """A retriever that trades recall for time: by the number of lists it looks into, and by how much more it fetches."""

    @property
    def nlist(self) -> int: ...

    @property
    def overfetches(self) -> Sequence[float]:
        """Values of over-fetch worth trying, ascending."""

    def with_probes(self, nprobe: int, overfetch: float = 1.0) -> Probing: ...

    def probes(self, k: int) -> int: ...

    def restrict(self, allowed: np.ndarray) -> Probing: ...


@dataclass(frozen=True)
class ExactRetriever:
    """All items, in blocks of matrix products, shard by shard.

    Attributes:
        keep: bool [n], the rows that are searched; None for all.
    """

    items: IndexedItems
    n_threads: int
    keep: np.ndarray | None = None

    @property
    def n_items(self) -> int:
        return self.items.n if self.keep is None else int(np.count_nonzero(self.keep))

    def restrict(self, allowed: np.ndarray) -> ExactRetriever:
        return replace(self, keep=_both(self.keep, allowed if self.items.codes is None else allowed[self.items.codes]))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries = prepare_queries(queries, k, self.items)
        limit_threads(self.n_threads)
        best = _Best(len(queries), k)
        for shard in self.items.shards:
            stored = shard.open()
            for first in range(shard.first, shard.stop, shard.stop - shard.first if self.keep is None else _GATHER):
                rows = np.arange(first, shard.stop if self.keep is None else min(first + _GATHER, shard.stop))
                if self.keep is None:
                    vectors = stored.take(slice(None))
                else:
                    rows = rows[self.keep[rows]]
                    vectors = stored.take(rows - shard.first)
                if len(rows):
                    codes = rows if self.items.codes is None else self.items.codes[rows]
                    best.add(*exact_search(queries, vectors, self.items.max_norm, k, codes))
        return best.scores, best.codes


@dataclass(frozen=True)
class IvfRetriever:
    """The items of the ``nprobe`` inverted lists whose centroids are nearest to the query; exact among them where stored as float32.

    From int8 it fetches ``overfetch`` * k, and keeps the best k by their float32 vectors.

    Attributes:
        stored: what the lists are searched in: ``items.shards`` themselves, or int8.
        stored_norm: no stored row is longer.
        centroids: float32 [nlist, d], searched by the exact kernel, so the choice of lists is free of batch noise too.
        centroid_norm: length of the longest.
        nprobe, n_candidates: lists searched for that many results.
        row_of_code: int64 [n + 1], the last for code -1; None where stored as float32.
    """

    items: IndexedItems
    stored: Sequence[IndexShard]
    stored_norm: float
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
    def overfetches(self) -> Sequence[float]:
        return (1.0,) if self.row_of_code is None else (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)

    def with_probes(self, nprobe: int, overfetch: float = 1.0) -> IvfRetriever:
        return replace(self, nprobe=nprobe, overfetch=overfetch)

    def restrict(self, allowed: np.ndarray) -> IvfRetriever:
        keep = allowed[self._codes]
        return replace(self, keep=_both(self.keep, keep), lists=self.lists.restrict(keep))

    def probes(self, k: int) -> int:
        """Lists looked into for k results: in proportion to k, as recall falls where more results come from as many lists, and
        to the share of items that are left out.

        All of them where a third would not do: one product of all queries with all items costs less per item, and from there on
        less in all (50,000 x 64, k = 200, one thread: 6 ns per item in a list, 2 ns per item in a product).
        """
        scale = max(k, self.n_candidates) / self.n_candidates * (self.items.n / max(self.n_items, 1))
        wanted = math.ceil(self.nprobe * scale)
        return wanted if wanted * _EXACT_IS_CHEAPER <= self.nlist else self.nlist

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        nprobe = self.probes(k)
        if nprobe == self.nlist:
            return ExactRetriever(self.items, self.n_threads, self.keep).search(queries, k)
        return self.search_lists(queries, k, nprobe)

    def search_lists(self, queries: np.ndarray, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """``search`` in exactly ``nprobe`` lists."""
        queries = prepare_queries(queries, k, self.items)
        limit_threads(self.n_threads)
        _, probed = exact_search(queries, self.centroids, self.centroid_norm, nprobe)
        fetched = min(math.ceil(k * self.overfetch), max(self.items.n, k))
        best = _Best(len(queries), fetched)
        for shard in self.stored:
            best.add(*search_lists(queries, probed, self.lists, shard, self._codes, self.stored_norm, fetched))
        return (best.scores, best.codes) if self.row_of_code is None else self._refined(queries, best.codes, self.row_of_code, k)

    def _refined(self, queries: np.ndarray, codes: np.ndarray, row_of_code: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k of the codes by their float32 vectors."""
        scores = np.full(codes.shape, -np.inf, dtype=np.float32)
        for shard in self.items.shards:
            stored = shard.open()
            for part in iterate_blocks(len(queries), codes.shape[1]):
                row = row_of_code[codes[part]]
                here = (row >= shard.first) & (row < shard.stop)
                exact = stored.inner_products(queries[part], np.where(here, row - shard.first, NO_CODE))
                scores[part] = np.where(here, exact, scores[part])
        return order_pairs(scores, codes, k)

    @property
    def _codes(self) -> np.ndarray:
        assert self.items.codes is not None, "inverted lists order their rows"
        return self.items.codes


def _both(keep: np.ndarray | None, more: np.ndarray) -> np.ndarray:
    return more if keep is None else keep & more


class _Best:
    """The k best so far of a search that goes part by part."""

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
    """Queries as the kernels want them.

    Raises:
        RecsysBatchError: k < 1, queries of another shape, or not finite.
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
