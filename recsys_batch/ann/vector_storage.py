"""Item vectors as they are stored: float32, or int8 in a quarter of the memory; always memory-mapped, opened where they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recsys_batch.ann.kernels import inner_products


class StoredRows(Protocol):
    """Rows of a matrix, whatever they are on disk."""

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        """float32 [n, d]."""

    def inner_products(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float32 [B, M] of query b and row ``rows[b, m]`` (int64), -inf for row -1: the same bits for the same pair, always."""


@dataclass(frozen=True)
class FloatRows:
    """float32 [n, d], contiguous."""

    matrix: np.ndarray

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix[rows])

    def inner_products(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return inner_products(queries, self.matrix, rows)


@dataclass(frozen=True)
class Int8Rows:
    """uint8 [n, d]; the value in dimension j is ``low[j] + step[j] * code``."""

    matrix: np.ndarray
    low: np.ndarray
    step: np.ndarray

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        return dequantize(self.matrix[rows], self.low, self.step)

    def inner_products(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        vectors = self.take(rows.ravel())
        places = np.where(rows >= 0, np.arange(rows.size).reshape(rows.shape), -1)
        return inner_products(queries, vectors, places)


def int8_scale(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, step), float32 [d] each, such that codes 0 .. 255 span each dimension's values."""
    low = vectors.min(axis=0)
    return low, ((vectors.max(axis=0) - low) / np.float32(255)).astype(np.float32)


def quantize(vectors: np.ndarray, low: np.ndarray, step: np.ndarray) -> np.ndarray:
    """uint8 [n, d], the nearest codes; a dimension without spread has code 0."""
    spread = np.where(step > 0, step, np.float32(1))
    return np.asarray(np.rint((vectors - low) / spread).clip(0, 255), dtype=np.uint8)


def dequantize(codes: np.ndarray, low: np.ndarray, step: np.ndarray) -> np.ndarray:
    """float32 [n, d]; elementwise, so the same codes give the same bits."""
    values: np.ndarray = codes.astype(np.float32)
    values *= step
    values += low
    return values


@dataclass(frozen=True)
class IndexShard:
    """Rows ``first`` .. ``stop`` - 1 of an index. ``open`` maps them; what it returns is let go after use, and so leaves memory."""

    first: int
    stop: int
    open: Callable[[], StoredRows]


@dataclass(frozen=True)
class IndexedItems:
    """The indexed items as float32 vectors: n of d dimensions, the longest ``max_norm`` long.

    Attributes:
        codes: int64 [n], the code of each row; None where rows are in code order.
        shards: FloatRows, in row order.
        cosine: vectors are stored normalised, and queries are normalised when they come.
    """

    n: int
    dim: int
    max_norm: float
    cosine: bool
    codes: np.ndarray | None
    shards: Sequence[IndexShard]
