"""Servers to attack: started, with snapshots of made-up data, a Redis and a small disk of their own."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from chaos_load import TOKEN, call
from process_usage import list_family, read_command, read_status, read_usage

from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.snapshot.redis_store import connect, mark_complete, write_records
from recsys_batch.ranking.features import FeatureSpec

ROOT = Path(__file__).parent.parent
N_USERS, N_ITEMS, DIM = 5_000, 5_000, 32
LOG_DISK_MB = 24
STORED = "stored"
"""Snapshot whose lists are in Redis."""

_KEEP_SECONDS = 3600


@dataclass
class Server:
    """A server that is attacked, and where its log is."""

    port: int
    grpc_port: int
    process: subprocess.Popen[bytes]
    snapshots: Path
    exposures: Path
    log: Path

    def workers(self) -> list[int]:
        return [worker["pid"] for worker in call(self.port, "GET", "/v1/snapshots")[1]["workers"]]

    def current(self) -> str:
        return str(call(self.port, "GET", "/v1/snapshots")[1]["current"])

    def memory_mb(self) -> int:
        """Sum the resident memory of the workers."""
        return sum(read_status(pid).get("VmRSS", 0) for pid in self.workers()) // 1024

    def n_descriptors(self) -> int:
        """Count the open descriptors of the workers."""
        return sum(usage.descriptors for pid in self.workers() if (usage := read_usage(pid)))

    def processes(self) -> dict[int, str]:
        """Find the server's processes and their command lines."""
        return {pid: read_command(pid) for pid in list_family(self.process.pid)}


SERVE = [sys.executable, "-c", "from recsys_batch.cli import main; main()", "serve"]


def environment_of(**more: str) -> dict[str, str]:
    return {**os.environ, "RECSYS_BATCH_ADMIN_TOKEN": TOKEN, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def server(snapshots: Path, exposures: Path, log: Path, **environment: str) -> Iterator[Server]:
    port, grpc_port = free_port(), free_port()
    command = [*SERVE, "--snapshots", str(snapshots), "--port", str(port), "--grpc-port", str(grpc_port), "--workers", "2"]
    # A Redis that shares the cores with all of this is slow, which is answered as one that is away.
    command += ["--exposures", str(exposures), "--set", "online.poll_ms=100", "--set", "online.store_timeout_ms=500"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment_of(**environment))
    started = Server(port, grpc_port, process, snapshots, exposures, log)
    try:
        until = time.monotonic() + 60
        while True:
            with suppress(OSError):
                if call(port, "GET", "/readyz")[0] == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Store:
    """A Redis on a port of its own, and the records that belong into it."""

    def __init__(self) -> None:
        self._port, self._records = free_port(), list[tuple[bytes, bytes]]()
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start it, empty."""
        binary = shutil.which("redis-server")
        if binary is None:
            raise SystemExit("this needs redis-server (Debian's package redis-server)")
        command = [binary, "--bind", "127.0.0.1", "--port", str(self._port), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(500):
            with suppress(redis.RedisError):
                if redis.Redis(port=self._port).ping():
                    return
            time.sleep(0.01)
        raise SystemExit("redis-server did not start")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Remove all its data."""
        redis.Redis(port=self._port).flushall()

    def put(self, records: Iterator[tuple[bytes, bytes]]) -> int:
        """Keep a snapshot's records, put them in, and return how many there are."""
        self._records = list(records)
        return self.fill()

    def fill(self) -> int:
        """Put the kept records in, again."""
        client = connect(self.url)
        n_records = write_records(client, STORED, self._records, _KEEP_SECONDS)
        mark_complete(client, STORED, n_records, _KEEP_SECONDS)
        client.close()
        return n_records


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of ``LOG_DISK_MB`` on the folder; whether that is allowed here."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={LOG_DISK_MB}m", "tmpfs", str(folder)]
    is_mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def make_snapshots(folder: Path, names: dict[str, dt.timedelta], **options: Any) -> None:
    for number, (name, shift) in enumerate(names.items()):
        make_snapshot(folder, snapshot_id=name, users=N_USERS, items=N_ITEMS, dim=DIM, seed=number, ranker=_ranker(), **options)
        manifest = folder / name / "manifest.json"
        values = json.loads(manifest.read_text())
        made = dt.datetime.fromisoformat(values["generated_at"]) + shift
        manifest.write_text(json.dumps({**values, "generated_at": made.isoformat(), "run_date": made.date().isoformat()}))


def _ranker() -> bytes:
    params = RankerParameters.initialize(DIM, len(FeatureSpec.default().names), 1)
    params.gate = 1.0
    return export_ranker_onnx(params.to_arrays())
