"""A real server among clients that send slowly, break off, or ask for what is not HTTP."""

import contextlib
import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.snapshot.repository import set_current

POST = b"POST %s HTTP/1.1\r\nhost: x\r\n%s\r\n%s"
WHOLE = json.dumps({"user_id": 5}).encode()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, ranker: bytes, servers: Any) -> Iterator[Any]:
    """A server with few places and little patience."""
    folder: Path = tmp_path_factory.mktemp("slow")
    make_snapshot(folder / "snapshots", snapshot_id="first", users=300, items=500, dim=16, candidates=60, ranker=ranker)
    set_current(folder / "snapshots", "first")
    started = servers(folder)
    limits = ("--set", "online.read_timeout_seconds=1", "--set", "online.max_waiting=4")
    server = started(folder / "snapshots", *limits, "--exposures", str(folder / "exposures"))
    server.log = next(folder.glob("serve-*.log"))
    yield server
    started.end()


def connect(server: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def send(server: Any, path: bytes, headers: bytes, body: bytes) -> socket.socket:
    peer = connect(server)
    peer.sendall(POST % (path, headers, body))
    return peer


def receive(peer: socket.socket) -> bytes:
    """All until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := peer.recv(65536):
            received += part
    return received


def count(server: Any, status: int) -> float:
    page = server.call("GET", "/metrics")[1].decode()
    return sum(float(n) for n in re.findall(rf'recsys_http_requests_total{{route="[^"]*",status="{status}"}} (\S+)', page))


def test_sixty_four_senders_who_never_finish_keep_nobody_out_and_are_told_so(one: Any) -> None:
    paths = (b"/v1/rank", b"/v1/feedback", b"/v2/models/ranker/infer", b"/v1/models/ranker:predict")
    slow = [send(one, paths[n % 4], b"content-length: 9\r\n", b"{") for n in range(64)]
    assert all(one.rank(user)["source"] == "ranker" for user in range(10))
    for peer in slow[:4]:
        answer = receive(peer)
        assert b" 408 " in answer.splitlines()[0] and b"did not arrive within 1 s" in answer
    for peer in slow:
        peer.close()


def test_headers_that_never_end_and_a_connection_that_says_nothing_are_closed(one: Any) -> None:
    silent, unfinished = connect(one), connect(one)
    unfinished.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\n")
    assert receive(silent) == receive(unfinished) == b""


@pytest.mark.parametrize(
    ("headers", "body"),
    [(b"content-length: 99\r\n", WHOLE), (b"transfer-encoding: chunked\r\n", b"%x\r\n%s\r\n" % (len(WHOLE), WHOLE))],
    ids=["with its length", "chunked"],
)
@pytest.mark.parametrize("is_listening", [True, False], ids=["half closed", "closed"])
def test_a_body_that_breaks_off_is_not_taken_as_whole_and_no_fault_of_the_servers(
    one: Any, wait_for: Any, headers: bytes, body: bytes, is_listening: bool
) -> None:
    before, failed = count(one, 499), count(one, 500)
    peer = send(one, b"/v1/rank", headers, body)
    if is_listening:
        peer.shutdown(socket.SHUT_WR)
        assert b" 400 " in receive(peer).splitlines()[0]
    peer.close()
    wait_for(lambda: count(one, 499) == before + 1)
    assert count(one, 500) == failed and b"Traceback" not in one.log.read_bytes()


def test_a_client_that_goes_away_before_its_answer_is_no_fault_of_the_servers(one: Any, wait_for: Any) -> None:
    failed = count(one, 500)
    for _ in range(20):
        send(one, b"/v1/rank", b"content-length: %d\r\n" % len(WHOLE), WHOLE).close()
    assert wait_for(lambda: one.rank(5))["source"] == "ranker"
    assert count(one, 500) == failed and b"Traceback" not in one.log.read_bytes()


def test_a_thousand_silent_connections_keep_nobody_waiting(make: Any, current: Any, serve: Any) -> None:
    current(folder := make(), "first")
    server = serve(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        silent = [held.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(1200)]
        assert server.rank(5)["source"] == "ranker"
        for connection in silent:  # none had to be closed for it
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)


def test_a_websocket_that_is_asked_for_is_a_request_like_any_other(one: Any) -> None:
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert one.call("GET", "/healthz", None, upgrade)[0] == 200
    assert one.call("GET", "/nothing", None, upgrade)[0] == 404
    assert b"Traceback" not in one.log.read_bytes()


def test_a_path_is_decoded_once_and_a_slash_of_an_id_goes_into_the_query(one: Any) -> None:
    assert one.call("GET", "/v1/users/%35/topk")[0] == 200
    status, told, _ = one.call("GET", "/v1/users/%2535/topk")
    assert status == 404 and "user '%35'" in told["error"]
    status, told, _ = one.call("GET", "/v1/user/topk?user_id=a%2Fb")
    assert status == 404 and "user 'a/b'" in told["error"]
    assert one.call("GET", "/v1/user?user_id=5")[1]["user_id"] == "5" and one.call("GET", "/v1/item?item_id=7")[1]["title"] == "Item 7"
    assert one.call("GET", "/v2/models/%2572anker")[0] == one.call("GET", "/v1/models/%2572anker")[0] == 404
    assert one.call("POST", "/v1/models/recommend%3Apredict", {"instances": [5]})[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/users/5", "/v2", "/v2/health/live", "/v1/models/ranker", "/openapi.json"])
def test_head_has_the_length_of_what_get_gives_and_no_body(one: Any, path: str) -> None:
    _, told, headers = one.call("GET", path)
    connection = connect(one)
    connection.sendall(f"HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    answer = receive(connection)
    assert b" 200 " in answer.splitlines()[0] and answer.endswith(b"\r\n\r\n") and told
    assert f"content-length: {headers['content-length']}".encode() in answer


@pytest.mark.parametrize(
    ("path", "is_taken"),
    [
        ("/v2/models/ranker/infer", True),
        ("/v2/models/ranker/versions/first/infer", True),
        ("/v1/models/ranker:predict", True),
        ("/v2/repository/index", False),
        ("/v1/models/ranker", False),
        ("/v1/feedback", False),
    ],
)
def test_only_tensors_may_be_long(one: Any, path: str, is_taken: bool) -> None:
    status, told, _ = one.call("POST", path, b" " * 300_000, {"authorization": "Bearer for tests only"})
    assert status == (400 if is_taken else 413), told


def test_megabytes_of_a_wrong_name_are_not_repeated(one: Any) -> None:
    name = "x" * 2_000_000  # twice, below what JSON may have
    status, told, _ = one.call("POST", "/v2/models/ranker/infer", {"inputs": [{"name": name, "datatype": name, "shape": [1], "data": [1]}]})
    assert status == 400 and len(told["error"]) < 300
    status, told, _ = one.call("POST", "/v1/rank", {"user_id": 5, name[:200_000]: 1})
    assert status == 400 and len(told["error"]) < 300


def test_the_time_of_a_body_begins_with_its_request(one: Any) -> None:
    with connect(one) as peer:
        for _ in range(2):  # kept alive, longer than a body may take
            peer.sendall(POST % (b"/v1/rank", b"content-length: %d\r\n" % len(WHOLE), WHOLE))
            assert b" 200 " in peer.recv(65536)
            time.sleep(0.6)
