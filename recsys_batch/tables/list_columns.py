"""Arrow list columns as flat values and offsets, the form in which numpy code walks lists of different lengths."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def flatten_lists(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Split a list column into flat values and int64 offsets [n + 1]; null lists count as empty, slices are respected."""
    lengths = np.asarray(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    return column.flatten(), np.concatenate([[0], np.cumsum(lengths)])


def list_column(values: pa.Array, offsets: np.ndarray) -> pa.ListArray:
    """Build the list column of flat values and offsets."""
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), values)


def matrix_column(matrix: np.ndarray) -> pa.ListArray:
    """Build a list column of n lists of d from float32 [n, d]."""
    n, d = matrix.shape
    return list_column(pa.array(np.ascontiguousarray(matrix, dtype=np.float32).ravel()), np.arange(n + 1) * d)


def column_matrix(column: pa.Array) -> np.ndarray:
    """Convert a list column, whose lists all have length d and no nulls, to float32 [n, d]. Raises ValueError where lengths differ."""
    values, offsets = flatten_lists(column)
    lengths = np.diff(offsets)
    if len(lengths) == 0:
        return np.zeros((0, 0), dtype=np.float32)
    if (lengths != lengths[0]).any():
        raise ValueError(f"embeddings of different lengths: {int(lengths.min())} to {int(lengths.max())}")
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float32).reshape(len(lengths), int(lengths[0]))


def pad_lists(values: np.ndarray, offsets: np.ndarray, fill: float, width: int) -> np.ndarray:
    """Pad lists, given flat, to [n, width] of the values' dtype, with ``fill`` behind each list's end."""
    lengths = np.diff(offsets)
    if (lengths == width).all():
        return np.array(values).reshape(len(lengths), width)
    is_filled = np.arange(width) < lengths[:, None]
    padded = np.full(is_filled.shape, fill, dtype=values.dtype)
    padded[is_filled] = values
    return padded


def sorted_unique(keys: np.ndarray) -> np.ndarray:
    """Sort non-negative keys and drop repeated ones. np.unique hashes first, which takes 40 times as long."""
    keys = np.sort(keys)
    return np.asarray(keys[np.diff(keys, prepend=-1) > 0])


def sorted_ids(*columns: pa.ChunkedArray) -> pa.Array:
    """Merge columns into their distinct values, ascending."""
    values = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks]))
    return values.take(pc.sort_indices(values))


def mask_ragged(offsets: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Compute the offsets after dropping the flat values where ``keep`` (bool [total]) is false."""
    return np.asarray(np.concatenate([[0], np.cumsum(keep)])[offsets], dtype=np.int64)


def flat_positions(values: pa.Array | pa.ChunkedArray, among: pa.Array) -> np.ndarray:
    """Find the int64 position of each value in ``among``, -1 where it lacks the value."""
    return np.asarray(pc.fill_null(pc.index_in(values, value_set=among), -1).to_numpy(zero_copy_only=False), dtype=np.int64)
