"""Make the snapshots of a comparison, and start and stop its servers, each on the same snapshot, each with two workers of one thread."""

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import ROOT, python_path
from online_load import PATHS, body

from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.snapshot.repository import set_current
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.registry.bundle import select_ranker_weights

sys.path.insert(0, str(ROOT / "tools"))
from model_servers import end_session, get, install, triton_command

TOKEN = "for the benchmark only"
TORCHSERVE_BATCHES = {"torchserve": {"batchSize": 16, "maxBatchDelay": 2}, "torchserve_b4": {"batchSize": 4, "maxBatchDelay": 1}}
"""A batch that is not full waits, so that large ones are good for 32 connections and small ones for 8: it is measured with both."""


@dataclass(frozen=True)
class RunningServer:
    """A server that answers.

    Attributes:
        kind: what it is asked by, of PATHS. pid: of its first process, which started the others.
        grpc_port: 0 where it has none.
    """

    kind: str
    port: int
    pid: int
    grpc_port: int = 0


def make_snapshots(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Make (folder with the snapshots "one", which is current, and its copy "two"; the ranker's weights for torch)."""
    params = RankerParameters.initialize(arguments.dim, len(FeatureSpec.default().names), 1)
    params.output += 0.1 * torch.randn(params.output.shape, generator=torch.Generator().manual_seed(1))
    params.gate = 1.0
    arrays = params.to_arrays()
    weights = select_ranker_weights(arrays)
    np.savez(folder / "weights.npz", **weights)
    snapshots, began = folder / "snapshots", time.monotonic()
    sizes = {"users": arguments.users, "items": arguments.items, "dim": arguments.dim, "candidates": arguments.k}
    make_snapshot(snapshots, snapshot_id="one", ranker=export_ranker_onnx(arrays), ranker_weights=weights, **sizes)
    shutil.copytree(snapshots / "one", snapshots / "two", ignore=shutil.ignore_patterns(".verified"))
    manifest = json.loads((snapshots / "two" / "manifest.json").read_text())
    (snapshots / "two" / "manifest.json").write_text(json.dumps({**manifest, "snapshot_id": "two"}))
    set_current(snapshots, "one")
    print(f"two snapshots in {time.monotonic() - began:.0f} s", flush=True)
    return snapshots, folder / "weights.npz"


@contextmanager
def ours(
    snapshots: Path, scratch: Path, port: int, workers: int = 2, code: Path = ROOT, *, grpc: bool = False, **settings: str
) -> Iterator[RunningServer]:
    """Start our server, or the build of ``code``, with the exposure log on, as in production; settings are of [online].

    Args:
        scratch: gets the log of what was shown, exposures-PORT, and of the server, ours-PORT.log. grpc: the port after ``port``, too.
    """
    command = [sys.executable, "-c", "from recsys_batch.cli import main; main()", "serve", "--snapshots", str(snapshots)]
    options = ["--port", str(port), "--workers", str(workers), "--exposures", str(scratch / f"exposures-{port}")]
    options += ["--grpc-port", str(port + 1)] if grpc else []
    options += [word for name, value in settings.items() for word in ("--set", f"online.{name}={value}")]
    env = {**os.environ, "RECSYS_BATCH_ADMIN_TOKEN": TOKEN, "PYTHONPATH": python_path(code)}
    with _running([*command, *options], env, scratch / f"ours-{port}.log", lambda: get(port, "/readyz") == 200) as pid:
        yield RunningServer("ours" if code == ROOT else "before", port, pid, port + 1 if grpc else 0)


@contextmanager
def torchserve(snapshot: Path, weights: Path, scratch: Path, port: int) -> Iterator[list[RunningServer]]:
    """Start TorchServe with a model for each of TORCHSERVE_BATCHES, two workers each, of which one model is asked at a time."""
    bin_folder, peers = install("torchserve").parent, ROOT / "benchmarks" / "peers"
    store = scratch / "model-store"
    store.mkdir()
    models = {}
    for kind, batches in TORCHSERVE_BATCHES.items():
        name = PATHS[kind].rpartition("/")[2]
        archive = ["--model-name", name, "--version", "1", "--handler", str(peers / "torchserve_handler.py")]
        files = ["--extra-files", str(peers / "lookup.py"), "--export-path", str(store), "--force"]
        subprocess.run([str(bin_folder / "torch-model-archiver"), *archive, *files], check=True)
        model = {"defaultVersion": True, "minWorkers": 2, "maxWorkers": 2, "responseTimeout": 120, "marName": f"{name}.mar", **batches}
        models[name] = {"1": model}
    addresses = {"inference_address": port, "management_address": port + 1, "metrics_address": port + 2}
    lines = [f"{name}=http://127.0.0.1:{number}" for name, number in addresses.items()]
    lines += [f"model_store={store}", "load_models=all", "job_queue_size=1000", "disable_token_authorization=true"]
    lines.append(f"models={json.dumps(models)}")
    (scratch / "config.properties").write_text("\n".join(lines) + "\n")
    env = {**os.environ, "PEER_SNAPSHOT": str(snapshot), "PEER_WEIGHTS": str(weights), "OMP_NUM_THREADS": "1"}
    env |= {"PATH": f"{bin_folder}:{os.environ['PATH']}", "LOG_LOCATION": str(scratch), "METRICS_LOCATION": str(scratch)}
    env["TEMP"] = str(scratch)  # where it notes that it runs, and refuses to run a second time
    env.pop("PYTHONPATH", None)
    command = [
        str(bin_folder / "torchserve"),
        "--start",
        "--foreground",
        "--disable-token-auth",
        "--ts-config",
        str(scratch / "config.properties"),
    ]
    with _running(command, env, scratch / "torchserve.log", lambda: all(ask(kind, port, 1) for kind in TORCHSERVE_BATCHES)) as pid:
        yield [RunningServer(kind, port, pid) for kind in TORCHSERVE_BATCHES]


@contextmanager
def triton(snapshot: Path, weights: Path, scratch: Path, port: int) -> Iterator[list[RunningServer]]:
    """Start Triton's own server with a model of its Python backend, whose instances are two processes."""
    python, peers = install("triton"), ROOT / "benchmarks" / "peers"
    model = scratch / "model-repository-python" / "rerank"
    (model / "1").mkdir(parents=True)
    for file, copied in (("triton_config.pbtxt", "config.pbtxt"), ("triton_model.py", "1/model.py"), ("lookup.py", "1/lookup.py")):
        shutil.copy(peers / file, model / copied)
    env = {**os.environ, "PEER_SNAPSHOT": str(snapshot), "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    command, _ = triton_command(python, scratch, scratch, port, 2, env)
    with _running(command, env, scratch / "triton.log", lambda: ask("triton", port, 1) is not None) as pid:
        yield [RunningServer("triton", port, pid)]


@contextmanager
def pytriton(snapshot: Path, weights: Path, scratch: Path, port: int) -> Iterator[list[RunningServer]]:
    """Start Triton by pytriton, whose instances are threads of one process."""
    python, peers = install("triton"), ROOT / "benchmarks" / "peers"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    command = [str(python), str(peers / "pytriton_server.py"), str(snapshot), str(port)]
    # pytriton 0.7: the second instance sometimes connects to the first one's socket before that one listens, and it ends.
    with _running(command, env, scratch / "pytriton.log", lambda: ask("pytriton", port, 1) is not None, n_starts=3) as pid:
        yield [RunningServer("pytriton", port, pid)]


def admin(port: int, method: str, path: str) -> int | None:
    return _call(port, method, path, None, {"authorization": f"Bearer {TOKEN}"})[0]


def get_metrics(port: int) -> str:
    """Get the page of metrics of our server."""
    return str(_call(port, "GET", "/metrics")[1].decode())


def ask(kind: str, port: int, user: int) -> list[int] | None:
    """Ask a server for the ten items of a user; None where it does not answer."""
    status, answer = _call(port, "POST", PATHS[kind], body(kind, user), {"content-type": "application/json"})
    if status != 200:
        return None
    if kind in ("ours", "before"):
        return [item["item_id"] for item in answer["items"]]
    if kind.endswith("triton"):
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
def _running(command: list[str], env: dict[str, str], log: Path, ready: Callable[[], bool], n_starts: int = 1) -> Iterator[int]:
    """Run a command until the block ends, and yield its process id when it is ready; one that ends before is started ``n_starts`` times.

    Raises:
        SystemExit: it ended, or was not ready after two minutes; with the end of its log.
    """
    for n_left in reversed(range(n_starts)):
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True, cwd=log.parent)
        try:
            until = time.monotonic() + 120
            while not (is_ready := ready()) and process.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
            if is_ready:
                yield process.pid
                return
            if process.poll() is None or n_left == 0:
                raise SystemExit(f"{command[0]} is not ready; {log} ends:\n{log.read_text(errors='replace')[-3000:]}")
        finally:
            end_session(process)
