"""Open-loop load generator: requests at given times, independent of earlier answers, with latencies counted from those times.

A closed loop waits for an answer before it asks again, so a server that stalls is asked less while it does (coordinated omission).
One process, raw HTTP/1.1 over kept connections on uvloop; prints a JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import time
from array import array
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

PATHS = {
    "ours": "/v1/rank",
    "before": "/v1/rank",
    "torchserve": "/predictions/rerank",
    "torchserve_b4": "/predictions/rerank_b4",
    "triton": "/v2/models/rerank/infer",
    "pytriton": "/v2/models/rerank/infer",
}


def body(kind: str, user: int) -> bytes:
    """Build the request of a user in a server's format; ours has a context, the peers have none."""
    if kind.endswith("triton"):
        return json.dumps({"inputs": [{"name": "user_id", "datatype": "INT64", "shape": [1, 1], "data": [user]}]}).encode()
    if kind.startswith("torchserve"):
        return json.dumps({"user_id": user}).encode()
    context = {"timestamp": 1_700_000_000 + user, "device": "mobile", "session_item_ids": [user + 1, 3 * user + 7, 900_000 - user]}
    return json.dumps({"user_id": user, "k": 10, "context": context}).encode()


def request(kind: str, user: int) -> bytes:
    raw = body(kind, user)
    head = f"POST {PATHS[kind]} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


def read_requests(path: Path) -> list[bytes]:
    """Read whole requests, each after its length: eight bytes, little-endian."""
    content, requests, start = path.read_bytes(), [], 0
    while start < len(content):
        length = int.from_bytes(content[start : start + 8], "little")
        requests.append(content[start + 8 : start + 8 + length])
        start += 8 + length
    return requests


class Connection(asyncio.Protocol):
    """HTTP connection with one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load, self._buffer = load, b""
        self._due = self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, raw: bytes, due: float) -> None:
        self._due, self._sent = due, time.perf_counter()
        self._transport.write(raw)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        length = int(lower[at : lower.find(b"\r", at) if lower.find(b"\r", at) > 0 else None])
        if len(rest) >= length:
            self._buffer = rest[length:]
            self._load.answered(self, int(head[9:12]), self._due, self._sent)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost(self)


class Load:
    def __init__(self, requests: list[bytes], times: np.ndarray) -> None:
        self._requests, self._times = requests, times
        # In turn, so that the connections of every worker are used.
        self._free: deque[Connection] = deque()
        self._waiting: deque[tuple[bytes, float]] = deque()
        # Of each answer: status, when it was due, and the seconds until it came, from then and from when it was sent.
        self.statuses, self.due_times = array("H"), array("d")
        self.seconds_since_due, self.seconds_since_sent = array("d"), array("d")
        self._started_at = 0.0
        self.n_lost = self.n_sent = 0

    def answered(self, connection: Connection, status: int, due: float, sent: float) -> None:
        now = time.perf_counter()
        self.statuses.append(status)
        self.due_times.append(due - self._started_at)
        self.seconds_since_due.append(now - due)
        self.seconds_since_sent.append(now - sent)
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._free.append(connection)

    def lost(self, connection: Connection) -> None:
        self.n_lost += 1
        if connection in self._free:
            self._free.remove(connection)

    async def run(self, port: int, n_connections: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(n_connections):
            _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", port)
            self._free.append(connection)
        self._started_at = start = time.perf_counter() + 0.05
        n = len(self._times)
        while self.n_sent < n:
            now = time.perf_counter()
            while self.n_sent < n and start + self._times[self.n_sent] <= now:
                raw, due = self._requests[self.n_sent % len(self._requests)], start + self._times[self.n_sent]
                self.n_sent += 1
                if self._free:
                    self._free.popleft().send(raw, due)
                else:
                    self._waiting.append((raw, due))
            await asyncio.sleep(0.001)  # uvloop's shortest: less is none, and spins a core that the server needs
        until = time.perf_counter() + 10
        while len(self.statuses) < self.n_sent and self.n_lost == 0 and time.perf_counter() < until:
            await asyncio.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=sorted(PATHS), default="ours")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--poisson", action="store_true", help="at random times, as people come, instead of evenly spaced ones")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--window", type=float, help="seconds: percentiles of each such part of the run, too")
    parser.add_argument("--requests", type=Path, help="file of whole requests, a length of eight bytes before each, instead of --kind")
    arguments = parser.parse_args()
    draw = random.Random(7)
    if arguments.requests is not None:
        requests = read_requests(arguments.requests)
    else:
        requests = [request(arguments.kind, draw.randrange(arguments.users)) for _ in range(20_000)]
    n = int(arguments.rate * arguments.seconds)
    gaps = np.random.default_rng(7).exponential(1.0, n) if arguments.poisson else np.ones(n)
    load = Load(requests, (np.cumsum(gaps) - gaps[0]) / arguments.rate)
    gc.disable()
    uvloop.run(load.run(arguments.port, arguments.connections))
    print(json.dumps(summarize(load, arguments.window)))


def summarize(load: Load, window_seconds: float | None) -> dict[str, Any]:
    """Summarize a run: statuses, what was lost, and milliseconds of the answers with 200.

    ``ms`` counts from when a request was due, ``ms_since_sent`` from when it was sent; ``ms_late`` is what lies between, for want of a
    connection or of processor time. Of each window: ``at`` its first second, and ``ms``.
    """
    statuses, due = np.array(load.statuses), np.array(load.seconds_since_due) * 1000
    since_sent, good = np.array(load.seconds_since_sent) * 1000, statuses == 200
    summary: dict[str, Any] = {"sent": load.n_sent, "statuses": {int(status): n for status, n in Counter(load.statuses).items()}}
    summary |= {"connections_lost": load.n_lost, "unanswered": load.n_sent - len(statuses)}
    for name, column in (("ms", due[good]), ("ms_since_sent", since_sent[good]), ("ms_late", due - since_sent)):
        summary[name] = {f"p{q}": percentile(column, q) for q in (50, 90, 99, 99.9)} | {"max": percentile(column, 100)}
    if window_seconds is not None:
        numbers = np.array(load.due_times) // window_seconds
        summary["windows"] = []
        for number in np.unique(numbers):
            inside = due[(numbers == number) & good]
            n_others = int(np.sum((numbers == number) & ~good))
            figures = {"n_200": len(inside), "n_others": n_others, "p50": percentile(inside, 50), "p99": percentile(inside, 99)}
            summary["windows"].append({"at": number * window_seconds, **figures})
    return summary


def percentile(milliseconds: np.ndarray, q: float) -> float | None:
    """Compute a percentile; None of nothing."""
    return round(float(np.percentile(milliseconds, q)), 3) if len(milliseconds) else None


if __name__ == "__main__":
    main()
