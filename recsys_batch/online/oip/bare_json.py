"""JSON in which NaN, Infinity and -Infinity may stand bare, as Python's json, Triton and TensorFlow Serving read it.

Used by infer_json.py and tfserving. Bodies are bounded here: decoding keeps the interpreter's lock, 4 ms for each MiB of numbers, in
whichever thread it runs. What else is JSON does not depend on whether one of these words stands somewhere: Python's json would take half
of a surrogate pair, which no answer can repeat, and 1e400 for infinity.
"""

import json
import math
from typing import Any

from recsys_batch.errors import shorten
from recsys_batch.online.api.decode import decode_json
from recsys_batch.online.api.encode import to_json
from recsys_batch.online.api.messages import MAX_REASON_LENGTH, BadRequest
from recsys_batch.online.http.router import HttpError

MAX_JSON_BYTES = 4 * 2**20
_CONSTANTS = (b"NaN", b"Infinity")
_SURROGATES = (b"\\ud", b"\\uD")


def decode_bare_json(body: bytes) -> Any:
    """Decode a body whose values the caller checks.

    Raises:
        BadRequest: not JSON. HttpError: 413, more bytes than are taken.
    """
    if len(body) > MAX_JSON_BYTES:
        advice = "send fewer rows, or, by /v2, tensors as bytes behind it"
        raise HttpError(413, f"the JSON has {len(body)} bytes, at most {MAX_JSON_BYTES} are taken: {advice}")
    try:
        return decode_json(body)
    except BadRequest:
        if not any(constant in body for constant in _CONSTANTS):
            raise
    try:
        value = json.loads(body.decode(), parse_float=_parse_float)
        if any(escape in body for escape in _SURROGATES):
            to_json(value)  # raises where there is half of a pair
        return value
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {shorten(str(error), MAX_REASON_LENGTH)}") from None


def _parse_float(text: str) -> float:
    """Parse a number; in Python, as other threads get the interpreter's lock between two calls. Raises ValueError: it is out of range."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{shorten(text, 60)} is out of range")
    return number
