"""Each piece of work, timed on this machine in under two minutes, with made-up data: for where nothing ran yet."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_batch.plan.unit_costs import UnitCosts

N_USERS, N_ITEMS, DIM, N_CANDIDATES, N_EVENTS = 10_000, 50_000, 64, 200, 20
_BLOCK_USERS, _WARM_REQUESTS, _REQUESTS, _CONNECTIONS = 1_000, 100, 600, 8
_FULL_ITEMS = 20_000

NIGHT_FIXED = 40.0
"""Core-seconds of a night of a few users, its session included, on two cores: `make demo`."""
SPARK_USER = 8.0e-5
"""Core-seconds per user for Spark, Arrow and Delta around the search: `night/estimate.py`, from `make bench-retrieval`."""
REFRESH_FIXED, REFRESH_SECONDS = 0.5, 2.5
"""Core-seconds of a micro-batch of few users, and the p95 from an event to a changed answer: `make bench-freshness`."""
_FROM_BENCHMARKS = "this project's benchmarks, on two cores"
_FROM_TRIAL = f"a trial on this machine, {N_ITEMS:,} items x {DIM}"


def measure_unit_costs(progress: Callable[[str], None] = lambda _: None) -> UnitCosts:
    """Time search, scoring, embedding, writing, a snapshot and requests on made-up data. Needs the extras night and online."""
    rng = np.random.default_rng(0)
    items = rng.standard_normal((N_ITEMS, DIM), dtype=np.float32) / np.float32(np.sqrt(DIM))
    users = rng.standard_normal((_BLOCK_USERS, DIM), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="recsys-batch-plan-") as name:
        folder = Path(name)
        progress("search")
        search, exponent = _time_search(items, users, folder)
        progress("embedding and scoring")
        embed, score, ranker = _time_model(rng, items, users)
        progress("writing")
        write, list_bytes = _time_writing(rng, folder)
        progress("a snapshot")
        snapshot_user, record_bytes, item_bytes = _time_snapshot(folder, ranker)
        progress("requests")
        pair = _time_pairs(rng, folder)
        rank, lookup = _time_requests(folder)
    trial = {
        "search_user": search,
        "embed_user": embed,
        "score_user": score,
        "snapshot_user": snapshot_user,
        "lookup": lookup.core_seconds,
        "lookup_p99": lookup.p99,
        "rank": rank.core_seconds,
        "rank_p99": rank.p99,
        "pair": pair,
        "refresh_user": embed + search + score + write + snapshot_user + SPARK_USER,
        "list_bytes": list_bytes,
        "record_bytes": record_bytes,
        "item_bytes": item_bytes,
    }
    known = {"night_fixed": NIGHT_FIXED, "refresh_fixed": REFRESH_FIXED, "refresh_seconds": REFRESH_SECONDS}
    sources = {key: _FROM_TRIAL for key in (*trial, "write_user", "search_exponent")} | dict.fromkeys(known, _FROM_BENCHMARKS)
    return UnitCosts(**trial, **known, write_user=write + SPARK_USER, search_exponent=exponent, items=N_ITEMS, sources=sources)


def _per_user(work: Callable[[], object], n: int) -> float:
    """Time the second of two calls that handle n users."""
    work()
    began = time.process_time()
    work()
    return (time.process_time() - began) / n


def _time_search(items: np.ndarray, users: np.ndarray, folder: Path) -> tuple[float, float]:
    """Time (core-seconds per user, exponent of its growth with the catalogue) of the search that a night would choose."""
    from recsys_batch.ann.index import build_index
    from recsys_batch.ann.search import open_retriever
    from recsys_batch.config import Retrieval

    (index := folder / "index").mkdir()
    info = build_index(items, Retrieval(), index, n_threads=1)
    retriever = open_retriever(str(index), info)
    return _per_user(lambda: retriever.search(users, N_CANDIDATES), len(users)), 1.0 if info.mode == "exact" else 0.5


def _time_model(rng: np.random.Generator, items: np.ndarray, users: np.ndarray) -> tuple[float, float, dict[str, np.ndarray]]:
    """Time core-seconds per user of (embedding N_EVENTS events, scoring N_CANDIDATES candidates), and make a ranker's weights."""
    from recsys_batch.model.trial_stages import make_trial_stages

    embed, score, ranker = make_trial_stages(rng, users, items, N_CANDIDATES, N_EVENTS)
    return _per_user(embed, len(users)), _per_user(score, len(users)), ranker


def _time_writing(rng: np.random.Generator, folder: Path) -> tuple[float, float]:
    """Time (core-seconds, bytes) per user of a night's rows in Parquet: candidates, embeddings and the list."""
    n = _BLOCK_USERS
    scored = pa.StructArray.from_arrays(
        [pa.array(rng.integers(0, N_ITEMS, n * N_CANDIDATES)), pa.array(rng.random(n * N_CANDIDATES, dtype=np.float32))],
        ["item_id", "score"],
    )
    candidates = pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * N_CANDIDATES), scored)
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(n * DIM, dtype=np.float32)), DIM)
    ids = pa.array(np.arange(n))
    topk = pa.table({"user_id": pa.array(np.repeat(np.arange(n), 50)), "item": scored.slice(0, 50 * n)})
    tables = {"candidates": pa.table({"user_id": ids, "items": candidates}), "embeddings": pa.table({"user_id": ids, "e": embeddings})}
    tables["topk"] = topk

    def write() -> None:
        for name, table in tables.items():
            pq.write_table(table, folder / f"{name}.parquet", compression="zstd")

    seconds = _per_user(write, n)
    return seconds, sum((folder / f"{name}.parquet").stat().st_size for name in tables) / n


def _time_snapshot(folder: Path, ranker: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """Time (core-seconds per user, bytes of a user, bytes of an item) of a snapshot, and leave it in the folder."""
    from recsys_batch.model.onnx_export import export_ranker_onnx
    from recsys_batch.online.export.synthetic_snapshot import make_snapshot
    from recsys_batch.online.snapshot.repository import set_current
    from recsys_batch.registry.bundle import select_ranker_weights

    made_of: dict[str, Any] = {"users": N_USERS, "items": N_ITEMS, "dim": DIM, "candidates": N_CANDIDATES}
    made_of["ranker"] = export_ranker_onnx(ranker)
    made_of["ranker_weights"] = select_ranker_weights(ranker)
    began = time.process_time()
    manifest = make_snapshot(folder / "snapshots", **made_of)
    seconds = time.process_time() - began
    set_current(folder / "snapshots", "made-up")
    users = next(entry["bytes"] for name, entry in manifest.files.items() if name.endswith(".lmdb"))
    others = sum(entry["bytes"] for entry in manifest.files.values()) - users
    return seconds / N_USERS, users / N_USERS, others / N_ITEMS


def _time_pairs(rng: np.random.Generator, folder: Path) -> float:
    """Time core-seconds per item of a request that ranks the whole catalogue."""
    from recsys_batch.ranking.features import FeatureSpec
    from recsys_batch.ranking.onnx_ranker import OnnxRanker

    ranker = OnnxRanker(folder / "snapshots" / "made-up" / "ranker.onnx")
    n_features = len(FeatureSpec.default().names)
    shapes = ((1, DIM), (1, _FULL_ITEMS, DIM), (1, _FULL_ITEMS, n_features))
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    return _per_user(lambda: ranker.score(*arrays), _FULL_ITEMS)


_Call = tuple[str, str, str]
"""Method, path and body of a request."""


@dataclass(frozen=True)
class _Requests:
    """Core-seconds of the server per request under load, and the 99th percentile of their times, one after the other."""

    core_seconds: float
    p99: float


def _time_requests(folder: Path) -> tuple[_Requests, _Requests]:
    """Time (ranked, read) requests of a server of this machine, over loopback."""
    rng = np.random.default_rng(1)
    users = rng.integers(0, N_USERS, _REQUESTS).tolist()
    asked: list[_Call] = [
        ("POST", "/v1/rank", json.dumps({"user_id": user, "k": 10, "context": {"session_item_ids": [user, user + 1], "device": "mobile"}}))
        for user in users
    ]
    read: list[_Call] = [("GET", f"/v1/users/{user}/topk?k=10", "") for user in users]
    with _serving(folder) as (port, pid):
        return _time_calls(port, pid, asked), _time_calls(port, pid, read)


def _time_calls(port: int, pid: int, calls: list[_Call]) -> _Requests:
    """Time calls one after the other, then several at once: a server that is busy takes less for each, as it ranks them together."""
    _call_in_turn(port, calls[:_WARM_REQUESTS])
    p99 = float(np.percentile(_call_in_turn(port, calls), 99))
    cpu = _cpu_seconds(pid)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        n_calls = sum(len(times) for times in pool.map(lambda _: _call_in_turn(port, calls), range(_CONNECTIONS)))
    return _Requests((_cpu_seconds(pid) - cpu) / n_calls, p99)


def _call_in_turn(port: int, calls: list[_Call]) -> list[float]:
    """Make calls on one connection, one after the other; the seconds of each."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    assert connection.sock is not None
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times = []
    for method, path, body in calls:
        began = time.perf_counter()
        connection.request(method, path, body or None, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the trial's server answered {answer.status} to {path}")
        times.append(time.perf_counter() - began)
    connection.close()
    return times


@contextmanager
def _serving(folder: Path) -> Iterator[tuple[int, int]]:
    """Serve the trial's snapshot; (port, process id of the first of its processes)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-c", "from recsys_batch.cli import main; main()", "serve", "--port", str(port), "--workers", "1"]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen([*command, "--snapshots", str(folder / "snapshots")], cwd=folder, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the trial's server did not start: {(folder / 'serve.log').read_text(errors='replace')[-1000:]}")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _cpu_seconds(pid: int) -> float:
    """Add up the processor time of a process and of all that it started."""
    ticks = 0
    for one in _family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    children = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [pid, *(one for child in children for one in _family(child))]
