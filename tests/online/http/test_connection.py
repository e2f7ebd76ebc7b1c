"""One connection: requests in their order, bodies whole, in chunks, slow, broken or too long, and how it ends."""

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.online import metrics
from recsys_batch.online.http.app import App
from recsys_batch.online.http.connection import MAX_HEAD_BYTES
from recsys_batch.online.http.connection_bounds import ConnectionBounds
from recsys_batch.online.http.router import Request, Response, Route, Router, json_response
from recsys_batch.online.serving.admission import Admission
from tests.online.http.fakes import Client, in_event_loop, settle

BOUND = 1000
PLAIN = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
CHUNKED = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
GET = b"GET /quick HTTP/1.1\r\nhost: x\r\n%s\r\n"


class Service:
    """An application of three routes; ``/slow`` waits for ``go_on``, and ``/long`` for its client to leave."""

    def __init__(self, *, seconds: float = 60.0, max_connections: int = 100) -> None:
        routes = [
            Route("POST", "/echo", self.echo, access="open"),
            Route("POST", "/slow", self.wait, access="open"),
            Route("POST", "/long", self.work, access="open", max_body_bytes=5000),
            Route("GET", "/quick", self.quick, access="open"),
            Route("GET", "/big", self.big, access="open"),
            Route("GET", "/cached", self.cached, access="open"),
        ]
        self.admission, self.go_on, self.bodies = Admission(50), asyncio.Event(), []
        options: dict[str, Any] = {"max_body_bytes": BOUND, "large_bodies": Admission(10_000), "admin_token": None, "client_token": None}
        self.app = App(Router(routes), self.admission, **options)
        self.bounds = ConnectionBounds(seconds, max_connections)
        self.counts = metrics.tally._counts = {}

    def connect(self, **options: bool) -> Client:
        return Client(self.app, self.bounds, **options)

    async def echo(self, request: Request) -> Response:
        self.bodies.append(request.body)
        return json_response({"body": request.body.decode()})

    async def wait(self, request: Request) -> Response:
        await self.go_on.wait()
        return json_response({"waited": True})

    async def work(self, request: Request) -> Response:
        assert request.client_left is not None
        await request.client_left()
        return json_response({"left": True})

    async def quick(self, request: Request) -> Response:
        return json_response({"quick": True})

    async def big(self, request: Request) -> Response:
        return Response(200, bytes(100_000))

    async def cached(self, request: Request) -> Response:
        return Response(304, b"", (("etag", '"a"'),))


def split_answers(received: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """(status, headers, body) of each answer; of bodies that are left out, too."""
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("content-length", 0))
        answers.append((int(status.split()[1]), headers, rest[:length]))
        received = rest[length:]
    return answers


@in_event_loop
async def test_an_answer_has_a_date_its_length_and_nothing_about_a_connection_that_stays() -> None:
    client = Service().connect()
    client.send(PLAIN % (5, b"hello"))
    await settle()
    ((status, headers, body),) = split_answers(client.received)
    assert (status, json.loads(body)) == (200, {"body": "hello"})
    assert set(headers) == {"content-type", "date", "content-length"} and headers["date"].endswith(" GMT")


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4), st.data())
@settings(max_examples=150, deadline=None)
def test_requests_are_read_alike_however_their_bytes_are_cut(bodies: list[bytes], data: st.DataObject) -> None:
    wire = b""
    for body in bodies:
        in_chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:3], body[3:]) if part) + b"0\r\n\r\n"
        wire += CHUNKED + in_chunks if data.draw(st.booleans()) else PLAIN % (len(body), body)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=8)))
    parts = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]

    async def run() -> None:
        service = Service()
        service.app._router._fixed["POST", "/echo"] = Route("POST", "/echo", take, access="open")
        client = service.connect()
        for part in parts:
            client.send(part)
            await settle()
        for _ in bodies:
            await settle()
        assert taken == bodies and client.statuses == [200] * len(bodies)
        assert service.admission.waiting == 0 and client.transport.is_reading and not client.transport.is_closed

    taken: list[bytes] = []

    async def take(request: Request) -> Response:
        taken.append(request.body)
        return Response(200, b"")

    asyncio.run(run())


@in_event_loop
async def test_requests_that_are_sent_before_their_turn_wait_unread_and_are_answered_in_order() -> None:
    service = Service()
    client = service.connect()
    client.send(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n" + GET % b"" + b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
    await settle()
    assert client.received == b"" and not client.transport.is_reading
    service.go_on.set()
    for _ in range(3):
        await settle()
    assert client.statuses == [200, 200, 404] and client.transport.is_reading
    assert b"waited" in client.received.partition(b"quick")[0]


@in_event_loop
async def test_thousands_of_refusals_in_one_piece_are_answered() -> None:
    client = Service().connect()
    client.send(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n" * 3000)
    await settle()
    assert client.statuses == [404] * 3000


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "with its length"])
@in_event_loop
async def test_a_body_that_never_comes_is_refused_when_its_time_is_over(chunked: bool) -> None:
    service = Service(seconds=0.04)
    client = service.connect()
    client.send(CHUNKED + b"1\r\na\r\n" if chunked else PLAIN % (9, b"a"))
    await asyncio.sleep(0.08)
    ((status, headers, body),) = split_answers(client.received)
    assert (status, headers["connection"]) == (408, "close") and b"did not arrive within 0.04 s" in body
    assert client.transport.is_half_closed and len(service.bounds.bodies) == 0 and service.bounds.bodies.n_bytes == 0
    client.end()
    assert client.transport.is_closed and not service.bounds.connections
    assert service.counts == {("requests", "/echo", "408"): 1}


@in_event_loop
async def test_a_head_that_never_ends_and_a_silent_connection_are_closed_without_a_word() -> None:
    service = Service(seconds=0.04)
    silent, unfinished = service.connect(), service.connect()
    unfinished.send(b"POST /echo HTTP/1.1\r\nhost: x\r\n")
    await asyncio.sleep(0.08)
    assert silent.transport.is_closed and unfinished.transport.is_closed and silent.received == unfinished.received == b""


@in_event_loop
async def test_the_time_of_a_head_begins_again_after_each_answer() -> None:
    service = Service(seconds=0.2)
    client = service.connect()
    for _ in range(4):
        await asyncio.sleep(0.1)
        client.send(GET % b"")
        await settle()
    assert client.statuses == [200] * 4 and not client.transport.is_closed


@in_event_loop
async def test_past_the_bound_the_oldest_unfinished_body_gives_way_to_the_one_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    service.bounds.bodies._max_reads = 3
    slow = [service.connect() for _ in range(3)]
    for client in slow:
        client.send(PLAIN % (9, b"a"))
    fourth = service.connect()
    fourth.send(PLAIN % (9, b"a"))
    assert [client.statuses for client in (*slow, fourth)] == [[408], [], [], []] and b"too many others" in slow[0].received
    fourth.send(b"b" * 8)
    await settle()
    assert fourth.statuses == [200]


@in_event_loop
async def test_announced_and_received_bytes_of_all_bodies_are_bounded_together() -> None:
    service = Service()
    service.bounds.bodies._max_bytes = 1500
    announced, chunked = service.connect(), service.connect()
    announced.send(PLAIN % (900, b"a"))
    chunked.send(CHUNKED, b"190\r\n" + b"x" * 400 + b"\r\n")
    assert (announced.statuses, service.bounds.bodies.n_bytes) == ([], 1300)
    chunked.send(b"190\r\n" + b"x" * 400 + b"\r\n")
    assert announced.statuses == [408] and service.bounds.bodies.n_bytes == 800
    chunked.send(b"0\r\n\r\n")
    await settle()
    assert chunked.statuses == [200] and service.bounds.bodies.n_bytes == 0


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "half closed"])
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "with its length"])
@in_event_loop
async def test_a_body_that_breaks_off_is_a_499_and_told_to_who_listens(chunked: bool, is_closed: bool) -> None:
    service = Service()
    client = service.connect()
    client.send(CHUNKED + b"2\r\n{}\r\n" if chunked else PLAIN % (9, b"{}"))
    if is_closed:
        client.lose()
        assert client.received == b""
    else:
        client.end()
        assert client.statuses == [400] and b"ended before the body did" in client.received and client.transport.is_closed
    assert service.counts == {("requests", "/echo", "499"): 1} and service.bodies == [] and service.admission.waiting == 0


@in_event_loop
async def test_a_client_that_sends_no_more_gets_its_answer_and_one_that_left_counts_as_gone() -> None:
    service = Service()
    quiet, gone = service.connect(), service.connect()
    for client in (quiet, gone):
        client.send(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    await settle()
    quiet.end()
    gone.lose()
    service.go_on.set()
    await settle()
    assert quiet.statuses == [200] and quiet.transport.is_closed and gone.received == b""
    assert service.counts == {("requests", "/slow", "200"): 1, ("requests", "/slow", "499"): 1} and service.admission.waiting == 0


@pytest.mark.parametrize("how", ["end", "lose"])
@in_event_loop
async def test_a_handler_that_asks_is_told_when_its_client_leaves(how: str) -> None:
    service = Service()
    client = service.connect()
    client.send(b"POST /long HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    await settle()
    assert client.statuses == []
    getattr(client, how)()
    await settle()
    assert client.statuses == ([200] if how == "end" else []) and service.admission.waiting == 0


@pytest.mark.parametrize(
    ("head", "part"),
    [(CHUNKED, b"258\r\n" + b"x" * 600 + b"\r\n"), (PLAIN % (2_000_000, b""), b"x" * 600)],
    ids=["chunked", "with its length"],
)
@in_event_loop
async def test_more_than_the_bound_is_refused_and_what_still_comes_is_thrown_away_until_the_client_reads(head: bytes, part: bytes) -> None:
    service = Service()
    client = service.connect()
    client.send(head, part, part)
    assert client.statuses == [413] and b"connection: close" in client.received and client.transport.is_half_closed
    client.send(*[part] * 100)
    assert client.statuses == [413] and client.transport.is_reading and not client.transport.is_closed
    client.end()
    assert client.transport.is_closed


@in_event_loop
async def test_where_a_transport_cannot_be_half_closed_it_is_closed() -> None:
    client = Service().connect(can_half_close=False)
    client.send(PLAIN % (2_000_000, b"x"))
    assert client.statuses == [413] and client.transport.is_closed


@in_event_loop
async def test_the_short_body_of_a_refused_request_is_skipped_and_the_connection_stays() -> None:
    client = Service().connect()
    client.send(b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n", b"x" * 2000 + GET % b"")
    await settle()
    assert client.statuses == [404, 200] and not client.transport.is_closed


@in_event_loop
async def test_chunks_of_a_byte_and_trailers_without_end_are_refused() -> None:
    tiny, trailing = Service().connect(), Service().connect()
    tiny.send(CHUNKED, *[b"1;%s\r\nx\r\n" % (b"e" * 2000) for _ in range(80)])
    trailing.send(CHUNKED + b"1\r\nx\r\n0\r\n", *[b"t%d: %s\r\n" % (n, b"v" * 2000) for n in range(80)])
    for client in (tiny, trailing):
        assert client.statuses == [400] and b"too small, or its trailers too long" in client.received


@in_event_loop
async def test_trailers_are_no_header_fields_of_the_request_nor_of_the_next_one() -> None:
    client = Service().connect()
    client.send(CHUNKED + b"1\r\nx\r\n0\r\nexpect: 100-continue\r\n\r\n" + GET % b"")
    await settle()
    assert client.statuses == [200, 200]


@pytest.mark.parametrize("cut", [True, False], ids=["bit by bit", "at once"])
@in_event_loop
async def test_a_head_that_is_too_long_is_431(cut: bool) -> None:
    client = Service().connect()
    lines = [b"GET /quick HTTP/1.1\r\nhost: x\r\n", *[b"a%d: %s\r\n" % (n, b"v" * 1000) for n in range(80)], b"\r\n"]
    client.send(*(lines if cut else [b"".join(lines)]))
    await settle()
    assert client.statuses == [431] and str(MAX_HEAD_BYTES).encode() in client.received
    one_line = Service().connect()
    one_line.send(b"GET /quick HTTP/1.1\r\nhost: x\r\nlong: ", *[b"v" * 1000] * 80)
    assert one_line.statuses == [431]


@in_event_loop
async def test_a_head_behind_a_long_body_is_not_taken_for_a_long_one() -> None:
    service = Service()
    client = service.connect()
    client.send(b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 65000\r\n\r\n", b"x" * 65000 + (GET % b"")[:10], (GET % b"")[10:])
    await settle()
    assert client.statuses == [404, 200]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /quick HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET /quick HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\n",
    ],
    ids=["TLS", "no HTTP", "another version", "HTTP/2", "two lengths", "a length beyond 64 bits", "length and chunks", "no chunk"],
)
@in_event_loop
async def test_what_is_no_request_is_400_and_the_end(garbage: bytes) -> None:
    service = Service()
    client = service.connect()
    client.send(garbage, b"more")
    assert client.statuses == [400] and b"this is no HTTP/1.1 request" in client.received and client.transport.is_half_closed
    assert len(service.bounds.heads) == 0 and sum(service.counts.values()) == 1


@in_event_loop
async def test_garbage_behind_a_request_is_answered_behind_its_answer() -> None:
    service = Service()
    client = service.connect()
    client.send(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\nhello\r\n\r\n")
    await settle()
    assert client.received == b""
    service.go_on.set()
    await settle()
    assert client.statuses == [200, 400] and b"connection: close" in client.received


@in_event_loop
async def test_http_1_1_needs_a_host_and_http_1_0_does_not() -> None:
    client = Service().connect()
    client.send(b"GET /quick HTTP/1.1\r\n\r\n")
    assert client.statuses == [400] and b"no host header" in client.received
    old = Service().connect()
    old.send(b"GET /quick HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    await settle()
    assert old.statuses == [200] and b"connection: keep-alive" in old.received and not old.transport.is_closed
    old.send(b"GET /quick HTTP/1.0\r\n\r\n")
    await settle()
    assert old.statuses == [200, 200] and old.received.count(b"connection: close") == 1 and old.transport.is_closed


@in_event_loop
async def test_a_client_that_asks_for_the_end_gets_it() -> None:
    client = Service().connect()
    client.send(GET % b"connection: close\r\n")
    await settle()
    assert client.statuses == [200] and b"connection: close" in client.received and client.transport.is_closed


@pytest.mark.parametrize("is_cut", [True, False], ids=["in pieces", "at once"])
@pytest.mark.parametrize(
    ("length", "body"),
    [(b"content-length: 0", b""), (b"content-length: 2", b"{}"), (b"transfer-encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n")],
    ids=["without a body", "with one", "in chunks"],
)
@in_event_loop
async def test_an_upgrade_that_is_asked_for_is_a_request_like_any_other_and_so_is_the_next(
    length: bytes, body: bytes, is_cut: bool
) -> None:
    # Java's HttpClient asks for h2c with every first request, bodies included.
    service = Service()
    client = service.connect()
    head = b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAA\r\n%s\r\n\r\n"
    parts = [head % length, body[:4], body[4:] + GET % b"", GET % b""]
    client.send(*(parts if is_cut else [b"".join(parts)]))
    for _ in range(3):
        await settle()
    assert client.statuses == [200, 200, 200] and service.bodies == [b"{}" if body else b""] and not client.transport.is_closed


@in_event_loop
async def test_who_waits_to_be_asked_for_a_body_is_asked_or_refused() -> None:
    expecting = b"POST %s HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    taken, refused = Service().connect(), Service().connect()
    taken.send(expecting % b"/echo")
    assert taken.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    taken.send(b"{}")
    await settle()
    assert taken.statuses == [100, 200]
    refused.send(expecting % b"/nothing")
    assert refused.statuses == [404] and b"connection: close" in refused.received


@in_event_loop
async def test_head_and_304_have_no_body() -> None:
    client = Service().connect()
    client.send(b"HEAD /quick HTTP/1.1\r\nhost: x\r\n\r\n")
    await settle()
    client.send(b"GET /cached HTTP/1.1\r\nhost: x\r\n\r\n")
    await settle()
    assert client.statuses == [200, 304] and b"quick" not in client.received and b"content-length: 14" in client.received


@in_event_loop
async def test_a_client_that_does_not_read_gets_no_more_answers_and_is_cut_off_in_time() -> None:
    service = Service(seconds=0.04)
    client = service.connect()
    client.connection.pause_writing()
    client.send((GET % b"") * 5)
    await settle()
    assert client.received == b"" and not client.transport.is_reading
    client.connection.resume_writing()
    for _ in range(5):
        await settle()
    assert client.statuses == [200] * 5 and client.transport.is_reading
    client.connection.pause_writing()
    await asyncio.sleep(0.08)
    assert client.transport.is_closed


@in_event_loop
async def test_past_the_bound_on_connections_the_one_that_has_been_silent_for_longest_gives_way() -> None:
    service = Service(max_connections=3)
    first, second, third = (service.connect() for _ in range(3))
    first.send(GET % b"")
    await settle()
    fourth = service.connect()
    assert second.transport.is_closed and not (first.transport.is_closed or third.transport.is_closed or fourth.transport.is_closed)


@in_event_loop
async def test_where_no_connection_is_silent_a_further_one_is_turned_away() -> None:
    service = Service(max_connections=1)
    busy = service.connect()
    busy.send(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    await settle()
    assert service.connect().transport.is_aborted and not busy.transport.is_closed


@in_event_loop
async def test_at_the_end_silent_connections_are_closed_and_the_others_after_their_answers() -> None:
    service = Service()
    silent, busy = service.connect(), service.connect()
    busy.send(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    await settle()
    service.bounds.is_ending = True
    for client in (silent, busy):
        client.connection.end()
    assert silent.transport.is_closed and not busy.transport.is_closed
    service.go_on.set()
    await settle()
    assert busy.statuses == [200] and b"connection: close" in busy.received and busy.transport.is_closed


@in_event_loop
async def test_a_fault_of_our_own_in_reading_is_logged_and_no_fault_of_the_clients(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service()
    client = service.connect()
    monkeypatch.setattr(service.app, "receive", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR, "recsys_batch.online"):
        client.send(GET % b"")
    assert client.transport.is_aborted and client.received == b""
    assert caplog.records[0].exc_info is not None and caplog.records[0].exc_info[0] is ZeroDivisionError


@given(st.binary(max_size=300) | st.text("GETPOS /HTP1.\r\n:hostcontent-length 0123456789", max_size=200).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_a_connection_fail(data: bytes) -> None:
    async def run() -> None:
        client = Service().connect()
        client.send(data)
        await settle()
        client.end()
        assert not client.transport.is_aborted and len(client.statuses) <= 100

    asyncio.run(run())
