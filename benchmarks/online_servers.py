"""Start and stop the servers that are compared, each on the same snapshot, each with two workers of one thread."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import ROOT
from online_load import PATHS, body

sys.path.insert(0, str(ROOT / "tools"))
from model_servers import get, install

TOKEN = "for the benchmark only"


@contextmanager
def ours(snapshots: Path, scratch: Path, port: int, workers: int = 2, code: Path = ROOT, **settings: str) -> Iterator[int]:
    """Start our server, or the build of ``code``, with the exposure log on, as in production; settings are of [online]."""
    command = [sys.executable, "-c", "from recsys_batch.cli import main; main()", "serve", "--snapshots", str(snapshots)]
    options = ["--port", str(port), "--workers", str(workers), "--exposures", str(scratch / f"exposures-{port}")]
    options += [word for name, value in settings.items() for word in ("--set", f"online.{name}={value}")]
    env = {**os.environ, "RECSYS_BATCH_ADMIN_TOKEN": TOKEN, "PYTHONPATH": str(code)}
    with _running([*command, *options], env, scratch / f"ours-{port}.log", lambda: get(port, "/readyz") == 200):
        yield port


@contextmanager
def torchserve(snapshot: Path, weights: Path, scratch: Path, port: int) -> Iterator[int]:
    bin_folder, peers = install("torchserve").parent, ROOT / "benchmarks" / "peers"
    store = scratch / "model-store"
    store.mkdir()
    archive = ["--model-name", "rerank", "--version", "1", "--handler", str(peers / "torchserve_handler.py")]
    files = ["--extra-files", str(peers / "lookup.py"), "--export-path", str(store), "--force"]
    subprocess.run([str(bin_folder / "torch-model-archiver"), *archive, *files], check=True)
    addresses = {"inference_address": port, "management_address": port + 1, "metrics_address": port + 2}
    lines = [f"{name}=http://127.0.0.1:{number}" for name, number in addresses.items()]
    model = {"minWorkers": 2, "maxWorkers": 2, "batchSize": 16, "maxBatchDelay": 2, "responseTimeout": 120, "marName": "rerank.mar"}
    lines += [f"model_store={store}", "load_models=all", "job_queue_size=1000", "disable_token_authorization=true"]
    lines.append(f"models={json.dumps({'rerank': {'1': {'defaultVersion': True, **model}}})}")
    (scratch / "config.properties").write_text("\n".join(lines) + "\n")
    env = {**os.environ, "PEER_SNAPSHOT": str(snapshot), "PEER_WEIGHTS": str(weights), "OMP_NUM_THREADS": "1"}
    env |= {"PATH": f"{bin_folder}:{os.environ['PATH']}", "LOG_LOCATION": str(scratch), "METRICS_LOCATION": str(scratch)}
    env.pop("PYTHONPATH", None)
    command = [
        str(bin_folder / "torchserve"),
        "--start",
        "--foreground",
        "--disable-token-auth",
        "--ts-config",
        str(scratch / "config.properties"),
    ]
    with _running(command, env, scratch / "torchserve.log", lambda: ask("torchserve", port, 1) is not None):
        yield port


@contextmanager
def triton(snapshot: Path, weights: Path, scratch: Path, port: int) -> Iterator[int]:
    bin_folder, peers = install("triton").parent, ROOT / "benchmarks" / "peers"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    command = [str(bin_folder / "python"), str(peers / "triton_server.py"), str(snapshot), str(port)]
    with _running(command, env, scratch / "triton.log", lambda: ask("triton", port, 1) is not None):
        yield port


def admin(port: int, method: str, path: str) -> int | None:
    return _call(port, method, path, None, {"authorization": f"Bearer {TOKEN}"})[0]


def ask(kind: str, port: int, user: int) -> list[int] | None:
    """Ask a server for the ten items of a user; None where it does not answer."""
    status, answer = _call(port, "POST", PATHS[kind], body(kind, user), {"content-type": "application/json"})
    if status != 200:
        return None
    if kind in ("ours", "before"):
        return [item["item_id"] for item in answer["items"]]
    if kind == "triton":
        return next(list(output["data"]) for output in answer["outputs"] if output["name"] == "items")
    return list(answer["items"])


def _call(port: int, method: str, path: str, raw: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int | None, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=150)
    try:
        connection.request(method, path, raw, headers or {})
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text[:1] in (b"{", b"[") else text
    except (OSError, http.client.HTTPException):
        return None, None
    finally:
        connection.close()


@contextmanager
def _running(command: list[str], env: dict[str, str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True, cwd=log.parent)
    try:
        until = time.monotonic() + 120
        while not ready():
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command[0]} is not ready; {log} ends:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The group that the process was started with."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
