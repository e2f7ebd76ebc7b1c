"""Item vectors as stored in an index: float32, or int8 in a quarter of the memory; memory-mapped when they are used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recsys_batch.ann.kernels import inner_products


class StoredRows(Protocol):
    """Rows of a stored matrix, read as float32 whatever the dtype on disk."""

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read rows as float32 [n, d]."""

    def inner_products(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Compute float32 [B, M] of query b and row ``rows[b, m]`` (int64), -inf for row -1; bit-identical for the same pair."""


@dataclass(frozen=True)
class FloatRows:
    """Vectors stored as float32 [n, d], contiguous."""

    matrix: np.ndarray

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix[rows])

    def inner_products(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return inner_products(queries, self.matrix, rows)


@dataclass(frozen=True)
class Int8Rows:
    """Vectors stored as uint8 [n, d]; the value in dimension j is ``low[j] + step[j] * code``."""

    matrix: np.ndarray
    low: np.ndarray
    step: np.ndarray

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        return dequantize(self.matrix[rows], self.low, self.step)

    def inner_products(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        vectors = self.take(rows.ravel())
        positions = np.where(rows >= 0, np.arange(rows.size).reshape(rows.shape), -1)
        return inner_products(queries, vectors, positions)


def fit_int8_scale(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit (low, step), float32 [d] each, such that codes 0 .. 255 span the values of each dimension."""
    low = vectors.min(axis=0)
    return low, ((vectors.max(axis=0) - low) / np.float32(255)).astype(np.float32)


def quantize(vectors: np.ndarray, low: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Quantize float32 [n, d] to the nearest codes, uint8 [n, d]; a dimension without spread has code 0."""
    spread = np.where(step > 0, step, np.float32(1))
    return np.asarray(np.rint((vectors - low) / spread).clip(0, 255), dtype=np.uint8)


def dequantize(codes: np.ndarray, low: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Decode uint8 [n, d] to float32; elementwise, so the same codes give the same bits."""
    values: np.ndarray = codes.astype(np.float32)
    values *= step
    values += low
    return values


@dataclass(frozen=True)
class IndexShard:
    """Rows ``first`` .. ``stop`` - 1 of an index. ``open`` maps them; drop its result after use to free the memory."""

    first: int
    stop: int
    open: Callable[[], StoredRows]


@dataclass(frozen=True)
class IndexedItems:
    """Indexed items as float32 vectors: ``n`` of ``dim`` dimensions, the longest of length ``max_norm``.

    Attributes:
        codes: int64 [n], the code of each row; None where rows are in code order.
        shards: shards of FloatRows, in row order.
        cosine: whether vectors are stored normalised and queries are normalised on arrival.
    """

    n: int
    dim: int
    max_norm: float
    cosine: bool
    codes: np.ndarray | None
    shards: Sequence[IndexShard]
