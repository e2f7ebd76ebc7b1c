"""Run load against a server: wrk's closed loop, the open loop, gRPC, and activations meanwhile; a run prints a line and returns figures."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from measuring import ROOT
from online_servers import RunningServer, admin

sys.path.insert(0, str(ROOT / "tools"))
from background import in_background
from process_usage import cpu_seconds

GRPC_LOAD = ROOT / "benchmarks" / "online_grpc.py"
Figures = TypeVar("Figures")


def take_turns(servers: Mapping[str, RunningServer], n_rounds: int, run: Callable[[RunningServer], Figures]) -> dict[str, list[Figures]]:
    """Run each server once a round, forwards and backwards in turn, and return the rounds of each server.

    Two that stand beside each other, as ours and the build before, are measured one right after the other in each round, and neither is
    always the first.
    """
    figures: dict[str, list[Figures]] = {name: [] for name in servers}
    for number in range(n_rounds):
        for name in list(servers)[:: -1 if number % 2 else 1]:
            figures[name].append(run(servers[name]))
    return figures


def warm_up(server: RunningServer, users: int, seconds: float) -> None:
    """Ask a server at 8 and at 32 connections, ``seconds`` each: compiled code, mapped pages, batches of every size."""
    for connections in (8, 32):
        closed(server, connections, seconds, users)


def closed(server: RunningServer, connections: int, seconds: float, users: int) -> dict[str, float]:
    """Run wrk's closed loop, one thread.

    Returns:
        qps; p50, p99, max in ms; requests; not_200, socket_errors; server_cpu_us and load_cpu_us, the processor time that all processes of
        the server, and wrk, took per request.
    """
    script = str(ROOT / "benchmarks" / "online_wrk.lua")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", script, f"http://127.0.0.1:{server.port}"]
    env = {**os.environ, "RECSYS_KIND": server.kind, "RECSYS_USERS": str(users)}
    server_before, load_before = cpu_seconds(server.pid), _children_cpu_seconds()
    output = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    n_requests = max(measured["requests"], 1)
    measured["server_cpu_us"] = round((cpu_seconds(server.pid) - server_before) / n_requests * 1e6, 1)
    measured["load_cpu_us"] = round((_children_cpu_seconds() - load_before) / n_requests * 1e6, 1)
    n_failed = measured["not_200"] + measured["socket_errors"]
    cpu = f"cpu {measured['server_cpu_us']:6.0f} us, load {measured['load_cpu_us']:4.0f} us"
    failed = f"   {n_failed:.0f} failed" if n_failed else ""
    speed = f"c={connections:<3}{measured['qps']:9.0f} req/s   p99 {measured['p99']:8.2f} ms"
    print(f"  {server.kind:<11} {speed}   {cpu}{failed}", flush=True)
    return measured


def opened(
    server: RunningServer, rate: float, seconds: float, users: int, connections: int = 128, *options: str, timeout: float | None = None
) -> dict[str, Any]:
    """Run the open loop at a rate; options are of online_load.py."""
    command = [sys.executable, str(ROOT / "benchmarks" / "online_load.py"), "--kind", server.kind, "--port", str(server.port)]
    command += ["--rate", str(rate), "--seconds", str(seconds), "--users", str(users), "--connections", str(connections), *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout).stdout
    measured: dict[str, Any] = json.loads(output)
    print(
        f"  {server.kind:<11} {rate:.0f} req/s: {measured['statuses']}, "
        f"p99 {measured['ms']['p99']} ms ({measured['ms_since_sent']['p99']} since sent)",
        flush=True,
    )
    return measured


def grpc_closed(server: RunningServer, seconds: float, users: int) -> dict[str, Any]:
    """Run the closed loop of 32 calls over gRPC; calls_per_s, p50 and p99 in ms, codes."""
    command = [sys.executable, str(GRPC_LOAD), "--port", str(server.grpc_port), "--users", str(users)]
    options = ["--concurrency", "32", "--seconds", f"{seconds:g}"]
    output = subprocess.run([*command, *options], check=True, capture_output=True, text=True, timeout=seconds + 120).stdout
    measured: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    speed = f"{measured['calls_per_s']:9.0f} calls/s p99 {measured['p99']:8.2f} ms"
    print(f"  {server.kind:<11} gRPC  {speed}   {measured['codes']}", flush=True)
    return measured


@contextmanager
def activations(server: RunningServer, every_seconds: float) -> Iterator[list[dict[str, float]]]:
    """Activate the snapshots "two" and "one" in turn during the block, beginning after ``every_seconds``.

    Yields:
        A list that grows: of each activation, at, seconds since the block began, and seconds that it took.
    Raises:
        RuntimeError: an activation was not answered by 200.
    """
    done: list[dict[str, float]] = []
    failed: list[int | None] = []
    began = time.monotonic()

    def activate(stop: threading.Event) -> None:
        due = began + every_seconds
        while not stop.wait(max(0.0, due - time.monotonic())):
            at = time.monotonic()
            status = admin(server.port, "POST", f"/v1/snapshots/{('two', 'one')[len(done) % 2]}/activate")
            if status != 200:
                failed.append(status)
                return
            done.append({"at": round(at - began, 1), "seconds": round(time.monotonic() - at, 2)})
            due = max(due, time.monotonic()) + every_seconds

    with in_background(activate):
        yield done
    if failed:
        raise RuntimeError(f"activation {len(done) + 1} was answered by {failed[0]}: see the server's log")


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
