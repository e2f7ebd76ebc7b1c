"""Routes whose bodies may be large, as app.py calls them."""

import asyncio
from typing import Any

from recsys_batch.online.http.app import App
from recsys_batch.online.http.router import Request, Response, Route, Router
from recsys_batch.online.serving.admission import Admission
from tests.online.http.fakes import FakeProtocol, fake_scope, in_event_loop


@in_event_loop
async def test_there_is_room_for_some_large_bodies_that_are_here_and_for_short_ones_always() -> None:
    going_on, calls = asyncio.Event(), []

    async def handle(request: Request) -> Response:
        calls.append(request)
        await going_on.wait()
        return Response(200, b"")

    route = Route("POST", "/large", handle, access="open", max_body_bytes=1000)
    bounds: dict[str, Any] = {"max_body_bytes": 100, "body_seconds": 60.0, "large_bodies": Admission(1000)}
    app = App(Router([route]), Admission(9), **bounds, admin_token=None, client_token=None)

    def call(body: bytes | None, n_bytes: int, says_length: bool = True) -> tuple[FakeProtocol, asyncio.Task[None]]:
        protocol = FakeProtocol(None if body is None else [body])
        headers = {"content-length": str(n_bytes)} if says_length else {}
        return protocol, asyncio.ensure_future(app.__rsgi__(fake_scope("POST", "/large", headers), protocol))  # type: ignore[arg-type]

    _, slow = call(None, 1000)  # announced, and not here
    first = [call(bytes(n_bytes), n_bytes) for n_bytes in (600, 100, 500, 400)]
    first += [call(bytes(n_bytes), n_bytes, says_length=False) for n_bytes in (10, 500)]
    await asyncio.sleep(0.01)
    assert calls[0].client_left == first[0][0].client_disconnect
    (status, headers, body), *_ = first[2][0].answers
    assert (status, headers["retry-after"]) == (503, "1") and b"600 bytes of requests wait" in body
    going_on.set()
    await asyncio.gather(*(task for _, task in first))
    last, task = call(bytes(1000), 1000, says_length=False)
    await task
    slow.cancel()
    assert [protocol.answers[0][0] for protocol in (*(protocol for protocol, _ in first), last)] == [200, 200, 503, 200, 200, 503, 200]
