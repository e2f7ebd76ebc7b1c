"""Other snapshots under load: no request fails, and no answer mixes two."""

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.errors import UsageError
from recsys_batch.online.serving.traffic_split import TrafficSplit, parse_traffic_split


class Load:
    """Requests from a few threads until ``end``; every answer is kept."""

    def __init__(self, server: Any, threads: int = 3) -> None:
        self.answers: list[tuple[int, Any]] = []
        self._server = server
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        user = number
        while not self._ending.is_set():
            user = (user + 7) % 300
            status, told, _ = self._server.call("POST", "/v1/rank", {"user_id": user, "k": 5, "explain": True})
            self.answers.append((status, told))

    def end(self) -> list[tuple[int, Any]]:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        return self.answers


@pytest.fixture
def two(make: Any, current: Any) -> Path:
    """Snapshots "first" and "second" of different seeds, the first one current."""
    make("first", seed=1)
    folder: Path = make("second", seed=2)
    current(folder, "first")
    return folder


def test_swaps_under_load_fail_nobody_and_mix_nothing(two: Path, serve: Any) -> None:
    server = serve(two, "--workers", "2")
    expected = {}
    for name in ("first", "second"):
        assert server.admin("POST", f"/v1/snapshots/{name}/activate")[0] == 200
        expected[name] = {user: server.rank(user, k=5)["items"] for user in range(300)}
    load = Load(server)
    for turn in range(6):
        status, told = server.admin("POST", f"/v1/snapshots/{('first', 'second')[turn % 2]}/activate")
        assert status == 200 and all(worker["current"] == told["current"] for worker in told["workers"])
        time.sleep(0.1)
    answers = load.end()
    assert Counter(status for status, _ in answers) == {200: len(answers)}
    assert {told["snapshot_id"] for _, told in answers} == {"first", "second"}
    for _, told in answers:
        found = [{name: item[name] for name in ("item_id", "rank", "title", "candidate_rank")} for item in told["items"]]
        wanted = expected[told["snapshot_id"]][told["user_id"]]
        assert found == [{name: item[name] for name in ("item_id", "rank", "title", "candidate_rank")} for item in wanted]


def test_rolling_back_goes_to_the_one_before(two: Path, serve: Any) -> None:
    server = serve(two)
    assert server.admin("POST", "/v1/snapshots/rollback")[0] == 404
    assert server.admin("POST", "/v1/snapshots/second/activate")[0] == 200
    assert server.rank(5)["snapshot_id"] == "second"
    assert server.admin("POST", "/v1/snapshots/rollback")[0] == 200
    assert server.rank(5)["snapshot_id"] == "first"


@pytest.mark.parametrize("file", ["users.lmdb", "ranker.onnx", "manifest.json"])
def test_a_damaged_snapshot_is_refused_and_the_old_one_kept(file: str, two: Path, serve: Any, current: Any, wait_for: Any) -> None:
    server = serve(two)
    path = two / "second" / file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    status, told = server.admin("POST", "/v1/snapshots/second/activate")
    assert status in (404, 409) and told["error"]
    assert (two / "CURRENT").read_text().strip() == "first" and server.rank(5)["snapshot_id"] == "first"
    current(two, "second")  # by hand, past the server
    wait_for(lambda: server.admin("GET", "/v1/snapshots")[1]["workers"][0]["refused"].get("second"))
    assert server.rank(5)["snapshot_id"] == "first" and server.call("GET", "/readyz")[0] == 200


def test_a_snapshot_that_is_not_there_is_named(two: Path, serve: Any) -> None:
    server = serve(two)
    status, told = server.admin("POST", "/v1/snapshots/third/activate")
    assert status == 404 and "first, second" in told["error"]
    assert server.admin("POST", "/v1/snapshots/..%2Ffirst/activate")[0] in (400, 404)


def test_a_canary_gets_its_share_of_users_always_the_same_ones_and_the_shadow_shows_nothing(two: Path, serve: Any) -> None:
    server = serve(two)
    assert server.admin("PUT", "/v1/routes", {"canary": "second", "weight": 0.3})[0] == 200
    got = {user: server.rank(user)["snapshot_id"] for user in range(300)}
    assert 0.2 < sum(name == "second" for name in got.values()) / 300 < 0.4
    assert got == {user: server.rank(user)["snapshot_id"] for user in range(300)}
    assert server.admin("PUT", "/v1/routes", {"shadow": "second", "share": 1.0})[0] == 200
    assert {server.rank(user)["snapshot_id"] for user in range(50)} == {"first"}
    page = server.call("GET", "/metrics")[1].decode()
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(values['recsys_rank_by_snapshot_total{part="canary"}']) > 100
    assert float(values['recsys_shadow_total{outcome="scored"}']) > 0 and float(values["recsys_shadow_overlap_count"]) > 0


def test_routes_to_nowhere_are_refused_and_nothing_changes(two: Path, serve: Any) -> None:
    server = serve(two)
    assert server.admin("PUT", "/v1/routes", {"canary": "third", "weight": 0.3})[0] == 404
    for body in ({"canary": 5}, {"weight": 2, "canary": "second"}, {"weight": 0.5}, {"odd": 1}, [], "x"):
        assert server.admin("PUT", "/v1/routes", body)[0] == 400
    (two / "second" / "ranker.onnx").write_bytes(b"damaged")
    assert server.admin("PUT", "/v1/routes", {"canary": "second", "weight": 0.5})[0] == 409
    assert {server.rank(user)["snapshot_id"] for user in range(30)} == {"first"}


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_ends_of_the_weight_are_nobody_and_everybody(weight: float) -> None:
    routes = TrafficSplit("c", weight)
    assert all(routes.is_canary(bytes([n, n])) == (weight == 1.0) for n in range(256))


def test_routes_that_are_none_are_refused() -> None:
    assert parse_traffic_split(json.loads("{}")) == TrafficSplit()
    with pytest.raises(UsageError, match="no canary"):
        parse_traffic_split({"weight": 0.1})
    with pytest.raises(UsageError, match="from 0 to 1"):
        parse_traffic_split({"canary": "c", "weight": True})
