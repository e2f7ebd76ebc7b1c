"""Tensors as nested JSON values, read and written by TensorFlow Serving's rules (json_tensor.cc).

Used by predict_api.py. Datatypes have the Open Inference Protocol's names here, too.
"""

import base64
import binascii
import json
from typing import Any, TypeGuard

import numpy as np

from recsys_batch.errors import quote
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.oip.bare_json import decode_bare_json
from recsys_batch.online.oip.model_api import InvalidRequest
from recsys_batch.online.oip.tensor_codec import tensor_from_values

_MAX_WHOLE = 2**24 - 1
"""Whole numbers up to here are float32s."""


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Parse a body; NaN, Infinity and -Infinity may stand bare in it. Raises InvalidRequest: not JSON, or no object."""
    try:
        value = decode_bare_json(body)
    except BadRequest as error:
        raise InvalidRequest(f"JSON Parse error: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is {quote(value)}: expected a JSON object")
    return value


def is_base64_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value stands for bytes: an object with exactly the key b64."""
    return isinstance(value, dict) and set(value) == {"b64"}


def tensor_from_json(name: str, datatype: str, value: Any) -> np.ndarray:
    """Decode a tensor; its shape is that of the nested lists.

    Raises:
        InvalidRequest: lists of several lengths at a level, a value of another kind, or a number that the datatype loses digits of.
    """
    shape, flat = _flatten_evenly(name, value)
    if datatype == "BYTES":
        flat = [_decode_base64(name, element) if is_base64_object(element) else element for element in flat]
    array = tensor_from_values(name, datatype, shape, flat)
    if datatype == "FP32":
        _refuse_lossy(name, flat, array.ravel())
    return array


def _refuse_lossy(name: str, flat: list[Any], array: np.ndarray) -> None:
    """Refuse whole numbers that are no float32s. Raises InvalidRequest: there are some."""
    for position in np.flatnonzero(np.abs(array) > _MAX_WHOLE).tolist():
        if isinstance(flat[position], int):
            raise InvalidRequest(f"input {name} holds {quote(flat[position])}, which cannot be cast to float without loss of precision")


def rows_to_json(array: np.ndarray) -> list[bytes]:
    """Encode each row of a tensor as nested lists: text, and floats by the fewest digits that read back, NaN and Infinity bare."""
    return [_to_json(array[n : n + 1])[1:-1] for n in range(len(array))]


def _to_json(array: np.ndarray) -> bytes:
    if array.dtype == object:
        texts = [element.decode(errors="replace") for element in array.ravel().tolist()]
        array = np.array(texts, dtype=object).reshape(array.shape)
    elif array.dtype.kind == "f":
        array = array.astype("U32").astype(np.float64)
    return json.dumps(array.tolist(), separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _flatten_evenly(name: str, value: Any) -> tuple[list[int], list[Any]]:
    """Flatten nested lists level by level; returns (their shape, their elements). Raises InvalidRequest: lists of several lengths."""
    shape: list[int] = []
    level = [value]
    while any(isinstance(element, list) for element in level):
        sizes = {len(element) if isinstance(element, list) else None for element in level}
        if len(sizes) > 1:
            found = " and ".join(sorted("a single value" if size is None else f"a list of {size}" for size in sizes))
            raise InvalidRequest(
                f"input {name} has {found} at level {len(shape)}: all elements, and all rows of a request, have the same shape"
            )
        shape.append(len(level[0]))
        level = [element for elements in level for element in elements]
    return shape, level


def _decode_base64(name: str, value: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InvalidRequest(f"input {name} holds {quote(value)}: expected base64 of the alphabet with + and /") from None
