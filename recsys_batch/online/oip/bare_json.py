"""JSON in which NaN, Infinity and -Infinity may stand bare, as Python's json, Triton and TensorFlow Serving read it.

Used by infer_json.py and tfserving. Bodies are bounded here: decoding keeps the interpreter's lock, 4 ms for each MiB of numbers, in
whichever thread it runs.
"""

import json
from typing import Any

from recsys_batch.online.api.decode import decode_json
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.http.router import HttpError

MAX_JSON_BYTES = 4 * 2**20
_CONSTANTS = (b"NaN", b"Infinity")


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
        return json.loads(body.decode(), parse_float=_parse_float)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _parse_float(text: str) -> float:
    """Parse a number; in Python, as other threads get the interpreter's lock between two calls."""
    return float(text)
