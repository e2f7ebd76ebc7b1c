"""Tensors as bytes: little-endian, row by row; BYTES elements each behind their length in four bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from recsys_batch.online.oip.model_api import InvalidRequest

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(object),
}
_LENGTH = struct.Struct("<I")
_MOST = 2**31


def count_elements(name: str, datatype: str, shape: Sequence[Any]) -> int:
    """Elements of a tensor.

    Raises:
        InvalidRequest: an unknown datatype, or a shape that no tensor of this size has.
    """
    if datatype not in DTYPES:
        raise InvalidRequest(f"input {name} has datatype {datatype!r}; known: {', '.join(DTYPES)}")
    if len(shape) > 8 or not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < _MOST for size in shape):
        raise InvalidRequest(f"input {name} has shape {str(list(shape))[:100]}: expected up to 8 sizes from 0")
    if math.prod(max(size, 1) for size in shape) >= _MOST:  # numpy refuses such an array even where a size of 0 leaves it empty
        raise InvalidRequest(f"input {name} has shape {list(shape)}: that is more than a request holds")
    return math.prod(shape)


def tensor_from_bytes(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> np.ndarray:
    """The array; BYTES as objects.

    Raises:
        InvalidRequest: another number of bytes than shape and datatype need.
    """
    n = count_elements(name, datatype, shape)
    if datatype == "BYTES":
        return _strings(name, n, raw).reshape(shape)
    dtype = DTYPES[datatype]
    if len(raw) != n * dtype.itemsize:
        raise InvalidRequest(f"input {name} has {len(raw)} bytes, expected {n * dtype.itemsize} for {datatype} {list(shape)}")
    return np.frombuffer(raw, dtype).reshape(shape)


def tensor_from_values(name: str, datatype: str, shape: Sequence[int], values: Any) -> np.ndarray:
    """From JSON's numbers, flat or nested, or from typed contents.

    Raises:
        InvalidRequest: not so many, or not of that kind.
    """
    n = count_elements(name, datatype, shape)
    flat = _flat(name, values, n)
    if len(flat) != n:
        raise InvalidRequest(f"input {name} has {len(flat)} elements, expected {n} for shape {list(shape)}")
    if datatype == "BYTES":
        array = np.empty(n, dtype=object)
        array[:] = [_as_bytes(name, one) for one in flat]
        return array.reshape(shape)
    wanted = {bool} if datatype == "BOOL" else ({int, float} if datatype.startswith("FP") else {int})
    if set(map(type, flat)) - wanted:
        odd = next(one for one in flat if type(one) not in wanted)
        raise InvalidRequest(f"input {name} holds {str(odd)[:40]!r}, which is no {datatype}")
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=DTYPES[datatype]).reshape(shape)
    except OverflowError:
        raise InvalidRequest(f"input {name} holds a number beyond {datatype}") from None


def tensor_to_bytes(array: np.ndarray) -> bytes:
    """The inverse of ``from_bytes``."""
    if array.dtype != object:
        return np.ascontiguousarray(array).tobytes()
    return b"".join(_LENGTH.pack(len(one)) + one for one in array.ravel())


def datatype_of(array: np.ndarray) -> str:
    """The protocol's name of an array's dtype."""
    return next(name for name, dtype in DTYPES.items() if dtype == array.dtype)


def tensor_to_values(array: np.ndarray) -> list[Any]:
    """Flat, for JSON, which has no infinities: they become the largest number of the datatype."""
    if array.dtype == object:
        return [one.decode(errors="replace") for one in array.ravel().tolist()]
    if array.dtype.kind == "f":
        largest = float(np.finfo(array.dtype).max)
        array = np.nan_to_num(array, nan=0.0, posinf=largest, neginf=-largest)
    values: list[Any] = array.ravel().tolist()
    return values


def _strings(name: str, n: int, raw: bytes) -> np.ndarray:
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) < n:
        if at + 4 > len(raw):
            break
        (length,) = _LENGTH.unpack_from(raw, at)
        if at + 4 + length > len(raw):
            break
        found.append(bytes(raw[at + 4 : at + 4 + length]))
        at += 4 + length
    if len(found) != n or at != len(raw):
        raise InvalidRequest(f"input {name} has {len(raw)} bytes, which are not {n} strings each behind its length in four bytes")
    array = np.empty(n, dtype=object)
    array[:] = found
    return array


def _flat(name: str, values: Any, n: int) -> list[Any]:
    if not isinstance(values, list):
        raise InvalidRequest(f"the data of input {name} is {str(values)[:40]!r}: expected a list")
    while values and all(isinstance(one, list) for one in values):
        values = [inner for one in values for inner in one]
    flat: list[Any] = values
    return flat


def _as_bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    raise InvalidRequest(f"input {name} holds {str(value)[:40]!r}, which is no text")
