"""The application around a handler that does nothing: places, labels, HEAD, ids, errors."""

import json
from typing import Any

import pytest

from recsys_batch.online import metrics
from recsys_batch.online.http.app import App
from recsys_batch.online.http.headers import Headers
from recsys_batch.online.http.router import ClientGone, QueryNumber, QueryText, Request, Response, Route, Router, json_response
from recsys_batch.online.serving.admission import Admission
from tests.online.http.fakes import ask, in_event_loop, stay


async def echo(request: Request) -> Response:
    return json_response({"method": request.method, **request.parameters, "body": request.body.decode()})


async def leave(request: Request) -> Response:
    raise ClientGone("the client left")


ROUTES = [
    Route("POST", "/rank", echo),
    Route("POST", "/left", leave),
    Route("GET", "/users/{user_id}", echo, query=()),
    Route("GET", "/user", echo, query=(QueryText("user_id", "any"), QueryNumber("k", 10, 20, "items"))),
]


class Edge:
    def __init__(self, *, max_waiting: int = 2) -> None:
        self.admission = Admission(max_waiting)
        options: dict[str, Any] = {"max_body_bytes": 1000, "large_bodies": Admission(1), "admin_token": None, "client_token": None}
        self.app = App(Router(ROUTES), self.admission, **options)
        self.counts = metrics.tally._counts = {}

    async def call(self, method: str, path: str, body: bytes = b"{}") -> tuple[int, bytes]:
        response = await ask(self.app, method, path, body)
        return response.status, response.body


@in_event_loop
async def test_a_head_alone_takes_no_place_in_the_queue() -> None:
    edge = Edge(max_waiting=2)
    heads = [edge.app.receive("POST", b"/rank", Headers(), 0.0) for _ in range(64)]
    assert edge.admission.waiting == 0 and all(head.refusal is None for head in heads)
    assert (await edge.call("POST", "/rank"))[0] == 200 and edge.admission.waiting == 0


@in_event_loop
async def test_a_request_that_finds_the_queue_full_when_its_body_is_there_is_refused_and_leaves_no_trace() -> None:
    edge = Edge(max_waiting=1)
    call, answers = edge.app.receive("POST", b"/rank", Headers(), 0.0), []
    edge.admission.enter()
    edge.app.answer(call, b"{}", stay, lambda _, response: answers.append(response.status))
    assert answers == [503] and edge.admission.waiting == 1
    late = edge.app.receive("POST", b"/rank", Headers(), 0.0)
    assert late.refusal is not None and late.refusal.status == 503


@in_event_loop
async def test_a_client_that_left_a_long_request_is_a_499_in_metrics() -> None:
    edge = Edge()
    assert (await edge.call("POST", "/left"))[0] == 400
    assert edge.counts == {("requests", "/left", "499"): 1} and edge.admission.waiting == 0


@in_event_loop
async def test_paths_and_methods_that_clients_make_up_are_three_labels() -> None:
    edge = Edge()
    for method, path in (("GET", "/a"), ("GET", "/b"), ("PUT", "/rank"), ("MKCOL", "/rank"), ("GET", "/%ff")):
        assert (await edge.call(method, path))[0] in (400, 404, 405)
    assert edge.counts == {
        ("requests", "no such path", "404"): 2,
        ("requests", "no such method", "405"): 2,
        ("requests", "no path", "400"): 1,
    }


@in_event_loop
async def test_head_is_answered_as_get_is_wherever_get_is() -> None:
    edge = Edge()
    assert await edge.call("HEAD", "/users/5") == await edge.call("GET", "/users/5")
    status, answer = await edge.call("HEAD", "/rank")
    assert status == 405 and b"takes POST, not HEAD" in answer


@pytest.mark.parametrize(
    ("path", "user_id"),
    [
        ("/users/a%2541", "a%41"),
        ("/users/5%206", "5 6"),
        ("/users/%C3%B6", "\u00f6"),
        ("http://elsewhere/users/a%41?", "aA"),
        ("/user?user_id=a%2541", "a%41"),
        ("/user?user_id=a%2Fb%3F%26%23", "a/b?&#"),
        ("/user?user_id=", ""),
        ("/user?user_id=%C3%B6&k=3", "\u00f6"),
    ],
    ids=["percent", "space", "beyond ASCII in the path", "with a host", "percent in the query", "slash", "empty", "beyond ASCII"],
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
