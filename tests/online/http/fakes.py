"""Requests to an application without a wire, and one connection without a network."""

import asyncio
import functools
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from recsys_batch.online.http.app import App
from recsys_batch.online.http.connection import HttpConnection
from recsys_batch.online.http.connection_bounds import ConnectionBounds
from recsys_batch.online.http.headers import Headers
from recsys_batch.online.http.router import Response


def in_event_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test that is a coroutine in an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        async def whole() -> None:
            await test(**fixtures)

        asyncio.run(whole())

    return run


async def ask(app: App, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
    """Ask an application as a connection does: with the head, and with the body unless the head is refused."""
    fields = Headers()
    for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
        fields.add(name.encode(), value.encode())
    call = app.receive(method, target.encode(), fields, time.perf_counter())
    answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    if call.refusal is None:
        app.answer(call, body, stay, lambda _, response: answered.set_result(response))
    response = call.refusal or await answered
    call.count(response.status)
    return response


async def stay() -> None:
    """A client that never leaves."""
    await asyncio.get_running_loop().create_future()


class FakeTransport(asyncio.Transport):
    """The other end of a connection: what was written to it, and whether it is read, closed or aborted."""

    def __init__(self, *, can_half_close: bool = True) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_reading, self.is_half_closed, self.is_closed, self.is_aborted = True, False, False, False
        self._can_half_close = can_half_close

    def write(self, data: Any) -> None:
        assert not self.is_half_closed and not self.is_closed, "written after the end"
        self.written += data

    def can_write_eof(self) -> bool:
        return self._can_half_close

    def write_eof(self) -> None:
        self.is_half_closed = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True


class Client:
    """A client of one connection of an application."""

    def __init__(self, app: App, bounds: ConnectionBounds | None = None, *, can_half_close: bool = True) -> None:
        self.transport = FakeTransport(can_half_close=can_half_close)
        self.connection = HttpConnection(app, bounds or ConnectionBounds(60.0, 100))
        self.connection.connection_made(self.transport)

    def send(self, *parts: bytes) -> None:
        """Send bytes; they arrive part by part."""
        for part in parts:
            self.connection.data_received(part)

    def end(self) -> None:
        """Send no more; where the connection is not kept for answers, it is lost."""
        if not self.connection.eof_received():
            self.transport.close()
            self.lose()

    def lose(self) -> None:
        self.connection.connection_lost(None)

    @property
    def received(self) -> bytes:
        return bytes(self.transport.written)

    @property
    def statuses(self) -> list[int]:
        """Of all answers so far."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", self.received)]


async def settle() -> None:
    """Let the loop do all that is ready."""
    for _ in range(5):
        await asyncio.sleep(0)
