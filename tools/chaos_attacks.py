"""Attacks on a running server: each does its harm, checks what was promised for it, and leaves all as it was."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import redis
from chaos_load import GRPC_METHOD, TOKEN, Answers, ask_grpc, call
from chaos_servers import N_USERS, SERVE, Server, Store, environment_of

from recsys_batch.online.snapshot.repository import set_current


@dataclass
class Chaos:
    """What the attacks share: two servers, the store of one of them, and the answers so far."""

    files: Server
    stored: Server
    store: Store
    answers: Answers

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.answers.fault(what)

    def eventually(self, holds: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(OSError, ValueError, KeyError, redis.RedisError):
                if holds():
                    return
            time.sleep(0.1)
        self.answers.fault(f"not within {seconds:g} s: {what}")


def send_slowly(chaos: Chaos) -> None:
    """Open 200 connections that send a byte of their body, and no more, and 100 gRPC calls without a message."""
    paths = ("/v1/rank", "/v1/feedback", "/v2/models/recommend/infer", "/v1/snapshots/rollback", "/v1/models/recommend:predict")
    with ExitStack() as held:
        for n in range(200):
            sender = held.enter_context(socket.create_connection(("127.0.0.1", chaos.files.port), 10))
            head = f"POST {paths[n % len(paths)]} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 1000\r\n\r\n"
            with suppress(OSError):
                sender.sendall(head.encode() + b"{")
        channel, over = held.enter_context(grpc.insecure_channel(f"127.0.0.1:{chaos.files.grpc_port}")), threading.Event()
        held.callback(over.set)
        for _ in range(100):
            channel.stream_unary(GRPC_METHOD).future(iter(over.wait, True))
        time.sleep(4)
        chaos.check((status := ask_grpc(chaos.files.grpc_port)) == "OK", f"gRPC answers {status} beside calls without a message")
        time.sleep(4)


def vanish(chaos: Chaos) -> None:
    """Go away in the middle of a body, before an answer, and after a wish for a WebSocket."""
    body = json.dumps({"user_id": 5}).encode()
    whole = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    upgrade = b"GET /v1/rank HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    upgrade += b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    with chaos.answers.promised("503"):  # a hundred whole requests come at once
        for n in range(300):
            with socket.create_connection(("127.0.0.1", chaos.files.port), 10) as client:
                client.sendall((whole[:-3], whole, upgrade)[n % 3])
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # cut, not closed
    text = str(call(chaos.files.port, "GET", "/metrics")[1])
    failed = [line for line in text.splitlines() if line.startswith("recsys_http_requests_total") and 'status="500"' in line]
    chaos.check(not failed, f"clients that went away are counted as {failed}")


def kill_worker(chaos: Chaos) -> None:
    with chaos.answers.promised("lost"):
        before = chaos.files.workers()
        os.kill(before[0], signal.SIGKILL)
        chaos.eventually(lambda: len(set(chaos.files.workers()) - {before[0]}) == len(before), "a worker in the place of a killed one")


def kill_helpers(chaos: Chaos) -> None:
    """Kill every process beside the workers: the gRPC server, the log's writers."""
    workers = chaos.files.workers()
    helpers = [pid for pid in chaos.files.processes() if pid not in (*workers, chaos.files.process.pid)]
    with chaos.answers.promised("503"):
        for pid in helpers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        chaos.eventually(lambda: ask_grpc(chaos.files.grpc_port) == "OK", "gRPC is back")
    chaos.check(set(workers) == set(chaos.files.workers()), "workers ended with the helpers")


def lose_store(chaos: Chaos) -> None:
    """Empty Redis under a running server, fill it again; then kill it, and start an empty one."""
    with chaos.answers.promised("503"):
        chaos.store.forget()
        chaos.eventually(lambda: call(chaos.stored.port, "GET", "/readyz")[0] == 503, "/readyz says that the store lost its data")
        answer = call(chaos.stored.port, "POST", "/v1/rank", {"user_id": 5})[1]
        chaos.check(answer["degraded"] == "store_unavailable", f"a user whose list is lost is answered as {answer['degraded']}")
        chaos.store.fill()
        chaos.eventually(lambda: call(chaos.stored.port, "GET", "/readyz")[0] == 200, "/readyz is well again")
        chaos.store.kill()
        time.sleep(2)
        chaos.store.start()
        chaos.store.fill()
        chaos.eventually(lambda: call(chaos.stored.port, "GET", "/readyz")[0] == 200, "/readyz is well after a restart of Redis")


def fill_disk(chaos: Chaos) -> None:
    """Leave no room for the log."""
    ballast = chaos.files.exposures / "ballast"
    with chaos.answers.promised("503"):  # of feedback
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(2**16))
        time.sleep(6)
        ballast.unlink()


def skew_clocks(chaos: Chaos) -> None:
    """Activate snapshots of the day after tomorrow and of last year."""
    for name in ("tomorrow", "lastyear", "first"):
        status, answer = call(chaos.files.port, "POST", f"/v1/snapshots/{name}/activate")
        chaos.check(status == 200, f"activation of {name}: {status} {answer}")
        time.sleep(1)


def activate_at_once(chaos: Chaos) -> None:
    """Let six admins choose at the same moment: who is told 200 last has it."""
    done: list[tuple[float, str, int]] = []

    def choose(name: str) -> None:
        status, _ = call(chaos.files.port, "POST", f"/v1/snapshots/{name}/activate")
        done.append((time.monotonic(), name, status))

    threads = [threading.Thread(target=choose, args=(name,)) for name in random.sample(["first", "second", "third"] * 2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(status for _, _, status in done)
    chaos.check(set(statuses) <= {200, 409} and 200 in statuses, f"activations at once: {statuses}")
    winner = max((at, name) for at, name, status in done if status == 200)[1]
    time.sleep(1)
    chaos.check(chaos.files.current() == winner, f"{winner} was activated, and {chaos.files.current()} is current")


def garble_current(chaos: Chaos) -> None:
    """Make CURRENT unreadable for a while."""
    path = chaos.files.snapshots / "CURRENT"
    path.write_bytes(b"\xff\xfe/..")
    time.sleep(3)
    set_current(chaos.files.snapshots, "second")
    chaos.eventually(lambda: _currents(chaos) == {"second"}, "workers follow CURRENT again")


def damage_current(chaos: Chaos) -> None:
    """Damage the current snapshot's files in place, then kill a worker: the new one starts from another."""
    for name in ("second", "first"):
        call(chaos.files.port, "POST", f"/v1/snapshots/{name}/activate")
    victim = chaos.files.snapshots / "first" / "popular.safetensors"
    whole = victim.read_bytes()
    with chaos.answers.promised("lost"):
        victim.write_bytes(whole[:100] + bytes(len(whole) - 100))
        before = chaos.files.workers()
        os.kill(before[0], signal.SIGKILL)
        chaos.eventually(lambda: "second" in _currents(chaos, but=before), "a new worker starts from PREVIOUS")
    victim.write_bytes(whole)
    status, answer = call(chaos.files.port, "POST", "/v1/snapshots/second/activate")
    chaos.check(status == 200, f"activation of a whole snapshot after a damaged one: {status} {answer}")


def ask_heavily(chaos: Chaos) -> None:
    """Ask for whole lists of a thousand users at a time, and go away before the answer."""
    users = random.sample(range(N_USERS), 1000)
    body = json.dumps({"inputs": [{"name": "user_id", "datatype": "INT64", "shape": [1000], "data": users}]}).encode()
    head = b"POST /v2/models/recommend/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with chaos.answers.promised("503"):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", chaos.files.port), 10) as client:
                client.sendall(head + body)
                time.sleep(0.1)
        until = time.monotonic()
        status, _ = call(chaos.files.port, "POST", "/v1/rank", {"user_id": 5})
        chaos.check(status == 200 and time.monotonic() - until < 5, "requests wait for clients that have left")


def serve_twice(chaos: Chaos) -> None:
    """Start another server on the same address."""
    command = [*SERVE, "--snapshots", str(chaos.files.snapshots), "--port", str(chaos.files.port), "--workers", "1"]
    second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment_of())
    try:
        message = second.communicate(timeout=20)[1].strip()
    except subprocess.TimeoutExpired:
        second.kill()
        message = "it runs"
    chaos.check(second.returncode == 2, f"a second server on the port: {message[-200:]}")


ATTACKS = (
    send_slowly,
    vanish,
    kill_worker,
    kill_helpers,
    lose_store,
    fill_disk,
    skew_clocks,
    activate_at_once,
    garble_current,
    damage_current,
    ask_heavily,
    serve_twice,
)


def kill_main(chaos: Chaos) -> None:
    """Kill the server's first process: all others end with it."""
    processes = chaos.files.processes()
    chaos.files.process.kill()
    chaos.files.process.wait()
    chaos.eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "processes end with their parent", 10)


def _currents(chaos: Chaos, but: Sequence[int] = ()) -> set[str]:
    """What the workers answer from, those with other process ids only."""
    workers = call(chaos.files.port, "GET", "/v1/snapshots")[1]["workers"]
    return {worker["current"] for worker in workers if worker["pid"] not in but}
