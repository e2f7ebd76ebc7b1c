"""Decompression of request bodies, within a bound. Called by rest.py."""

import zlib

from recsys_batch.online.http.router import HttpError
from recsys_batch.online.oip.model_api import InvalidRequest

_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32


def decompress(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """Undo the Content-Encoding of a body: gzip, deflate (as zlib, RFC 9110), identity or none.

    Args:
        max_bytes: no more are unpacked, whatever the body says.

    Raises:
        HttpError: 415, another encoding; 413, more bytes than that. InvalidRequest: not what it says it is.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        raise HttpError(415, f"content-encoding is {name[:40]!r}: expected gzip, deflate or none", ("accept-encoding", "gzip, deflate"))
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
