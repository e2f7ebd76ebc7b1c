import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from recsys_batch.online.oip.model_api import InvalidRequest
from recsys_batch.online.tfserving.json_tensor import rows_to_json, tensor_from_json


@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=4), elements=st.floats(width=32)))
def test_floats_read_back_bit_by_bit_whatever_they_are(array: np.ndarray) -> None:
    written = [json.loads(row) for row in rows_to_json(array)]
    np.testing.assert_array_equal(tensor_from_json("x", "FP32", written), array)


def test_floats_have_few_digits_and_always_say_that_they_are_no_whole_numbers() -> None:
    array = np.array([[0.1, 1.0, -0.0], [1e-7, np.inf, np.nan]], np.float32)
    assert rows_to_json(array) == [b"[0.1,1.0,-0.0]", b"[1e-07,Infinity,NaN]"]
    assert rows_to_json(array[0]) == [b"0.1", b"1.0", b"-0.0"] and rows_to_json(np.array([b"a"], dtype=object)) == [b'"a"']


def test_text_may_come_as_base64_in_an_object_with_that_one_key() -> None:
    assert tensor_from_json("x", "BYTES", [["a", {"b64": "/+8="}]]).tolist() == [[b"a", b"\xff\xef"]]
    for value in ({"b64": "YQ==", "more": 1}, {"b64": "!"}, {"b64": 7}, {}, None, 1):
        with pytest.raises(InvalidRequest, match="input x holds"):
            tensor_from_json("x", "BYTES", [value])


@pytest.mark.parametrize("value", [[[1], [1, 2]], [1, [2]], [[1], 2], [[[1]], [[]]]])
def test_lists_of_several_lengths_are_no_tensor(value: object) -> None:
    with pytest.raises(InvalidRequest, match=r"input x has .* at level"):
        tensor_from_json("x", "INT64", value)


def test_empty_lists_have_a_shape() -> None:
    assert tensor_from_json("x", "FP32", [[], []]).shape == (2, 0)
