"""What clients' codecs make of Python's lists, numpy's arrays and pandas' columns, beside what a model declares."""

from typing import Any

import numpy as np
import pytest

from recsys_batch.online.oip.model_api import InvalidRequest, TensorSpec
from recsys_batch.online.oip.tensor_codec import datatype_of

K, USERS, FEATURES = TensorSpec("k", "INT32", (1,)), TensorSpec("user_id", "INT64", (-1,), max_rows=3), TensorSpec("f", "FP32", (-1, 2))


def text(*values: str) -> np.ndarray:
    return np.array([value.encode() for value in values], dtype=object)


@pytest.mark.parametrize(
    ("spec", "array", "expected"),
    [
        pytest.param(K, np.array([4]), [4], id="a list of an int is INT64"),
        pytest.param(K, np.array([[4]], np.int32), [4], id="a column"),
        pytest.param(K, np.array([4], np.uint8), [4], id="a small dtype"),
        pytest.param(K, text("4"), [4], id="digits"),
        pytest.param(K, text("4").reshape(1, 1), [4], id="a column of digits"),
        pytest.param(USERS, np.array([5, 6], np.int32), [5, 6], id="a pandas column of int32"),
        pytest.param(USERS, np.array([[5], [6]], np.uint64), [5, 6], id="a column of uint64"),
        pytest.param(USERS, text("5", "-6"), [5, -6], id="ids as text"),
        pytest.param(FEATURES, np.array([[0.5, np.nan]]), [[0.5, np.nan]], id="floats are FP64"),
        pytest.param(FEATURES, np.array([[0.5, np.inf]], np.float16), [[0.5, np.inf]], id="half precision"),
        pytest.param(FEATURES, np.array([[1, 2**24]]), [[1, 2**24]], id="a list of ints is INT64"),
        pytest.param(FEATURES, np.zeros((0, 2), np.int64), np.zeros((0, 2)), id="no rows"),
    ],
)
def test_values_are_taken_that_the_declared_datatype_holds(spec: TensorSpec, array: np.ndarray, expected: Any) -> None:
    spec.check(datatype_of(array), array.shape)
    found = spec.conform(array)
    np.testing.assert_array_equal(found, expected)
    assert datatype_of(found) == spec.datatype


@pytest.mark.parametrize(
    ("spec", "array", "words"),
    [
        pytest.param(K, np.array([2**31]), "holds 2147483648: expected INT32", id="too large"),
        pytest.param(K, text("2147483648"), "holds 2147483648: expected INT32", id="too large as text"),
        pytest.param(K, text("four"), "decimal digits of an INT32", id="no digits"),
        pytest.param(K, np.array([4.0]), "is FP64", id="a float for an int"),
        pytest.param(K, np.array([4, 5]), r"expected INT32 \[1\]", id="two for one"),
        pytest.param(USERS, np.array([2**63], np.uint64), "expected INT64", id="beyond INT64"),
        pytest.param(USERS, np.array([[5, 6]]), r"expected INT64 \[-1\]", id="a row for a column"),
        pytest.param(USERS, np.arange(4), "has 4 rows: at most 3", id="more rows than are answered"),
        pytest.param(FEATURES, np.array([[1e39, 0]]), "holds 1e.39, which is beyond FP32", id="a double beyond floats"),
        pytest.param(FEATURES, np.array([[0, 2**24 + 1]]), "holds 16777217: expected FP32", id="a whole number that loses a digit"),
        pytest.param(FEATURES, text("1", "2").reshape(1, 2), "is BYTES", id="text for floats"),
    ],
)
def test_values_are_refused_that_the_declared_datatype_does_not_hold(spec: TensorSpec, array: np.ndarray, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        spec.check(datatype_of(array), array.shape)
        spec.conform(array)


def test_a_message_holds_the_beginning_of_what_a_request_brought() -> None:
    for datatype, shape in (("x" * 10**6, [1]), ("INT64", [1] * 10**5), ("FP64", ["y" * 10**6])):
        with pytest.raises(InvalidRequest) as caught:
            USERS.check(datatype, shape)
        assert len(str(caught.value)) < 300 and "..." in str(caught.value)
