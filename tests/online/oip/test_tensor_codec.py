import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from recsys_batch.online.oip.model_api import DTYPES, InvalidRequest
from recsys_batch.online.oip.tensor_codec import (
    datatype_of,
    tensor_from_bytes,
    tensor_from_values,
    tensor_to_bytes,
    tensor_to_json,
)

NUMBERS = [dtype for dtype in DTYPES.values() if dtype.kind != "O"]
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


@given(st.sampled_from(NUMBERS).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)))
def test_numbers_read_back_from_their_bytes(array: np.ndarray) -> None:
    found = tensor_from_bytes("x", datatype_of(array), array.shape, tensor_to_bytes(array))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_strings_read_back_from_their_bytes(strings: list[bytes]) -> None:
    array = np.empty(len(strings), dtype=object)
    array[:] = strings
    assert tensor_from_bytes("x", "BYTES", [len(strings)], tensor_to_bytes(array)).tolist() == strings


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(-2, 5) | st.just(2**31 - 1), max_size=4), st.binary(max_size=40))
@example("FP64", [0, 2**31 - 1, 2**31 - 1], b"")
def test_bytes_that_do_not_fit_are_refused_and_never_fail(datatype: str, shape: list[int], raw: bytes) -> None:
    try:
        found = tensor_from_bytes("x", datatype, shape, raw)
    except InvalidRequest as error:
        assert "x" in str(error)
    else:
        assert list(found.shape) == shape


def test_strings_of_lying_lengths_are_refused() -> None:
    for raw in (struct.pack("<I", 5) + b"four", struct.pack("<I", 2**31) + b"x", b"\x01\x00", struct.pack("<I", 1) + b"ab"):
        with pytest.raises(InvalidRequest, match="behind its length"):
            tensor_from_bytes("x", "BYTES", [1], raw)


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "words"),
    [
        ("FP32", [2], [1], "expected 2"),
        ("FP32", [1], ["1"], "no FP32"),
        ("INT8", [1], [300], "beyond INT8"),
        ("UINT8", [1], [-1], "beyond UINT8"),
        ("INT32", [1], [1.5], "no INT32"),
        ("INT32", [1], [True], "no INT32"),
        ("BOOL", [1], [1], "no BOOL"),
        ("BYTES", [1], [1], "no text"),
        ("FP32", [1], {"a": 1}, "expected a list"),
        ("FP32", [2**20, 2**20], [], "more than a request holds"),
        ("FP99", [1], [1], "known: BOOL"),
        ("FP32", [True], [1], "sizes from 0"),
    ],
)
def test_values_of_another_kind_are_refused(datatype: str, shape: list[Any], values: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        tensor_from_values("x", datatype, shape, values)


def test_nested_values_are_flat_ones() -> None:
    assert tensor_from_values("x", "INT64", [2, 2], [[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]


def test_what_is_no_finite_number_stands_bare_in_json_as_pythons_own_reads_it() -> None:
    told = tensor_to_json(np.array([[np.nan, np.inf], [-np.inf, 1.5]], np.float32))
    assert told == b"[NaN,Infinity,-Infinity,1.5]"
    assert tensor_to_json(np.zeros((0, 3), np.float32)) == b"[]"


@given(arrays.arrays(np.float64, arrays.array_shapes(max_dims=2, max_side=99), elements=st.floats()))
@example(np.arange(20_000.0))
def test_tensors_read_back_from_json_piece_by_piece(array: np.ndarray) -> None:
    found = tensor_from_values("x", "FP64", array.shape, json.loads(tensor_to_json(array)))
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(("datatype", "largest", "beyond"), [("FP16", 65504.0, 65520.0), ("FP32", 3.4e38, 3.5e38), ("FP32", 1, 10**39)])
def test_a_number_beyond_a_float_is_refused_and_does_not_become_infinite(datatype: str, largest: float, beyond: float) -> None:
    assert np.isfinite(tensor_from_values("x", datatype, [2], [largest, -largest])).all()
    for number in (beyond, -beyond):
        with pytest.raises(InvalidRequest, match=f"input x holds .*, which is beyond {datatype}"):
            tensor_from_values("x", datatype, [3], [np.inf, 1.0, number])


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_what_is_no_finite_number_is_taken_as_it_is(datatype: str) -> None:
    np.testing.assert_array_equal(tensor_from_values("x", datatype, [3], [math.nan, math.inf, -math.inf]), [np.nan, np.inf, -np.inf])
