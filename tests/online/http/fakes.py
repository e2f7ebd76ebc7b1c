"""A request as Granian hands it to an application, and what the application does with it."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]


def in_event_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test that is a coroutine in an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        async def whole() -> None:
            await test(**fixtures)

        asyncio.run(whole())

    return run


def fake_scope(method: str, path: str, headers: Mapping[str, str], *, http_version: str = "1.1") -> SimpleNamespace:
    target, _, query = path.partition("?")
    return SimpleNamespace(method=method, path=target, query_string=query, headers=headers, http_version=http_version)


class FakeProtocol:
    """Gives a body, whole or in chunks; None never comes, and an error is a connection that ended there.

    As Granian 2.8.9: the end is an empty chunk, and a connection that ends early gives one more.
    """

    def __init__(self, chunks: list[bytes] | None, *, broken: bool = False) -> None:
        self._chunks, self._broken = chunks, broken
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.read_at_all = False

    def __call__(self) -> asyncio.Future[bytes]:
        self.read_at_all = True
        future = asyncio.get_running_loop().create_future()
        if self._broken:
            future.set_exception(ProtocolClosed("RSGI transport is closed"))
        elif self._chunks is not None:
            future.set_result(b"".join(self._chunks))
        return future

    def __aiter__(self) -> "FakeProtocol":
        self.read_at_all = True
        if self._chunks is not None:
            self._chunks = [*self._chunks, *([b"", b""] if self._broken else [b""])]
        return self

    def __anext__(self) -> asyncio.Future[bytes]:
        if self._chunks == []:
            raise StopAsyncIteration
        future = asyncio.get_running_loop().create_future()
        if self._chunks:
            future.set_result(self._chunks.pop(0))
        return future

    async def client_disconnect(self) -> None:
        await asyncio.get_running_loop().create_future()

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.answers.append((status, dict(headers), body))
