"""Bodies of requests, read for one worker: each within a time, and all that are unfinished within a bound. Used by app.py."""

import asyncio
from typing import Any

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from recsys_batch.online.http.router import HttpError
from recsys_batch.online.serving.unfinished_reads import UnfinishedRead, UnfinishedReads

MAX_UNFINISHED = 1024
MAX_UNFINISHED_BYTES = 64 * 2**20
"""Of one worker; a body counts with the length that it announces, or else with what has come."""
_CLOSE = ("connection", "close")


class ClientGone(HttpError):
    """A connection ended, or broke the protocol, before the body was whole; a client that still listens is told so."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message, _CLOSE)


class BodyReader:
    """Reads the bodies of one event loop.

    Args:
        seconds: that a body may take from the arrival of its request.
        max_unfinished, max_unfinished_bytes: of all bodies that are being read.
    """

    def __init__(self, seconds: float, max_unfinished: int = MAX_UNFINISHED, max_unfinished_bytes: int = MAX_UNFINISHED_BYTES) -> None:
        self._unfinished = UnfinishedReads("body", seconds, max_unfinished, max_unfinished_bytes)

    async def read(self, headers: Any, http_version: str, proto: Any, bound: int, arrived: float) -> bytes:
        """Read a body, up to the bound; what says that it is longer is not read at all.

        Args:
            arrived: time.perf_counter() when its request did.

        Raises:
            HttpError: 413, more bytes than that; 408, too slow; 411, HTTP/2 without a length, where the end cannot be told from a break.
            ClientGone: the connection ended before the body did.
        """
        length = headers.get("content-length")
        if length is not None and int(length) > bound:  # digits: Granian refuses others
            raise HttpError(413, f"the body has {length} bytes, at most {bound} are taken")
        body = UnfinishedRead(arrived, int(length or 0))
        self._unfinished.add(body)
        try:
            if length is not None:
                body.awaited = whole = proto()
                return bytes(await whole)
            return await self._read_chunks(body, proto, bound, is_framed=http_version != "2")
        except ProtocolClosed:
            raise ClientGone("the connection ended before the body did") from None
        except asyncio.CancelledError:
            if not body.refusal:
                raise
            raise HttpError(408, body.refusal, _CLOSE) from None
        finally:
            self._unfinished.remove(body)

    async def _read_chunks(self, body: UnfinishedRead, proto: Any, bound: int, *, is_framed: bool) -> bytes:
        """Read a body without a length.

        Granian gives an empty chunk for the end, and for a broken connection another one before it (2.8.9); trailers look the same.
        """
        received, n_empty = bytearray(), 0
        stream = proto.__aiter__()
        while (awaited := _next_chunk(stream)) is not None:
            body.awaited = awaited
            chunk = await awaited
            if body.refusal:
                raise HttpError(408, body.refusal, _CLOSE)
            if body.n_bytes + len(chunk) > bound:
                raise HttpError(413, f"the body has more than {bound} bytes, which is the most that is taken", _CLOSE)
            n_empty += not chunk
            received += chunk
            self._unfinished.grow(body, len(chunk))
        if body.n_bytes and not is_framed:
            raise HttpError(411, "over HTTP/2 a body needs a content-length")
        if n_empty > 1:
            raise ClientGone("the body ends before its last chunk, or has trailers, which are not taken")
        return bytes(received)


def _next_chunk(stream: Any) -> Any:
    """Ask for the next chunk of Granian's stream; None past its end, which it tells before anything is awaited."""
    try:
        return stream.__anext__()
    except StopAsyncIteration:
        return None
