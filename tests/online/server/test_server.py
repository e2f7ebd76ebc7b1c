"""A real server of real worker processes, over HTTP."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

N_USERS = 300


@pytest.fixture(scope="module")
def one(request: pytest.FixtureRequest) -> Any:
    """A server that the tests of this file share: none of them changes it."""
    return request.getfixturevalue("shared_server")


def test_a_ranked_list_has_all_that_the_contract_names(one: Any) -> None:
    told = one.rank(5, k=7, context={"timestamp": 1700000000, "device": "tv", "session_item_ids": [3], "mood": "good"}, request_id="mine")
    assert (told["user_id"], told["source"], told["degraded"], told["snapshot_id"]) == (5, "ranker", None, "first")
    assert told["request_id"] == "mine" and told["model_version"] == "made-up"
    assert [item["rank"] for item in told["items"]] == list(range(1, 8))
    assert set(told["items"][0]) == {"item_id", "score", "rank", "candidate_rank", "title"}
    assert told["items"][0]["title"] == f"Item {told['items'][0]['item_id']}"
    assert {"wait", "lookup", "features", "model", "select", "total"} <= set(told["timings_ms"])


def test_explain_adds_contributions_and_the_batch_rank(one: Any) -> None:
    item = one.rank(5, k=3, explain=True)["items"][0]
    assert item["batch_rank"] >= 1 and set(item["contributions"]) >= {"retrieval", "session", "device", "time"}


def test_a_batch_with_a_list_that_the_caller_brings_goes_through_a_real_server_with_its_own_bounds(
    make: Any, serve: Any, current: Any
) -> None:
    current(folder := make(), "first")
    server = serve(folder, "--set", "online.max_candidates=3", "--set", "online.max_body_kb=1")
    requests = [{"user_id": 5, "candidate_item_ids": ids} for ids in ([9, "x", 2], [9, 8, 7, 6])] * 20
    status, told, _ = server.call("POST", "/v1/rank:batch", {"requests": requests})
    assert status == 200 and len(json.dumps(requests)) > 1024
    ranked, refused = told["answers"][0::2], told["answers"][1::2]
    assert all(({item["item_id"] for item in each["items"]}, each["unknown_item_ids"]) == ({9, 2}, ["x"]) for each in ranked)
    sentence = "candidate_item_ids has 4 ids, at most 3 are allowed"
    assert len(ranked) == len(refused) == 20 and all(each == {"error": sentence, "status": 400} for each in refused)


def test_the_published_list_is_the_batchs(one: Any) -> None:
    status, told, _ = one.call("GET", "/v1/users/5/topk?k=4")
    assert status == 200 and told["source"] == "batch" and [item["rank"] for item in told["items"]] == [1, 2, 3, 4]
    assert one.call("GET", "/v1/users/99999/topk")[0] == 404
    assert one.call("GET", "/v1/users/99999/topk")[1]["error"].startswith("snapshot first has no list")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not as expected"),
        (b"{", "not as expected"),
        (b'{"k": 3}', "user_id"),
        (b'{"user_id": 5, "k": 0}', "k is 0"),
        (b'{"user_id": 5, "k": 100000}', "expected 1 to 200"),
        (b'{"user_id": 5, "k": "ten"}', "k"),
        (b'{"user_id": 5, "context": 1}', "context"),
        (b'{"user_id": 5, "context": {"session_item_ids": 3}}', "a list of item ids"),
        (b'{"user_id": 5, "context": {"timestamp": "yesterday"}}', "ISO 8601"),
        (b'{"user_id": 5, "context": {"timestamp": 1e300}}', "seconds since 1970"),
        (b'{"user_id": 5, "deadline_ms": -1}', "deadline_ms"),
        (b'{"user_id": 5, "unheard_of": 1}', "unheard_of"),
        (b'{"user_id": true}', "user_id"),
        (b"\xff\xfe", "not as expected"),
        (b"[" * 100_000, "not as expected"),
        (json.dumps({"user_id": 5, "exclude_item_ids": list(range(1001))}).encode(), "at most 1000"),
    ],
)
def test_a_malformed_body_is_told_what_is_wrong(one: Any, body: bytes, words: str) -> None:
    status, told, _ = one.call("POST", "/v1/rank", body)
    assert status == 400 and words in told["error"] and "Traceback" not in told["error"]


def test_paths_methods_and_sizes_are_checked(one: Any) -> None:
    assert one.call("GET", "/v1/nothing")[0] == 404
    status, told, headers = one.call("GET", "/v1/rank")
    assert (status, headers["allow"]) == (405, "POST") and "takes POST" in told["error"]
    assert one.call("POST", "/v1/rank", b" " * 300_000)[0] == 413
    assert one.call("GET", "/v1/users/5/topk?k=x")[0] == 400 and one.call("GET", "/v1/users/5/topk?q=1")[0] == 400


def test_a_long_body_without_its_length_is_not_swallowed_whole(one: Any) -> None:
    with socket.create_connection(("127.0.0.1", one.port), timeout=10) as peer:
        peer.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            for _ in range(200):
                peer.sendall(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
            peer.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return
        assert b" 413 " in peer.recv(100)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
IDS = st.integers() | st.text(max_size=12)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "user_id": IDS | JSON,
        "k": st.integers(-5, 300) | JSON,
        "context": st.fixed_dictionaries(
            {},
            optional={
                "timestamp": JSON | st.floats() | st.integers(-(10**18), 10**18),
                "device": JSON,
                "session_item_ids": st.lists(IDS, max_size=6) | JSON,
                "segment": JSON,
            },
        )
        | JSON,
        "exclude_item_ids": st.lists(IDS, max_size=6) | JSON,
        "filters": st.fixed_dictionaries({"categories": st.lists(st.text(max_size=12), max_size=3)}) | JSON,
        "deadline_ms": st.floats() | JSON,
        "explain": st.booleans() | JSON,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REQUESTS)
def test_no_body_makes_the_server_fail(one: Any, body: Any) -> None:
    try:
        raw = json.dumps(body).encode(errors="surrogatepass")
    except ValueError:
        return
    status, told, _ = one.call("POST", "/v1/rank", raw)
    assert status in (200, 400), told


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]), st.text("abz/0{}%.?&=k\u00e9", max_size=20), st.binary(max_size=30))
def test_no_path_makes_the_server_fail(one: Any, method: str, path: str, body: bytes) -> None:
    for prefix in ("/", "/v1/users/", "/v1/snapshots/", "/v1/"):
        status, _, _ = one.call(method, (prefix + path).encode().decode("latin-1").replace("\xc3", "%C3").replace("\xa9", "%A9"), body)
        assert status < 500


def test_metrics_count_over_all_workers_in_fine_buckets(one: Any, wait_for: Any) -> None:
    one.rank(5)
    wait_for(lambda: b'recsys_http_requests_total{route="/v1/rank",status="200"}' in one.call("GET", "/metrics")[1])
    _, text, headers = one.call("GET", "/metrics")
    page = text.decode()
    assert headers["content-type"].startswith("text/plain")
    assert float(re.search(r'recsys_rank_answers_total\{source="ranker"\} (\S+)', page)[1]) >= 1  # type: ignore[index]
    bounds = re.findall(r'recsys_rank_stage_seconds_bucket\{le="([^"]+)",stage="total"\}', page)
    assert bounds[0] == "0.0005" and "0.1" in bounds and len(bounds) >= 12


def test_the_openapi_document_describes_every_path(one: Any) -> None:
    status, document, _ = one.call("GET", "/openapi.json")
    assert status == 200 and document["openapi"].startswith("3.")
    for path, operations in document["paths"].items():
        for method in operations:
            status, told, _ = one.call(method.upper(), path.replace("{user_id}", "5").replace("{snapshot_id}", "x"), b"{}")
            assert status != 405 and not (status == 404 and "there is no /" in told["error"]), (method, path, told)


def test_admin_needs_the_token(one: Any) -> None:
    assert one.call("GET", "/v1/snapshots")[0] == 401
    assert one.call("GET", "/v1/snapshots", None, {"authorization": "Bearer wrong"})[0] == 401
    status, told = one.admin("GET", "/v1/snapshots")
    assert status == 200 and told["current"] == "first" and told["snapshots"][0]["n_users"] == N_USERS


def test_without_an_admin_token_nobody_is_admin_and_a_client_token_is_asked_of_all(make: Any, serve: Any, current: Any) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder, RECSYS_BATCH_ADMIN_TOKEN="", RECSYS_BATCH_CLIENT_TOKEN="theirs")
    assert server.call("POST", "/v1/rank", {"user_id": 5})[0] == 401
    assert server.call("POST", "/v1/rank", {"user_id": 5}, {"authorization": "Bearer theirs"})[0] == 200
    assert server.call("GET", "/v1/snapshots", None, {"authorization": "Bearer theirs"})[0] == 403
    assert server.call("GET", "/healthz")[0] == 200


def test_a_killed_worker_is_replaced(make: Any, serve: Any, current: Any, wait_for: Any) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder, "--workers", "2")
    before = wait_for(lambda: len(found := server.workers()) == 2 and found)
    os.kill(before[0], signal.SIGKILL)
    after = wait_for(lambda: len(found := server.workers()) == 2 and before[0] not in found and found)
    assert before[1] in after
    assert all(server.rank(user)["source"] == "ranker" for user in range(20))


def test_a_stale_snapshot_is_flagged_and_one_too_old_is_not_ready(make: Any, serve: Any, current: Any) -> None:
    folder = make()
    current(folder, "first")
    stale = serve(folder, "--set", "online.max_age_hours=0.0000001")
    assert stale.rank(5)["degraded"] == "stale_snapshot" and stale.rank(5)["source"] == "ranker"
    old = serve(folder, "--set", "online.max_age_hard_hours=0.0000001", ready=False)
    status, told, _ = old.call("GET", "/readyz")
    assert status == 503 and "max_age_hard_hours" in told["error"]


def test_before_the_first_snapshot_it_lives_and_is_not_ready(tmp_path: Path, make: Any, serve: Any, current: Any, wait_for: Any) -> None:
    server = serve(tmp_path / "snapshots", ready=False)
    assert server.call("GET", "/readyz")[0] == 503
    status, told, headers = server.call("POST", "/v1/rank", {"user_id": 5})
    assert status == 503 and "export-snapshot" in told["error"] and headers["retry-after"]
    current(make(), "first")
    wait_for(lambda: server.call("GET", "/readyz")[0] == 200)
    assert server.rank(5)["snapshot_id"] == "first"


def test_past_the_bound_requests_are_refused_at_once_and_the_rest_is_answered(make: Any, serve: Any, current: Any) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder, "--set", "online.max_waiting=4")
    statuses: list[int] = []
    body = json.dumps({"user_id": 5, "k": 100, "explain": True}).encode()
    request = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    def many() -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
            for _ in range(40):
                peer.sendall(request)
                status, length = b"", 0
                reader = peer.makefile("rb")
                status = reader.readline().split()[1]
                while (line := reader.readline().strip()) != b"":
                    if line.lower().startswith(b"content-length"):
                        length = int(line.split(b":")[1])
                reader.read(length)
                statuses.append(int(status))

    threads = [threading.Thread(target=many) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 503} and len(statuses) == 24 * 40
    assert server.rank(5)["source"] == "ranker"


def test_with_a_certificate_https_is_spoken_and_http_is_not(make: Any, serve: Any, current: Any, wait_for: Any, tmp_path: Path) -> None:
    names = {"-keyout": tmp_path / "key.pem", "-out": tmp_path / "cert.pem"}
    options = [str(part) for pair in names.items() for part in pair]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *options, *subject], check=True, capture_output=True)
    folder = make()
    current(folder, "first")
    server = serve(folder, "--tls-certificate", str(names["-out"]), "--tls-key", str(names["-keyout"]), tls=True)
    context = ssl.create_default_context(cafile=str(names["-out"]))

    def status() -> int:
        with urllib.request.urlopen(f"https://127.0.0.1:{server.port}/readyz", context=context, timeout=10) as response:
            return int(response.status)

    assert wait_for(lambda: status() == 200)
    with pytest.raises((OSError, http.client.HTTPException)):
        server.call("GET", "/readyz")


def test_a_server_that_starts_on_a_damaged_snapshot_answers_from_the_one_before_and_says_so(
    make: Any, current: Any, serve: Any, wait_for: Any
) -> None:
    make("first", seed=1)
    folder = make("second", seed=2)
    for name in ("first", "second"):
        current(folder, name)
    (folder / "second" / "ranker.onnx").write_bytes(b"damaged")
    server = serve(folder)
    status, told, _ = server.call("GET", "/readyz")
    assert (status, told["snapshot_id"]) == (200, "first") and "CURRENT names second, which is refused" in told["fallback"]
    assert server.rank(5)["snapshot_id"] == "first"
    wait_for(lambda: b"\nrecsys_snapshot_fallback 1.0" in server.call("GET", "/metrics")[1])
    make("third", seed=3)
    current(folder, "third")
    wait_for(lambda: server.rank(5)["snapshot_id"] == "third")
    assert server.call("GET", "/readyz")[1]["fallback"] is None
    wait_for(lambda: b"\nrecsys_snapshot_fallback 0.0" in server.call("GET", "/metrics")[1])
