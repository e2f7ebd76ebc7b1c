"""The application around a handler that does nothing: places, bodies, clients that go away, labels, HEAD."""

import asyncio
import json
import logging
from collections.abc import Awaitable
from typing import Any

import pytest

from recsys_batch.online import metrics
from recsys_batch.online.http.app import App
from recsys_batch.online.http.router import QueryNumber, QueryText, Request, Response, Route, Router, json_response
from recsys_batch.online.serving.admission import Admission
from tests.online.http.fakes import FakeProtocol, fake_scope, in_event_loop

LENGTH = {"content-length": "2"}


async def echo(request: Request) -> Response:
    return json_response({"method": request.method, **request.parameters, "body": request.body.decode()})


ROUTES = [
    Route("POST", "/rank", echo),
    Route("GET", "/users/{user_id}", echo, query=()),
    Route("GET", "/user", echo, query=(QueryText("user_id", "any"), QueryNumber("k", 10, 20, "items"))),
]


class Edge:
    def __init__(self, *, max_waiting: int = 2) -> None:
        self.admission = Admission(max_waiting)
        options: dict[str, Any] = {
            "max_body_bytes": 1000,
            "body_seconds": 60.0,
            "large_bodies": Admission(1),
            "admin_token": None,
            "client_token": None,
        }
        self.app = App(Router(ROUTES), self.admission, **options)
        self.counts = metrics.tally._counts = {}

    def begin(self, method: str, path: str, proto: FakeProtocol, headers: dict[str, str] = LENGTH) -> Awaitable[None]:
        return self.app.__rsgi__(fake_scope(method, path, headers), proto)

    async def call(self, method: str, path: str, body: bytes = b"{}") -> tuple[int, bytes]:
        proto = FakeProtocol([body])
        await self.begin(method, path, proto)
        ((status, _, answer),) = proto.answers
        return status, answer


@in_event_loop
async def test_senders_who_never_finish_take_no_place_in_the_queue() -> None:
    edge = Edge(max_waiting=2)
    slow = [asyncio.ensure_future(edge.begin("POST", "/rank", FakeProtocol(None))) for _ in range(64)]
    await asyncio.sleep(0)
    assert edge.admission.waiting == 0
    assert (await edge.call("POST", "/rank"))[0] == 200
    for task in slow:
        task.cancel()


@in_event_loop
async def test_a_request_that_finds_the_queue_full_when_its_body_is_there_is_refused_and_leaves_no_trace() -> None:
    edge = Edge(max_waiting=1)
    proto = FakeProtocol([b"{}"])
    answer = edge.begin("POST", "/rank", proto)
    edge.admission.enter()
    await answer
    assert proto.answers[0][0] == 503 and edge.admission.waiting == 1
    late = FakeProtocol([b"{}"])
    await edge.begin("POST", "/rank", late)
    assert late.answers[0][0] == 503 and not late.read_at_all


@in_event_loop
async def test_a_client_that_goes_away_while_sending_is_a_499_in_metrics_and_one_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    edge = Edge()
    with caplog.at_level(logging.DEBUG, "recsys_batch.online"):
        await edge.begin("POST", "/rank", FakeProtocol([b"{"], broken=True))
        await edge.begin("POST", "/rank", FakeProtocol([b"{"], broken=True), {})
    assert edge.counts == {("requests", "/rank", "499"): 2} and edge.admission.waiting == 0
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("DEBUG", None)] * 2


@in_event_loop
async def test_paths_and_methods_that_clients_make_up_are_two_labels() -> None:
    edge = Edge()
    for method, path in (("GET", "/a"), ("GET", "/b"), ("PUT", "/rank"), ("MADE-UP", "/rank")):
        assert (await edge.call(method, path))[0] in (404, 405)
    assert edge.counts == {("requests", "no such path", "404"): 2, ("requests", "no such method", "405"): 2}


@in_event_loop
async def test_head_is_answered_as_get_is_wherever_get_is() -> None:
    edge = Edge()
    assert await edge.call("HEAD", "/users/5") == await edge.call("GET", "/users/5")
    status, answer = await edge.call("HEAD", "/rank")
    assert status == 405 and b"takes POST, not HEAD" in answer


@pytest.mark.parametrize(
    ("path", "user_id"),
    [
        ("/users/a%41", "a%41"),  # as Granian decodes /users/a%2541
        ("/users/5 6", "5 6"),
        ("/user?user_id=a%2541", "a%41"),
        ("/user?user_id=a%2Fb%3F%26%23", "a/b?&#"),
        ("/user?user_id=", ""),
        ("/user?user_id=%C3%B6&k=3", "\u00f6"),
    ],
    ids=["percent", "space", "percent in the query", "slash", "empty", "beyond ASCII"],
)
@in_event_loop
async def test_an_id_is_decoded_once_and_any_id_can_be_asked_for(path: str, user_id: str) -> None:
    status, answer = await Edge().call("GET", path)
    assert status == 200 and json.loads(answer)["user_id"] == user_id


@pytest.mark.parametrize("path", ["/users/", "/users/a/", "/users//a", "/users/a/b"])
@in_event_loop
async def test_a_path_with_one_part_more_or_an_empty_one_is_nobodys(path: str) -> None:
    assert (await Edge().call("GET", path))[0] == 404


@pytest.mark.parametrize("path", ["/" + "x" * 100_000, "/user?" + "x" * 100_000 + "=1", "/user?user_id=1&k=" + "x" * 100_000])
@in_event_loop
async def test_what_an_error_repeats_of_an_address_is_short(path: str) -> None:
    status, answer = await Edge().call("GET", path)
    assert status in (400, 404) and len(answer) < 300
