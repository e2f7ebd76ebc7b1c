"""Bodies of requests, read for one worker: each within a time, and all that are unfinished within a bound in which the oldest gives way.

Used by app.py. A request takes its place in the queue once its body is here, so senders who never finish keep nobody out: past a bound
it is the oldest unfinished body that is refused, not the one that comes. One timer looks after all of them.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from recsys_batch.online.http.router import HttpError

MAX_UNFINISHED = 1024
MAX_UNFINISHED_BYTES = 64 * 2**20
"""Of one worker; a body counts with the length that it announces, or else with what has come."""
_CLOSE = ("connection", "close")


class ClientGone(HttpError):
    """A connection ended, or broke the protocol, before the body was whole; a client that still listens is told so."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message, _CLOSE)


@dataclass(slots=True, eq=False)
class _UnfinishedBody:
    """A body that is being read; ``awaited`` is what Granian answers with the next bytes."""

    arrived: float
    n_bytes: int
    awaited: Any = None
    refusal: str = ""


class BodyReader:
    """Reads the bodies of one event loop.

    Args:
        seconds: that a body may take from the arrival of its request.
        max_unfinished, max_unfinished_bytes: of all bodies that are being read.
    """

    def __init__(self, seconds: float, max_unfinished: int = MAX_UNFINISHED, max_unfinished_bytes: int = MAX_UNFINISHED_BYTES) -> None:
        self._seconds, self._max_unfinished, self._max_bytes = seconds, max_unfinished, max_unfinished_bytes
        self._unfinished: dict[_UnfinishedBody, None] = {}
        self._n_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

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
        body = _UnfinishedBody(arrived, int(length or 0))
        self._add(body)
        try:
            if length is not None:
                body.awaited = proto()
                return bytes(await body.awaited)
            return await self._read_chunks(body, proto, bound, is_framed=http_version != "2")
        except ProtocolClosed:
            raise ClientGone("the connection ended before the body did") from None
        except asyncio.CancelledError:
            if not body.refusal:
                raise
            raise HttpError(408, body.refusal, _CLOSE) from None
        finally:
            self._remove(body)

    async def _read_chunks(self, body: _UnfinishedBody, proto: Any, bound: int, *, is_framed: bool) -> bytes:
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
            self._grow(body, len(chunk))
        if body.n_bytes and not is_framed:
            raise HttpError(411, "over HTTP/2 a body needs a content-length")
        if n_empty > 1:
            raise ClientGone("the body ends before its last chunk, or has trailers, which are not taken")
        return bytes(received)

    def _add(self, body: _UnfinishedBody) -> None:
        self._unfinished[body] = None
        self._n_bytes += body.n_bytes
        if self._n_bytes > self._max_bytes or len(self._unfinished) > self._max_unfinished:
            self._make_room(body)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds / 4, self._refuse_late)

    def _grow(self, body: _UnfinishedBody, n_bytes: int) -> None:
        body.n_bytes += n_bytes
        self._n_bytes += n_bytes
        self._make_room(body)

    def _make_room(self, body: _UnfinishedBody) -> None:
        """Refuse the oldest bodies while there are too many, or too many bytes; but not this one."""
        while self._n_bytes > self._max_bytes or len(self._unfinished) > self._max_unfinished:
            oldest = next(iter(self._unfinished))
            if oldest is body:
                break
            self._refuse(oldest, "the body did not arrive, and too many others wait for theirs")

    def _remove(self, body: _UnfinishedBody) -> None:
        if self._unfinished.pop(body, body) is None:
            self._n_bytes -= body.n_bytes

    def _refuse(self, body: _UnfinishedBody, refusal: str) -> None:
        self._remove(body)
        body.refusal = refusal
        body.awaited.cancel()

    def _refuse_late(self) -> None:
        late = time.perf_counter() - self._seconds
        while self._unfinished and (oldest := next(iter(self._unfinished))).arrived <= late:
            self._refuse(oldest, f"the body did not arrive within {self._seconds:g} s")
        self._timer = asyncio.get_running_loop().call_later(self._seconds / 4, self._refuse_late) if self._unfinished else None


def _next_chunk(stream: Any) -> Any:
    """Ask for the next chunk of Granian's stream; None past its end, which it tells before anything is awaited."""
    try:
        return stream.__anext__()
    except StopAsyncIteration:
        return None
