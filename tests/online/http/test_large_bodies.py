"""Routes whose bodies may be large, as app.py calls them."""

import asyncio
from typing import Any

from recsys_batch.online.http.app import App
from recsys_batch.online.http.headers import Headers
from recsys_batch.online.http.router import Request, Response, Route, Router
from recsys_batch.online.serving.admission import Admission
from tests.online.http.fakes import ask, in_event_loop, settle


@in_event_loop
async def test_there_is_room_for_some_large_bodies_that_are_here_and_for_short_ones_always() -> None:
    going_on, calls = asyncio.Event(), []

    async def handle(request: Request) -> Response:
        calls.append(request)
        await going_on.wait()
        return Response(200, b"")

    route = Route("POST", "/large", handle, access="open", max_body_bytes=1000)
    bounds: dict[str, Any] = {"max_body_bytes": 100, "large_bodies": Admission(1000)}
    app = App(Router([route]), Admission(9), **bounds, admin_token=None, client_token=None)

    def call(n_bytes: int) -> asyncio.Task[Response]:
        return asyncio.ensure_future(ask(app, "POST", "/large", bytes(n_bytes)))

    announced = Headers()
    announced.add(b"content-length", b"1000")
    assert app.receive("POST", b"/large", announced, 0.0).refusal is None  # announced, and not here
    first = [call(n_bytes) for n_bytes in (600, 100, 500, 400, 10, 500)]
    await settle()
    assert calls[0].client_left is not None
    refused = await first[2]
    assert (refused.status, dict(refused.headers)["retry-after"]) == (503, "1") and b"600 bytes of requests wait" in refused.body
    going_on.set()
    statuses = [response.status for response in await asyncio.gather(*first, call(1000))]
    assert statuses == [200, 200, 503, 200, 200, 503, 200]
