"""Clients of a server under attack: threads that go on asking, and judge every answer."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from recsys_batch.online.oip import grpc_predict_v2_pb2 as messages

TOKEN = "for the chaos only"
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
HUGE = 2**70
_NEUTRAL = {"timestamp": 1_700_000_000}
_GRACE_SECONDS = 3.0  # after an attack, in which what it promised may still come


@dataclass(frozen=True)
class Kind:
    """Requests of one kind.

    Attributes:
        expected: statuses that are right at any time.
    """

    name: str
    method: str
    path: str
    body: Any
    expected: frozenset[int]


def kinds(n_users: int) -> list[Kind]:
    """Make a mixed lot of requests, also wrong ones."""
    user = random.randrange(n_users)

    def post(name: str, path: str, body: Any, *expected: int) -> Kind:
        return Kind(name, "POST", path, body, frozenset(expected))

    def fetch(name: str, path: str, *expected: int) -> Kind:
        return Kind(name, "GET", path, None, frozenset(expected))

    inputs = [{"name": "user_id", "datatype": "INT64", "shape": [2], "data": [user, 7]}]
    event = {"user_id": user, "item_id": 3, "event_type": "click"}
    return [
        post("rank", "/v1/rank", {"user_id": user, "k": 10, "context": _NEUTRAL}, 200),
        post("rank", "/v1/rank", {"user_id": user, "k": 10, "context": _NEUTRAL}, 200),
        post("rank", "/v1/rank", {"user_id": user, "k": 10, "context": _NEUTRAL}, 200),
        post("rank in a session", "/v1/rank", {"user_id": user, "context": {"session_item_ids": [1, 2, HUGE]}}, 200),
        post("rank a stranger", "/v1/rank", {"user_id": "somebody"}, 200),
        post("rank a huge id", "/v1/rank", {"user_id": HUGE, "context": {"mood": HUGE}}, 200),
        post("rank, no JSON", "/v1/rank", b"{", 400),
        post("rank too many", "/v1/rank", {"user_id": user, "k": 100_000}, 400),
        fetch("topk", f"/v1/users/{user}/topk?k=5", 200),
        fetch("topk of nobody", f"/v1/users/{HUGE}/topk", 404),
        fetch("user", f"/v1/users/{user}", 200),
        fetch("item", "/v1/items/3", 200),
        post("feedback", "/v1/feedback", {"events": [event]}, 202),
        post("feedback of a guest", "/v1/feedback", {"events": [{**event, "user_id": "guest"}]}, 202, 400, 422),
        post("/v2 recommend", "/v2/models/recommend/infer", {"inputs": inputs}, 200),
        post("/v2, no such model", "/v2/models/nothing/infer", {"inputs": inputs}, 404),
        fetch("no such path", "/v1/nothing", 404),
        fetch("admin without a token", "/v1/snapshots", 401),
        Kind("HEAD health", "HEAD", "/healthz", None, frozenset({200})),
        fetch("metrics", "/metrics", 200),
    ]


class Answers:
    """Counts of answers by kind and status, and what no attack explains."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self._lock = threading.Lock()
        self._promised: frozenset[str] = frozenset()
        self._until = 0.0
        self._lists: dict[tuple[str, int], tuple[Any, ...]] = {}

    @contextmanager
    def promised(self, *what: str) -> Iterator[None]:
        """Accept these (statuses, or "lost" for connections that were cut) during the block and a moment after it."""
        self._promised, self._until = frozenset(what), float("inf")
        try:
            yield
        finally:
            self._until = time.monotonic() + _GRACE_SECONDS

    def add(self, kind: str, got: str, expected: frozenset[int], excerpt: str = "") -> None:
        with self._lock:
            self.counts[kind, got] += 1
            is_promised = got in self._promised and time.monotonic() < self._until
            if got not in map(str, expected) and not is_promised:
                self.fault(f"{kind}: {got} {excerpt[:200]}")

    def fault(self, text: str) -> None:
        """Note what should not have been."""
        self.faults.append(text)

    def add_list(self, answer: dict[str, Any]) -> None:
        """Check that a user's list from a snapshot is the same whenever it is asked for, where nothing is degraded."""
        if answer["degraded"] is not None:
            return
        key, items = (answer["snapshot_id"], answer["user_id"]), tuple(item["item_id"] for item in answer["items"])
        with self._lock:
            if self._lists.setdefault(key, items) != items:
                self.fault(f"rank: user {key[1]} has two lists in snapshot {key[0]}")


class Client(threading.Thread):
    """One kept connection that asks one thing after the other, and again after it was cut."""

    def __init__(self, port: int, name: str, n_users: int, answers: Answers, stop: threading.Event) -> None:
        super().__init__(name=name)
        self._port, self._n_users, self._answers, self._stopping = port, n_users, answers, stop

    def run(self) -> None:
        connection = self._connect()
        while not self._stopping.is_set():
            for kind in random.sample(kinds(self._n_users), 8):
                try:
                    status, body = _ask(connection, kind)
                except (OSError, http.client.HTTPException) as error:
                    self._answers.add(f"{self.name} {kind.name}", "lost", kind.expected, repr(error))
                    connection.close()
                    connection = self._connect()
                    time.sleep(0.05)
                    continue
                self._answers.add(f"{self.name} {kind.name}", str(status), kind.expected, body.decode(errors="replace"))
                if kind.name == "rank" and status == 200:
                    self._answers.add_list(json.loads(body))
                time.sleep(0.002)
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=15)


def _ask(connection: http.client.HTTPConnection, kind: Kind) -> tuple[int, bytes]:
    body = kind.body if kind.body is None or isinstance(kind.body, bytes) else json.dumps(kind.body)
    connection.request(kind.method, kind.path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


def call(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Ask as the admin, once; (status, parsed answer)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=150)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), {"authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if "json" in (response.getheader("content-type") or "") else text.decode()
    finally:
        connection.close()


@contextmanager
def clients(ports: dict[str, int], n_each: int, n_users: int, answers: Answers) -> Iterator[None]:
    """Keep clients of every server asking during the block."""
    stop = threading.Event()
    threads = [Client(port, name, n_users, answers, stop) for name, port in ports.items() for _ in range(n_each)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def ask_grpc(port: int) -> str:
    """Ask for a user's list over gRPC; the name of the status."""
    request = messages.ModelInferRequest(model_name="recommend")
    request.inputs.add(name="user_id", datatype="INT64", shape=[1]).contents.int64_contents.append(5)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(GRPC_METHOD)(request.SerializeToString(), timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
