"""Vectors of every size that float32 holds have a length, and one of length 1 beside them."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.ranking import vector_lengths
from recsys_batch.ranking.vector_lengths import SMALLEST_LENGTH, normalise_rows, row_lengths

SIZES = [1e-45, 1e-38, 1e-30, 1e-12, 1.0, 1e12, 1e30, 3e38]


@pytest.mark.parametrize("size", SIZES)
def test_a_vector_of_any_size_is_scaled_to_length_1(size: float) -> None:
    vectors = np.array([[size, 0, 0], [0, -size, 0], [size, size, -size]], np.float32)
    np.testing.assert_allclose(row_lengths(vectors), float(np.float32(size)) * np.sqrt([1, 1, 3]), rtol=1e-15)
    np.testing.assert_allclose(normalise_rows(vectors), [[1, 0, 0], [0, -1, 0], np.array([1, 1, -1]) / math.sqrt(3)], rtol=1e-7)


def test_zeros_stay_zeros_and_have_no_length() -> None:
    assert row_lengths(np.zeros((2, 3), np.float32)).tolist() == [0, 0]
    assert normalise_rows(np.zeros((2, 3), np.float32)).tolist() == [[0, 0, 0]] * 2
    assert (np.zeros(1, np.float32) / np.maximum(np.zeros(1, np.float32), SMALLEST_LENGTH)).tolist() == [0]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_the_length_is_the_root_of_the_sum_of_squares(values: list[float]) -> None:
    exact = sum(Fraction(value) ** 2 for value in values)
    scale = Fraction(2) ** 600  # out of the range of floats, where squares are tiny
    expected = math.sqrt(exact * scale) / 2.0**300 if exact < 1 else math.sqrt(exact)
    assert row_lengths(np.array([values], np.float32))[0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (0, 7), (2, 0, 7), (3, 0)])
def test_a_vector_gets_the_same_bits_alone_and_in_any_batch(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    lengths, units = row_lengths(vectors), normalise_rows(vectors)
    assert (lengths.shape, units.shape, lengths.dtype, units.dtype) == (shape[:-1], shape, np.float64, np.float32)
    for place in np.ndindex(shape[:-1]):
        assert lengths[place] == row_lengths(vectors[place])
        np.testing.assert_array_equal(units[place], normalise_rows(vectors[place]))
    monkeypatch.setattr(vector_lengths, "_VALUES_AT_ONCE", 15)  # two rows
    np.testing.assert_array_equal(units, normalise_rows(np.asfortranarray(vectors)))
    np.testing.assert_array_equal(lengths, row_lengths(np.asfortranarray(vectors)))
