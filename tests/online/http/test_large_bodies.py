"""Routes whose bodies may be large, as app.py calls them."""

import asyncio
from types import SimpleNamespace
from typing import Any

from recsys_batch.online.http.app import App
from recsys_batch.online.http.router import Request, Response, Route, Router
from recsys_batch.online.serving.admission import Admission


class Protocol:
    """What Granian gives to the application."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.answer: tuple[int, dict[str, str], bytes] | None = None

    async def __call__(self) -> bytes:
        return self._body

    async def __aiter__(self) -> Any:
        yield self._body

    async def client_disconnect(self) -> None:
        return None

    def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
        self.answer = status, dict(headers), body


def test_there_is_room_for_some_large_bodies_and_for_short_ones_always() -> None:
    async def ask() -> list[int]:
        going_on, calls = asyncio.Event(), []

        async def handle(request: Request) -> Response:
            calls.append(request)
            await going_on.wait()
            return Response(200, b"")

        route = Route("POST", "/large", handle, access="open", max_body_bytes=1000)
        app = App(Router([route]), Admission(9), max_body_bytes=100, large_bodies=Admission(1000), admin_token=None, client_token=None)

        def call(n_bytes: int, says_length: bool = True) -> tuple[Protocol, Any]:
            protocol = Protocol(bytes(n_bytes))
            headers = {"content-length": str(n_bytes)} if says_length else {}
            scope = SimpleNamespace(method="POST", path="/large", query_string="", headers=headers)
            return protocol, asyncio.ensure_future(app.__rsgi__(scope, protocol))

        first = [call(n_bytes) for n_bytes in (600, 100, 500, 400)] + [call(10, says_length=False)]
        await asyncio.sleep(0)
        assert calls[0].client_left == first[0][0].client_disconnect
        refused = first[2][0].answer
        assert refused is not None and refused[1]["retry-after"] == "1" and b"600 bytes of requests wait" in refused[2]
        going_on.set()
        await asyncio.gather(*(task for _, task in first))
        last, task = call(1000, says_length=False)
        await task
        return [protocol.answer[0] for protocol in [*(protocol for protocol, _ in first), last] if protocol.answer is not None]

    assert asyncio.run(ask()) == [200, 200, 503, 200, 503, 200]
