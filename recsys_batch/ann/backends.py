"""The search protocol and its backends. All keep one promise: a query's result depends on the query alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from recsys_batch.ann.kernels import MARGIN, blocks, exact_search, limit_threads, normalised, settle
from recsys_batch.errors import RecsysBatchError
from recsys_batch.topk import NO_CODE

_EXACT_IS_CHEAPER = 10  # where more than 1 / this of the lists would be searched


class Retriever(Protocol):
    """Finds the items of largest inner product (or cosine) for a block of queries."""

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


@runtime_checkable
class Probing(Retriever, Protocol):
    """A retriever that trades recall for time by the number of lists it looks into."""

    @property
    def nlist(self) -> int: ...

    def at_nprobe(self, nprobe: int) -> Probing: ...

    def probes(self, k: int) -> int: ...


@dataclass(frozen=True)
class Vectors:
    """The item matrix: float32 [n, d], memory-mapped; ``max_norm`` is its longest row."""

    matrix: np.ndarray
    max_norm: float
    cosine: bool

    def prepare(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Queries as the kernels want them."""
        if k < 1:
            raise RecsysBatchError(f"search needs k >= 1, found {k}")
        if queries.ndim != 2 or queries.shape[1] != self.matrix.shape[1]:
            raise RecsysBatchError(
                f"queries of shape {queries.shape} against items of {self.matrix.shape[1]} dimensions: "
                "users and items must come from the same model"
            )
        if not np.isfinite(queries).all():
            row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
            raise RecsysBatchError(f"the query in row {row} is not finite: the model is broken, or its input is")
        return normalised(queries) if self.cosine else np.ascontiguousarray(queries, dtype=np.float32)


@dataclass(frozen=True)
class ExactRetriever:
    """All items, in blocks of matrix products."""

    vectors: Vectors
    n_threads: int

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries = self.vectors.prepare(queries, k)
        limit_threads(self.n_threads)
        return _padded(*exact_search(queries, self.vectors.matrix, self.vectors.max_norm, k), k)


@dataclass(frozen=True)
class IvfRetriever:
    """The items of the ``nprobe`` inverted lists whose centroids are nearest to the query; exact among them.

    ``centroids`` float32 [nlist, d] are searched by the same exact kernel, so the choice of lists is free of batch noise too.
    ``nprobe`` is meant for ``n_candidates`` results.
    """

    vectors: Vectors
    index: Any
    centroids: Vectors
    nprobe: int
    n_candidates: int
    n_threads: int

    @property
    def nlist(self) -> int:
        return len(self.centroids.matrix)

    def at_nprobe(self, nprobe: int) -> IvfRetriever:
        return replace(self, nprobe=nprobe)

    def probes(self, k: int) -> int:
        """Lists looked into for k results: in proportion to k, as recall falls where more results come from as many lists.

        All of them where a tenth would not do: one product of all queries with all items costs less per item, and from there on
        less in all (50,000 x 64, one thread: 12 ns per item in a list, 2 ns per item in a product).
        """
        wanted = -(-self.nprobe * max(k, self.n_candidates) // self.n_candidates)
        return wanted if wanted * _EXACT_IS_CHEAPER <= self.nlist else self.nlist

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries = self.vectors.prepare(queries, k)
        limit_threads(self.n_threads)
        nprobe = self.probes(k)
        if nprobe == self.nlist:
            return _padded(*exact_search(queries, self.vectors.matrix, self.vectors.max_norm, k), k)
        return _padded(*self.search_lists(queries, k, nprobe), k)

    def search_lists(self, queries: np.ndarray, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """``search`` in exactly ``nprobe`` lists, for prepared queries; min(k, n_items) columns."""
        matrix, max_norm = self.vectors.matrix, self.vectors.max_norm
        k = min(k, len(matrix))
        width = min(k + MARGIN, len(matrix))
        scores = np.empty((len(queries), k), dtype=np.float32)
        codes = np.empty((len(queries), k), dtype=np.int64)
        self.index.nprobe = nprobe
        for part in blocks(len(queries), width):
            block = queries[part]
            nearness, lists = exact_search(block, self.centroids.matrix, self.centroids.max_norm, nprobe)
            rough, found = self.index.search_preassigned(block, width, lists, nearness)
            scores[part], codes[part], settled = settle(block, matrix, max_norm, rough, found, k)
            if not settled.all():
                unsettled = np.flatnonzero(~settled) + part.start
                scores[unsettled], codes[unsettled] = exact_search(queries[unsettled], matrix, max_norm, k)
        return scores, codes


def _padded(scores: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    short = k - scores.shape[1]
    if short <= 0:
        return scores, codes
    padding = ((0, 0), (0, short))
    return np.pad(scores, padding, constant_values=-np.inf), np.pad(codes, padding, constant_values=NO_CODE)
