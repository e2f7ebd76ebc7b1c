"""A small snapshot of made-up data with a real ranker, and a server that answers from it."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.snapshot import reader
from recsys_batch.online.snapshot.reader import Snapshot, open_snapshot
from recsys_batch.online.snapshot.repository import set_current
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.registry.bundle import RANKER_PREFIX, select_ranker_weights

N_USERS, N_ITEMS, DIM, N_CANDIDATES = 300, 500, 16, 60
TOKEN = "for tests only"


def small_ranker(seed: int = 1) -> bytes:
    """A random reference ranker as ONNX."""
    from recsys_batch.model.onnx_export import export_ranker_onnx

    return export_ranker_onnx({RANKER_PREFIX + name: array for name, array in small_ranker_weights(seed).items()})


def small_ranker_weights(seed: int = 1) -> dict[str, np.ndarray]:
    """The same ranker's weights."""
    import torch

    from recsys_batch.model.ranker import RankerParameters

    params = RankerParameters.initialize(DIM, len(FeatureSpec.default().names), seed)
    params.output += 0.2 * torch.randn(params.output.shape, generator=torch.Generator().manual_seed(seed))
    params.gate = 1.0
    return select_ranker_weights(params.to_arrays())


@pytest.fixture(scope="session")
def ranker() -> bytes:
    return small_ranker()


@pytest.fixture(scope="session")
def ranker_weights() -> dict[str, np.ndarray]:
    return small_ranker_weights()


@pytest.fixture
def make(tmp_path: Path, ranker: bytes, ranker_weights: dict[str, np.ndarray]) -> Callable[..., Path]:
    """Writes a snapshot of an id into a folder of snapshots of this test; the folder."""

    def write(snapshot_id: str = "first", *, with_ranker: bool = True, **sizes: int) -> Path:
        wanted: dict[str, Any] = {"users": N_USERS, "items": N_ITEMS, "dim": DIM, "candidates": N_CANDIDATES, **sizes}
        if with_ranker:
            wanted |= {"ranker": ranker, "ranker_weights": ranker_weights}
        make_snapshot(tmp_path / "snapshots", snapshot_id=snapshot_id, **wanted)
        return tmp_path / "snapshots"

    return write


@pytest.fixture(scope="session", params=["weights", "weights in numpy", "onnx"])
def snapshot(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ranker: bytes, ranker_weights: dict[str, np.ndarray]
) -> Iterator[Snapshot]:
    """Read only; with the reference ranker's weights, also as an install without compiled code ranks by them, and with another ranker,
    which is an ONNX model alone.
    """
    folder = tmp_path_factory.mktemp("snapshots")
    sizes = {"users": N_USERS, "items": N_ITEMS, "dim": DIM, "candidates": N_CANDIDATES}
    weights = ranker_weights if request.param != "onnx" else None
    make_snapshot(folder, snapshot_id="first", ranker=ranker, ranker_weights=weights, **sizes)
    with pytest.MonkeyPatch.context() as patches:
        if request.param == "weights in numpy":
            patches.setattr(reader, "is_compiled", lambda: False)
        found = open_snapshot(folder / "first")
    yield found
    found.close()


@dataclass
class Served:
    """A server of this test's own."""

    port: int
    process: subprocess.Popen[bytes]
    snapshots: Path
    url: str = ""
    grpc_url: str = ""

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any, dict[str, str]]:
        """(status, parsed body, headers); bytes are sent as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, raw, headers or {})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(text) if "json" in found.get("content-type", "") else text, found

    def admin(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        status, told, _ = self.call(method, path, body, {"authorization": f"Bearer {TOKEN}"})
        return status, told

    def rank(self, user_id: Any, **more: Any) -> Any:
        status, told, _ = self.call("POST", "/v1/rank", {"user_id": user_id, **more})
        assert status == 200, told
        return told

    def workers(self) -> list[int]:
        status, told = self.admin("GET", "/v1/snapshots")
        assert status == 200
        return sorted(worker["pid"] for worker in told["workers"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Redis:
    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        server = shutil.which("redis-server")
        assert server, "these tests need redis-server (Debian's package redis-server)"
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self.process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
        for _ in range(500):
            try:
                if redis.Redis.from_url(self.url).ping():
                    return
            except redis.RedisError:
                time.sleep(0.01)
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


def wait_until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What ``what`` returns once it is true and raises nothing."""
    until, last = time.monotonic() + seconds, None
    while time.monotonic() < until:
        try:
            found = what()
        except (OSError, http.client.HTTPException, AssertionError) as error:
            last = error
        else:
            if found:
                return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s; last: {last!r}")


class Servers:
    """Starts servers, and ends them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def __call__(self, snapshots: Path, *options: str, ready: bool = True, tls: bool = False, **environment: str) -> Served:
        port = free_port()
        command = [sys.executable, "-c", "from recsys_batch.cli import main; main()", "serve", "--snapshots", str(snapshots)]
        given = ["--port", str(port), "--set", "online.poll_ms=20", *options]
        workers = [] if "--workers" in options else ["--workers", "1"]
        env = {**os.environ, "RECSYS_BATCH_ADMIN_TOKEN": TOKEN, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
        with (self._folder / f"serve-{port}.log").open("wb") as log:
            process = subprocess.Popen([*command, *given, *workers], env=env, cwd=self._folder, stderr=log)
        self._started.append(process)
        served = Served(port, process, snapshots)
        if not tls:
            path = "/readyz" if ready else "/healthz"
            wait_until(lambda: served.call("GET", path)[0] == 200, 60)
        return served

    def end(self) -> None:
        for process in self._started:
            process.send_signal(signal.SIGTERM)
        for process in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Servers]:
    """Servers of this test's own."""
    servers = Servers(tmp_path)
    yield servers
    servers.end()


@pytest.fixture(scope="session")
def servers() -> type[Servers]:
    """To start servers that outlive a test."""
    return Servers


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory, ranker: bytes, ranker_weights: dict[str, np.ndarray]) -> Iterator[Served]:
    """Of two workers; nobody changes it."""
    folder = tmp_path_factory.mktemp("shared")
    sizes = {"users": N_USERS, "items": N_ITEMS, "dim": DIM, "candidates": N_CANDIDATES}
    make_snapshot(folder / "snapshots", snapshot_id="first", ranker=ranker, ranker_weights=ranker_weights, **sizes)
    set_current(folder / "snapshots", "first")
    servers = Servers(folder)
    yield servers(folder / "snapshots", "--workers", "2")
    servers.end()


@pytest.fixture
def current() -> Callable[[Path, str], None]:
    """Makes a snapshot the current one."""
    return set_current


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., Any]:
    """Calls something until it is true."""
    return wait_until


@pytest.fixture(scope="session")
def find_port() -> Callable[[], int]:
    """Finds a port that nobody has."""
    return free_port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    """A redis-server of this test's own."""
    started = Redis(free_port(), tmp_path)
    started.start()
    yield started
    started.kill()
