"""HTTP/1.1 connections: bytes to requests for the application, and its answers to bytes, in order, within times and bounds.

Made by listener.py. httptools (llhttp, node's parser) reads the bytes; all of this runs in the event loop's own thread, so that a request
costs no task, no future of another thread and no wake-up.
"""

import asyncio
import logging
import time
from collections import deque
from typing import Any, cast

import httptools

from recsys_batch.online.http.app import CLIENT_GONE_STATUS, App, Call
from recsys_batch.online.http.connection_bounds import ConnectionBounds, OnRefusal
from recsys_batch.online.http.headers import Headers
from recsys_batch.online.http.response_head import encode_head
from recsys_batch.online.http.router import ClientGone, HttpError, Response
from recsys_batch.online.serving.unfinished_reads import UnfinishedRead

MAX_HEAD_BYTES = 65_536
"""Of a request's target and header fields together."""
_MAX_SKIPPED_BYTES = 65_536
"""Of a refused request's body: what is longer is not read, and the connection closed."""
_CHUNK_OVERHEAD = 8
"""Bytes on the wire for one of a body in chunks, at most."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE, _KEEP_ALIVE = b"connection: close\r\n", b"connection: keep-alive\r\n"

logger = logging.getLogger("recsys_batch.online")


class HttpConnection(asyncio.Protocol):
    """Reads the requests of one connection and writes their answers, one after the other; those that come before their turn wait."""

    def __init__(self, app: App, bounds: ConnectionBounds) -> None:
        self._app, self._bounds = app, bounds
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._target, self._headers = b"", Headers()
        self._n_head_bytes, self._n_wire_bytes, self._is_in_head = 0, 0, False
        self._call: Call | None = None  # whose head is here, and whose body is not
        self._chunks: list[bytes] = []
        self._n_body_bytes = 0
        self._waiting: deque[tuple[Call, bytes]] = deque()  # here with their bodies, and not their turn
        self._in_hand: Call | None = None  # that the application answers
        self._is_starting = False
        self._is_paused = False  # nothing is read, as requests wait
        self._is_choked = False  # nothing is answered, as the client does not read
        self._is_deaf = False  # what still comes is of no matter
        self._has_ended = False  # the client sends no more
        self._left: asyncio.Future[None] | None = None
        self._head_read = UnfinishedRead(0.0, 0, OnRefusal(self._close))
        self._body_read: UnfinishedRead | None = None
        self._departure = UnfinishedRead(0.0, 0, OnRefusal(self._abort))

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        bounds = self._bounds
        if len(bounds.connections) >= bounds.max_connections and not bounds.heads.refuse_oldest("too many connections"):
            self._transport.abort()
            return
        bounds.connections.add(self)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        was_in_head = self._is_in_head
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            logger.error("a connection failed", exc_info=error.__cause__ or error.__context__ or error)
            self._abort()
            return
        except httptools.HttpParserError as error:
            self._end_with(HttpError(400, f"this is no HTTP/1.1 request: {error}"))
        if (self._call is not None or self._is_in_head) and not self._is_deaf:
            self._bound_unfinished(len(data), was_in_head)

    def eof_received(self) -> bool:
        """The client sends no more; it may still listen."""
        self._has_ended = True
        if self._call is not None and not self._is_deaf:
            self._call.refuse(ClientGone("the connection ended before the body did"), CLIENT_GONE_STATUS)
            self._end_early()
        self._tell_left()
        is_plain = self._transport is not None and self._transport.can_write_eof()
        return is_plain and (self._in_hand is not None or bool(self._waiting))  # False closes it

    def pause_writing(self) -> None:
        """A client that does not read its answers gets no more, and has to read those in time."""
        self._is_choked = True
        self._pace()
        self._depart()

    def resume_writing(self) -> None:
        self._is_choked = False
        if not self._is_deaf:
            self._bounds.departures.remove(self._departure)
            self._start_waiting()

    def connection_lost(self, error: Exception | None) -> None:
        bounds = self._bounds
        bounds.connections.discard(self)
        bounds.heads.remove(self._head_read)
        bounds.departures.remove(self._departure)
        self._forget_body()
        if self._call is not None and not self._is_deaf:
            self._call.count(CLIENT_GONE_STATUS)
        self._drop_waiting()
        self._is_deaf, self._transport, self._parser, self._call = True, None, None, None
        self._tell_left()

    # What the parser says.

    def on_message_begin(self) -> None:
        if self._call is None:  # as everywhere below: behind a declined upgrade the parser sees a head again
            self._is_in_head, self._n_head_bytes, self._n_wire_bytes = True, 0, 0

    def on_url(self, part: bytes) -> None:
        if self._is_in_head:
            self._target += part
            self._n_head_bytes += len(part)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # behind a body they are trailers, which nobody reads
            self._headers.add(name, value)
            self._n_head_bytes += len(name) + len(value)

    def on_headers_complete(self) -> None:
        if self._is_deaf or self._call is not None:
            return
        self._is_in_head = False
        parser, headers = self._parser, self._headers
        call = self._call = self._app.receive(parser.get_method().decode("latin-1"), self._target, headers, time.perf_counter())
        self._bounds.heads.remove(self._head_read)
        call.is_http_1_0, call.stays = parser.get_http_version() == "1.0", parser.should_keep_alive()
        if self._n_head_bytes > MAX_HEAD_BYTES:
            call.refuse(_HEAD_TOO_LONG)
        elif b"host" not in headers and not call.is_http_1_0:
            call.refuse(HttpError(400, "the request has no host header, which HTTP/1.1 asks for"))
        if headers.expects_continue:
            if call.refusal is not None:
                self._end_early()  # its body may come or not
            elif self._in_hand is None and self._transport is not None:
                self._transport.write(_CONTINUE)
        elif call.refusal is not None and (call.length or 0) > _MAX_SKIPPED_BYTES:
            self._end_early()

    def on_body(self, chunk: bytes) -> None:
        call = self._call
        if call is None or self._is_deaf:
            return
        self._n_body_bytes += len(chunk)
        if call.refusal is None:
            if self._n_body_bytes > call.max_body_bytes:
                call.refuse(HttpError(413, f"the body has more than {call.max_body_bytes} bytes, which is the most that is taken"))
                self._end_early()
            else:
                self._chunks.append(chunk)
        elif self._n_body_bytes > _MAX_SKIPPED_BYTES:
            self._end_early()

    def on_message_complete(self) -> None:
        if self._call is not None and not self._is_deaf and not self._is_body_hidden():
            self._enqueue()

    def _feed(self, data: bytes) -> None:
        """Have bytes parsed. Raises httptools.HttpParserError: they are no request."""
        while data and not self._is_deaf:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:  # is not taken
                data = data[upgrade.args[0] :] if upgrade.args[0] else b""
                if self._call is not None:
                    self._parser = httptools.HttpRequestParser(self)
                    data = self._frame_body() + data
            else:
                return

    def _is_body_hidden(self) -> bool:
        """Whether the parser takes a request for whole though its body follows, as it does where an upgrade is asked for."""
        return bool(self._parser.should_upgrade()) and bool((self._call and self._call.length) or b"transfer-encoding" in self._headers)

    def _frame_body(self) -> bytes:
        """Make a head for a new parser that has only what tells where the body of the request in hand ends."""
        assert self._call is not None
        length = self._call.length
        return b"POST / HTTP/1.1\r\n%s\r\n\r\n" % (b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length)

    # Requests in their order.

    def _enqueue(self) -> None:
        """Put the request that is being read behind those that wait."""
        call, chunks = self._call, self._chunks
        assert call is not None
        self._call, self._chunks, self._n_body_bytes = None, [], 0
        self._target, self._headers = b"", Headers()
        self._forget_body()
        self._waiting.append((call, chunks[0] if len(chunks) == 1 else b"".join(chunks)))
        self._start_waiting()

    def _start_waiting(self) -> None:
        if self._is_starting:
            return  # the call around this one goes on
        self._is_starting = True
        while self._waiting and self._in_hand is None and not self._is_choked:
            call, body = self._waiting.popleft()
            self._in_hand = call
            if call.refusal is not None:
                self._send(call, call.refusal)
            else:
                self._app.answer(call, body, self._wait_until_left, self._send)
        self._is_starting = False
        self._pace()

    def _send(self, call: Call, response: Response) -> None:
        """Write an answer, and go on with the next request."""
        transport = self._transport
        if self._in_hand is not call or transport is None:  # the client has left
            call.count(CLIENT_GONE_STATUS)
            return
        self._in_hand = None
        is_last = (self._is_deaf or self._has_ended) and not self._waiting
        stays = call.stays and not is_last and not self._bounds.is_ending
        is_bare = call.method == "HEAD" or response.status in (204, 304)
        field = (_KEEP_ALIVE if call.is_http_1_0 else b"") if stays else _CLOSE
        head = encode_head(response.status, response.headers, len(response.body), field)
        transport.write(head if is_bare else head + response.body)
        call.count(response.status)
        if not stays:
            self._leave()
        elif not self._is_starting:
            self._start_waiting()

    def _pace(self) -> None:
        """Read on, unless requests wait already; an idle connection waits for its next head."""
        transport = self._transport
        if transport is None or self._is_deaf:
            return
        if self._waiting or self._is_choked:
            if not self._is_paused:
                self._is_paused = True
                transport.pause_reading()
            return
        if self._is_paused:
            self._is_paused = False
            transport.resume_reading()
        if self._in_hand is None and self._call is None:
            self._await_head()

    # Times, bounds and ends.

    def _await_head(self) -> None:
        self._bounds.heads.remove(self._head_read)
        self._head_read.arrived = time.perf_counter()
        self._bounds.heads.add(self._head_read)

    def _bound_unfinished(self, n_new_bytes: int, was_in_head: bool) -> None:
        """Count what a request has that is still unfinished after so many more bytes."""
        call = self._call
        if self._is_in_head:
            self._n_wire_bytes += n_new_bytes if was_in_head else 0
            if max(self._n_head_bytes, self._n_wire_bytes) > MAX_HEAD_BYTES:
                self._end_with(_HEAD_TOO_LONG)
        if call is None:
            return
        self._n_wire_bytes += n_new_bytes
        if call.length is None and self._n_wire_bytes > _CHUNK_OVERHEAD * call.max_body_bytes + 2 * MAX_HEAD_BYTES:
            call.refuse(HttpError(400, "the body's chunks are too small, or its trailers too long"))
            self._end_early()
        elif self._body_read is None:
            self._body_read = UnfinishedRead(call.arrived, call.length or self._n_body_bytes, OnRefusal(self._refuse_body))
            self._bounds.bodies.add(self._body_read)
        elif call.length is None:
            self._bounds.bodies.grow(self._body_read, self._n_body_bytes - self._body_read.n_bytes)

    def _refuse_body(self) -> None:
        assert self._body_read is not None
        if self._call is not None:
            self._call.refuse(HttpError(408, self._body_read.refusal))
            self._end_early()

    def _forget_body(self) -> None:
        if self._body_read is not None:
            self._bounds.bodies.remove(self._body_read)
            self._body_read = None

    def _end_with(self, error: HttpError) -> None:
        """Answer bytes that are no request, once it is their turn, and close the connection."""
        if self._call is None:
            self._bounds.heads.remove(self._head_read)
            self._call = Call("GET", self._headers, time.perf_counter(), None, label="no request")
        self._call.refuse(error)
        self._end_early()

    def _end_early(self) -> None:
        """Read no more of a request that is refused, nor any behind it, and close the connection with its answer."""
        if not self._is_deaf:
            self._is_deaf = True
            assert self._call is not None
            self._call.stays = False
            self._enqueue()

    def _leave(self) -> None:
        """Close after an answer: at once where the client has nothing more to send, or else once it has stopped, so that it can read."""
        self._drop_waiting()
        if self._is_deaf and not self._has_ended and self._transport is not None and self._transport.can_write_eof():
            self._transport.resume_reading()
            self._transport.write_eof()
        else:
            self._close()
        self._is_deaf = True
        self._depart()

    def _drop_waiting(self) -> None:
        for call, _ in self._waiting:
            call.count(CLIENT_GONE_STATUS)
        self._waiting.clear()

    def _close(self) -> None:
        self._is_deaf = True
        if self._transport is not None:
            self._transport.close()
            self._depart()

    def _depart(self) -> None:
        """Give the client its time to read what has been written, and to close."""
        self._bounds.departures.remove(self._departure)
        self._departure.arrived = time.perf_counter()
        self._bounds.departures.add(self._departure)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def end(self) -> None:
        """Close the connection, now where nothing is to be answered, or else after that."""
        if self._in_hand is None and not self._waiting and self._call is None:
            self._close()

    def _tell_left(self) -> None:
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    async def _wait_until_left(self) -> None:
        """Return once the client has left."""
        if self._transport is None or self._has_ended:
            return
        if self._left is None or self._left.done():
            self._left = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._left)


_HEAD_TOO_LONG = HttpError(431, f"the request's target and headers have more than {MAX_HEAD_BYTES} bytes")
