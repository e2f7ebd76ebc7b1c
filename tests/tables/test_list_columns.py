"""Arrow lists and their flat parts say the same, sliced and with nulls."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.tables.list_columns import column_matrix, flatten_lists, list_column, mask_ragged, matrix_column

LISTS = st.lists(st.none() | st.lists(st.integers(0, 9), max_size=4), max_size=8)


@given(LISTS, st.integers(0, 8), st.integers(0, 8))
def test_ragged_of_any_slice_holds_each_list_and_nulls_as_empty(lists: list[list[int] | None], start: int, length: int) -> None:
    column = pa.array(lists, pa.list_(pa.int64())).slice(start, length)
    values, offsets = flatten_lists(column)
    flat = values.to_pylist()
    found = [flat[offsets[i] : offsets[i + 1]] for i in range(len(column))]
    assert found == [row or [] for row in column.to_pylist()]
    assert list_column(values, offsets).to_pylist() == found


@given(LISTS)
def test_mask_ragged_drops_values_and_keeps_rows(lists: list[list[int] | None]) -> None:
    values, offsets = flatten_lists(pa.array(lists, pa.list_(pa.int64())))
    flat = values.to_numpy(zero_copy_only=False)
    keep = np.asarray(flat % 2 == 0, dtype=bool)
    kept, new = flat[keep], mask_ragged(offsets, keep)
    assert [list(kept[new[i] : new[i + 1]]) for i in range(len(lists))] == [[v for v in row or [] if v % 2 == 0] for row in lists]


def test_matrix_round_trip() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(column_matrix(matrix_column(matrix).slice(1)), matrix[1:])


def test_vectors_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 2"):
        column_matrix(pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())))
