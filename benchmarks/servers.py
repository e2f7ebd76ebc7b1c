"""The ranker on other model servers, beside our own: parity, what a hop adds, requests through /v1/rank, and a kill within a load.

Each server runs on what ``export-model`` wrote for it, two workers of one thread; ``serve`` has two workers, too. Open loop at 200
requests/s: the server called directly with the arrays of a request, and /v1/rank with it as the engine; what that adds is the difference of
the p99. Closed loop by wrk through /v1/rank. One server runs at a time, as the others would take turns on the cores while they are idle.

    make bench-servers
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import online_servers as servers
import torch
from measuring import ROOT, report, scratch_folder
from online_runs import closed
from scoring_calls import ScoringCall, largest_difference, make_calls

from recsys_batch.config import Online
from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.model_servers.export_folder import ServerBatching, export_model
from recsys_batch.model_servers.ranker_model import ExportableRanker, ranker_of_bundle
from recsys_batch.online.engine.remote_ranker import make_wire_format
from recsys_batch.online.engine.wire_formats import WireFormat
from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.settings import ServerSettings
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.online.snapshot.repository import set_current
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.registry.bundle import write_bundle

sys.path.insert(0, str(ROOT / "tools"))
from model_servers import SERVERS, Started, free_ports, install, running

VERSION = "1"
RATE = 200.0
TIMEOUT_MS = 50
"""Of the engine while it is killed; elsewhere it may take a second, so that all answers are the ranker's."""
ENGINES: dict[str, dict[str, str]] = {
    "torchserve": {"engine": "torchserve"},
    "triton": {"engine": "oip"},
    "mlserver": {"engine": "oip", "engine_binary": "false"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=200, help="candidates per user")
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with scratch_folder("bench-servers-") as folder:
        measure(arguments, folder)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    names = [name for name in arguments.servers.split(",") if name]
    model = make_model(arguments, folder)
    snapshot = open_snapshot(folder / "snapshots" / "one")
    calls = make_calls(snapshot, 1000)
    details: dict[str, Any] = {"onnx": {}}
    with servers.ours(folder / "snapshots", folder, free_ports()) as server:
        for _ in rounds("onnx", server, arguments):
            measure_round("onnx", server, None, arguments, folder, details["onnx"])
    for name in names:
        install(name)
        export_model(model, name, folder / name, ServerBatching())
        details[name] = measure_server(name, arguments, folder, calls)
    report("servers", vars(arguments), details, result_of(details, names))


def measure_server(name: str, arguments: argparse.Namespace, folder: Path, calls: list[ScoringCall]) -> dict[str, Any]:
    """Measure a server that runs alone, but for ours in front of it."""
    measured: dict[str, Any] = {}
    with running(name, folder / name, "ranker", VERSION, folder / f"{name}-run") as started:
        settings = {**ENGINES[name], "engine_url": started.address, "engine_timeout_ms": "1000"}
        wire = make_wire_format(ServerSettings.from_section(Online.model_validate(settings), str(folder), str(folder)))
        measured |= {"start_seconds": round(started.seconds, 1), "parity_max": check_parity(started.port, wire, calls)}
        write_requests(folder / f"{name}.requests", wire, [call for call in calls[:-1] if call.items.shape[1] == arguments.k][:500])
        with servers.ours(folder / "snapshots", folder, free_ports(), **settings) as server:
            for _ in rounds(name, server, arguments):
                measure_round(name, server, started, arguments, folder, measured)
        measured["memory_mb"] = round(started.resident_mb())
        settings["engine_timeout_ms"] = str(TIMEOUT_MS)
        with servers.ours(folder / "snapshots", folder, free_ports(), **settings) as server:
            closed(server, 8, 3.0, arguments.users)
            measured["killed"] = kill_within_load(server.port, started, arguments)
    return measured


def rounds(name: str, server: servers.RunningServer, arguments: argparse.Namespace) -> Iterator[int]:
    """Warm a server of ours, and count the rounds."""
    closed(server, 8, 3.0, arguments.users)
    for number in range(1, arguments.rounds + 1):
        print(f"{name}, round {number} of {arguments.rounds}", flush=True)
        yield number


def make_model(arguments: argparse.Namespace, folder: Path) -> ExportableRanker:
    """Make the snapshot "one", which is current, and the bundle of its ranker."""
    features = FeatureSpec.default()
    params = RankerParameters.initialize(arguments.dim, len(features.names), 1)
    params.output += 0.1 * torch.randn(params.output.shape, generator=torch.Generator().manual_seed(1))
    params.gate = 1.0
    arrays = params.to_arrays()
    onnx = export_ranker_onnx(arrays)
    sizes = {"users": arguments.users, "items": arguments.items, "dim": arguments.dim, "candidates": arguments.k}
    make_snapshot(folder / "snapshots", snapshot_id="one", ranker=onnx, model_version=VERSION, **sizes)
    set_current(folder / "snapshots", "one")
    manifest = {"kind": "two_tower", "embedding_dim": arguments.dim, "features": features.to_dict()}
    return ranker_of_bundle(write_bundle(folder / "bundle", manifest, tensors=arrays, ranker_onnx=onnx), "ranker", VERSION)


def check_parity(port: int, wire: WireFormat, calls: list[ScoringCall]) -> float:
    """Measure the largest difference to our own scores; other orders than rounding explains are an error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    largest = 0.0
    for call in calls:
        request = wire.encode("ranker", VERSION, call[:3])
        connection.request("POST", request.path, request.body, request.headers)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body[:500]
        largest = max(largest, largest_difference(wire.decode(answer.headers, body), call.expected))
    connection.close()
    return largest


def write_requests(path: Path, wire: WireFormat, calls: list[ScoringCall]) -> None:
    """Write the calls as whole requests for the load generator."""
    with path.open("wb") as file:
        for call in calls:
            request = wire.encode("ranker", VERSION, call[:3])
            headers = {**request.headers, "host": "localhost", "content-length": str(len(request.body))}
            head = f"POST {request.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
            raw = head.encode() + request.body
            file.write(len(raw).to_bytes(8, "little") + raw)


def measure_round(
    name: str, server: servers.RunningServer, started: Started | None, arguments: argparse.Namespace, folder: Path, measured: dict[str, Any]
) -> None:
    """Measure an engine once: directly, through /v1/rank, and by closed loops."""
    if started is not None:
        measured.setdefault("direct", []).append(opened(started.port, arguments, requests=folder / f"{name}.requests"))
    measured.setdefault("through", []).append(opened(server.port, arguments))
    for connections in (8, 32):
        runs = measured.setdefault(f"c{connections}", [])
        runs.append(closed(server, connections, arguments.seconds / 2, arguments.users))
    shown = {key: measured[key][-1]["ms"]["p99"] for key in ("direct", "through") if key in measured}
    print(f"{name:<12} p99 at {RATE:.0f} requests/s, ms: {shown}", flush=True)


def opened(port: int, arguments: argparse.Namespace, requests: Path | None = None, seconds: float | None = None) -> dict[str, Any]:
    """Run the open loop."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "online_load.py"),
        "--port",
        str(port),
        "--rate",
        str(RATE),
        "--connections",
        "16",
        "--poisson",
    ]
    command += ["--seconds", str(seconds or arguments.seconds), "--users", str(arguments.users)]
    command += ["--requests", str(requests)] if requests is not None else []
    measured: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return measured


def kill_within_load(port: int, started: Started, arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill a server in the middle of an open loop through /v1/rank."""
    timer = threading.Timer(4.0, started.kill)
    timer.start()
    measured = opened(port, arguments, seconds=8.0)
    timer.join()
    statuses = {int(status): n for status, n in measured["statuses"].items()}
    n_failed = sum(n for status, n in statuses.items() if status != 200) + measured["unanswered"] + measured["connections_lost"]
    return {"answers": sum(statuses.values()), "not_200": n_failed, "p99_ms": measured["ms"]["p99"], "max_ms": measured["ms"]["max"]}


def result_of(details: dict[str, Any], names: list[str]) -> dict[str, Any]:
    def median(name: str, key: str, *path: str) -> float:
        values = []
        for run in details[name][key]:
            for step in path:
                run = run[step]
            values.append(run)
        return float(statistics.median(values))

    result: dict[str, Any] = {
        "parity_max": max(details[name]["parity_max"] for name in names),
        "killed_non_200": sum(details[name]["killed"]["not_200"] for name in names),
        "killed_max_ms": max(details[name]["killed"]["max_ms"] for name in names),
        "added_p99_ms": {name: round(median(name, "through", "ms", "p99") - median(name, "direct", "ms", "p99"), 2) for name in names},
        "through_p99_ms": {name: median(name, "through", "ms", "p99") for name in details},
        "direct_p99_ms": {name: median(name, "direct", "ms", "p99") for name in names},
    }
    for connections in ("c8", "c32"):
        result[f"qps_{connections}"] = {name: round(median(name, connections, "qps")) for name in details}
        result[f"p99_ms_{connections}"] = {name: round(median(name, connections, "p99"), 1) for name in details}
    result["memory_mb"] = {name: details[name]["memory_mb"] for name in names}
    result["start_seconds"] = {name: details[name]["start_seconds"] for name in names}
    return result


if __name__ == "__main__":
    main()
