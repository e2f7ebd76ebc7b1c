"""int8 storage is off by half a step, and computes the same bits for the same pair."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys_batch.ann import kernels
from recsys_batch.ann.vector_storage import FloatRows, Int8Rows, StoredRows, dequantize, fit_int8_scale, quantize

EPS = np.finfo(np.float32).eps
TINY = 255 * np.finfo(np.float32).tiny  # below it, steps have lost their digits

matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(-(2.0**40), 2.0**40, width=32))
rng = np.random.default_rng(0)
VECTORS = rng.normal(size=(300, 16)).astype(np.float32)
QUERIES = rng.normal(size=(40, 16)).astype(np.float32)
ROWS = rng.integers(-1, 300, size=(40, 25))


def int8_rows(vectors: np.ndarray) -> Int8Rows:
    low, step = fit_int8_scale(vectors)
    return Int8Rows(quantize(vectors, low, step), low, step)


@given(vectors=matrices)
def test_a_stored_value_is_off_by_at_most_half_a_step(vectors: np.ndarray) -> None:
    low, step = fit_int8_scale(vectors)
    codes = quantize(vectors, low, step)
    assert (codes.dtype, low.dtype, step.dtype) == (np.uint8, np.float32, np.float32)
    error = np.abs(dequantize(codes, low, step).astype(np.float64) - vectors)
    rounding = 4 * EPS * np.abs(vectors.astype(np.float64)).max(axis=0) + TINY
    assert (error <= step.astype(np.float64) / 2 + rounding).all()


def test_codes_span_every_dimension_from_its_least_to_its_largest_value() -> None:
    rows = int8_rows(VECTORS)
    assert (rows.matrix.min(axis=0) == 0).all()
    assert (rows.matrix.max(axis=0) == 255).all()
    np.testing.assert_allclose(rows.step * 255, np.ptp(VECTORS, axis=0), rtol=1e-6)


@given(vectors=matrices, constant=st.floats(-1e6, 1e6, width=32))
def test_a_constant_dimension_is_stored_without_error(vectors: np.ndarray, constant: float) -> None:
    vectors[:, 0] = constant
    rows = int8_rows(vectors)
    assert (rows.matrix[:, 0] == 0).all()
    assert (rows.take(slice(None))[:, 0] == np.float32(constant)).all()


def test_values_beyond_the_scale_take_the_outermost_codes() -> None:
    low, step = np.zeros(1, np.float32), np.ones(1, np.float32)
    np.testing.assert_array_equal(quantize(np.array([[-9.0], [0.4], [0.6], [300.0]], np.float32), low, step), [[0], [0], [1], [255]])


def test_int8_dot_products_are_those_of_the_decoded_rows() -> None:
    rows = int8_rows(VECTORS)
    decoded = rows.take(slice(None))
    found = rows.inner_products(QUERIES, ROWS)
    np.testing.assert_array_equal(found, kernels.inner_products(QUERIES, decoded, ROWS))
    truth = np.einsum("bd,bmd->bm", QUERIES.astype(np.float64), decoded[ROWS].astype(np.float64))
    np.testing.assert_allclose(found[ROWS >= 0], truth[ROWS >= 0], atol=1e-5)


def test_the_dot_product_of_no_row_is_minus_infinity_and_of_any_row_is_not() -> None:
    assert (ROWS == -1).any()
    for stored in (FloatRows(VECTORS), int8_rows(VECTORS)):
        np.testing.assert_array_equal(np.isneginf(stored.inner_products(QUERIES, ROWS)), ROWS == -1)
        assert np.isneginf(stored.inner_products(QUERIES, np.full((40, 3), -1))).all()


def test_the_same_pair_has_the_same_bits_wherever_it_stands() -> None:
    for stored in (FloatRows(VECTORS), int8_rows(VECTORS)):
        together = stored.inner_products(QUERIES, ROWS)
        for row in range(len(QUERIES)):
            alone = [stored.inner_products(QUERIES[row : row + 1], ROWS[row : row + 1, [column]])[0, 0] for column in range(25)]
            np.testing.assert_array_equal(alone, together[row])


def test_rows_are_taken_by_slice_or_by_number() -> None:
    decoded = dequantize(*(lambda rows: (rows.matrix, rows.low, rows.step))(int8_rows(VECTORS)))
    numbers = np.array([5, 3, 299, 3])
    for stored, expected in ((FloatRows(VECTORS), VECTORS), (int8_rows(VECTORS), decoded)):
        rows: StoredRows = stored
        np.testing.assert_array_equal(rows.take(slice(10, 20)), expected[10:20])
        np.testing.assert_array_equal(rows.take(numbers), expected[numbers])
        assert rows.take(numbers).dtype == np.float32
