"""Request bodies that a client compressed."""

from __future__ import annotations

import zlib

from recsys_batch.online.http.router import HttpError
from recsys_batch.online.oip.model_api import InvalidRequest

_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32


def decompress(body: bytes, encoding: str | None, most: int) -> bytes:
    """The body as it was before its Content-Encoding: gzip, deflate (as zlib, RFC 9110), identity or none.

    Args:
        most: bytes. No more are unpacked, whatever the body says.

    Raises:
        HttpError: 415, another encoding; 413, more bytes than that. InvalidRequest: not what it says it is.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        raise HttpError(415, f"content-encoding is {name[:40]!r}: expected gzip, deflate or none", ("accept-encoding", "gzip, deflate"))
    unpacking = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        found = unpacking.decompress(body, most + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not {name}: {error}") from None
    if len(found) > most:
        raise HttpError(413, f"the body has more than {most} bytes when unpacked, which is the most that is taken")
    if not unpacking.eof or unpacking.unused_data:
        raise InvalidRequest(f"the body is not {name}: it {'has bytes behind its end' if unpacking.eof else 'ends early'}")
    return found
