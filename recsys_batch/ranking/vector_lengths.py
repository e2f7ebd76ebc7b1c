"""Lengths of vectors, and vectors of length 1, whatever their size. The only place where embeddings are normalised.

In float32 the square of 1e-30 is 0 and that of 1e30 is infinite: a vector of that size would keep its length, or become zeros. Therefore
squares are summed in float64, whose range holds them for every float32. numpy adds each row up pairwise, in an order that depends on its
length alone: the same row gives the same bits in any batch and on any processor.
"""

import math

import numpy as np

SMALLEST_LENGTH = np.finfo(np.float32).tiny
"""Divide by ``np.maximum(length, SMALLEST_LENGTH)``, and zeros stay zeros. 1.2e-38; what is smaller some libraries take for 0."""

_VALUES_AT_ONCE = 2**20  # 8 MB in float64


def row_lengths(vectors: np.ndarray) -> np.ndarray:
    """Compute the L2 norm of each vector, float64 [...].

    Args:
        vectors: float32 [..., d].
    """
    rows = vectors.reshape(math.prod(vectors.shape[:-1]), vectors.shape[-1])
    lengths = np.empty(len(rows), dtype=np.float64)
    for block in _iterate_blocks(rows.shape):
        lengths[block] = _lengths(np.array(rows[block], dtype=np.float64, order="C"))
    return lengths.reshape(vectors.shape[:-1])


def normalise_rows(vectors: np.ndarray) -> np.ndarray:
    """Copy float32 [..., d] with each vector scaled to length 1; zeros stay zeros."""
    rows = vectors.reshape(math.prod(vectors.shape[:-1]), vectors.shape[-1])
    scaled = np.empty(rows.shape, dtype=np.float32)
    for block in _iterate_blocks(rows.shape):
        wide = np.array(rows[block], dtype=np.float64, order="C")
        wide /= np.maximum(_lengths(wide), np.finfo(np.float64).tiny)[:, None]
        scaled[block] = wide
    return scaled.reshape(vectors.shape)


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.square(rows).sum(axis=1)))


def _iterate_blocks(shape: tuple[int, ...]) -> list[slice]:
    n, dim = shape
    step = max(1, _VALUES_AT_ONCE // max(dim, 1))
    return [slice(start, start + step) for start in range(0, n, step)]
