"""Bodies unpacked: gzip and deflate, within bounds of one request and of all that are worked on."""

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from recsys_batch.errors import quote
from recsys_batch.online.http.router import HttpError, Request
from recsys_batch.online.oip.model_api import InvalidRequest
from recsys_batch.online.oip.offload import run_by_size
from recsys_batch.online.serving.admission import Admission

MAX_BODY_BYTES = 16 * 2**20
"""200 candidates of 64 dimensions are 70 kB, and a request may bring a few hundred users' worth."""
MAX_BYTES_IN_FLIGHT = 4 * MAX_BODY_BYTES
"""Of all requests of a process together."""
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32


@asynccontextmanager
async def unpack_body(request: Request, large_bodies: Admission) -> AsyncIterator[bytes]:
    """Unpack a request's body and hold room for it during the ``with`` block. Raises as ``decompress``, and Overloaded: there is none."""
    encoding = request.headers.get("content-encoding")
    if encoding is None:
        yield request.body
        return
    body = await run_by_size(MAX_BODY_BYTES, decompress, request.body, encoding, MAX_BODY_BYTES)
    with large_bodies.hold(len(body), "bytes of requests"):
        yield body


def decompress(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """Undo the Content-Encoding of a body: gzip, deflate (as zlib, RFC 9110), identity or none. No more than ``max_bytes`` are unpacked.

    Raises:
        HttpError: 415, another encoding; 413, more bytes than that. InvalidRequest: not what it says it is.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        raise HttpError(415, f"content-encoding is {quote(name)}: expected gzip, deflate or none", ("accept-encoding", "gzip, deflate"))
    decompressor = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        unpacked = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not {name}: {error}") from None
    if len(unpacked) > max_bytes:
        raise HttpError(413, f"the body has more than {max_bytes} bytes when unpacked, which is the most that is taken")
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidRequest(f"the body is not {name}: it {'has bytes behind its end' if decompressor.eof else 'ends early'}")
    return unpacked
