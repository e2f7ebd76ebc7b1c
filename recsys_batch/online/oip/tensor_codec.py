"""Tensors as bytes and as JSON values: little-endian, row by row; BYTES elements each behind their length in four bytes.

Used by both wires. Whatever a request says of a tensor is checked here before numpy sees it.
"""

import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from recsys_batch.errors import quote
from recsys_batch.online.api.encode import to_json
from recsys_batch.online.oip.model_api import DTYPES, InvalidRequest

_LENGTH = struct.Struct("<I")
_MAX_ELEMENTS = 2**31
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 8192
"""Elements that are converted in one call: calls of C keep the interpreter's lock, and the event loop's thread waits for it."""


def count_elements(name: str, datatype: str, shape: Sequence[Any]) -> int:
    """Count the elements of a tensor. Raises InvalidRequest: an unknown datatype, or a shape that no tensor of this size has."""
    if datatype not in DTYPES:
        raise InvalidRequest(f"input {name} has datatype {quote(datatype)}; known: {', '.join(DTYPES)}")
    if len(shape) > 8 or not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < _MAX_ELEMENTS for size in shape):
        raise InvalidRequest(f"input {name} has shape {quote(list(shape))}: expected up to 8 sizes from 0")
    if math.prod(max(size, 1) for size in shape) >= _MAX_ELEMENTS:  # numpy refuses such an array even where a size of 0 leaves it empty
        raise InvalidRequest(f"input {name} has shape {list(shape)}: that is more than a request holds")
    return math.prod(shape)


def tensor_from_bytes(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> np.ndarray:
    """Decode a tensor; BYTES as an array of objects. Raises InvalidRequest: another number of bytes than shape and datatype need."""
    n = count_elements(name, datatype, shape)
    if datatype == "BYTES":
        return _object_array(_decode_strings(name, n, raw), shape)
    dtype = DTYPES[datatype]
    if len(raw) != n * dtype.itemsize:
        raise InvalidRequest(f"input {name} has {len(raw)} bytes, expected {n * dtype.itemsize} for {datatype} {list(shape)}")
    return np.frombuffer(raw, dtype).reshape(shape)


def tensor_from_values(name: str, datatype: str, shape: Sequence[int], values: Any) -> np.ndarray:
    """Decode a tensor from JSON's values, flat or nested. Raises InvalidRequest: not so many, or not of that kind."""
    return tensor_from_flat(name, datatype, shape, _flatten(name, values))


def tensor_from_flat(name: str, datatype: str, shape: Sequence[int], flat: Sequence[Any]) -> np.ndarray:
    """Decode a tensor from its elements, e.g. gRPC's contents. Raises as ``tensor_from_values``."""
    n = count_elements(name, datatype, shape)
    if len(flat) != n:
        raise InvalidRequest(f"input {name} has {len(flat)} elements, expected {n} for shape {list(shape)}")
    if datatype == "BYTES":
        return _object_array([_as_bytes(name, element) for element in flat], shape)
    types = {bool} if datatype == "BOOL" else ({int, float} if datatype.startswith("FP") else {int})
    array = np.empty(n, DTYPES[datatype])
    for start in range(0, n, CHUNK):
        chunk = flat[start : start + CHUNK]
        if set(map(type, chunk)) - types:
            wrong = next(element for element in chunk if type(element) not in types)
            raise InvalidRequest(f"input {name} holds {quote(wrong)}, which is no {datatype}")
        try:
            with np.errstate(over="ignore"):
                array[start : start + CHUNK] = np.array(chunk, dtype=array.dtype)
        except OverflowError:
            raise InvalidRequest(f"input {name} holds a number beyond {datatype}") from None
    if array.dtype.kind == "f":
        for position in np.flatnonzero(np.isinf(array)).tolist():
            if math.isfinite(flat[position]):
                raise InvalidRequest(f"input {name} holds {quote(flat[position])}, which is beyond {datatype}")
    return array.reshape(shape)


def tensor_to_bytes(array: np.ndarray) -> bytes:
    """Encode a tensor as ``tensor_from_bytes`` decodes it."""
    if array.dtype != object:
        return np.ascontiguousarray(array).tobytes()
    return b"".join([_LENGTH.pack(len(element)) + element for element in array.ravel().tolist()])


def datatype_of(array: np.ndarray) -> str:
    """Name an array's dtype as the protocol does."""
    return _DATATYPES[array.dtype]


def tensor_to_json(array: np.ndarray) -> bytes:
    """Encode a tensor as JSON's flat list; NaN, Infinity and -Infinity stand bare in it, as Triton and Python's json write them."""
    flat = array.ravel()
    return b"[" + b",".join(_encode_chunk(flat[start : start + CHUNK]) for start in range(0, flat.size, CHUNK)) + b"]"


def _encode_chunk(chunk: np.ndarray) -> bytes:
    if chunk.dtype == object:
        return to_json([element.decode(errors="replace") for element in chunk])[1:-1]
    if chunk.dtype.kind == "f" and not np.isfinite(chunk).all():
        return json.dumps(chunk.tolist(), separators=(",", ":"))[1:-1].encode()
    return to_json(chunk.tolist())[1:-1]


def _object_array(strings: list[bytes], shape: Sequence[int]) -> np.ndarray:
    array = np.empty(len(strings), dtype=object)
    array[:] = strings
    return array.reshape(shape)


def _decode_strings(name: str, n: int, raw: bytes | memoryview) -> list[bytes]:
    strings: list[bytes] = []
    offset = 0
    while offset + 4 <= len(raw) and len(strings) < n:
        (length,) = _LENGTH.unpack_from(raw, offset)
        if offset + 4 + length > len(raw):
            break
        strings.append(bytes(raw[offset + 4 : offset + 4 + length]))
        offset += 4 + length
    if len(strings) != n or offset != len(raw):
        raise InvalidRequest(f"input {name} has {len(raw)} bytes, which are not {n} strings each behind its length in four bytes")
    return strings


def _flatten(name: str, values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise InvalidRequest(f"the data of input {name} is {quote(values)}: expected a list")
    while values and all(isinstance(row, list) for row in values):
        values = [element for row in values for element in row]
    flat: list[Any] = values
    return flat


def _as_bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    raise InvalidRequest(f"input {name} holds {quote(value)}, which is no text")
