"""Re-rank 200 candidates of 1,000,000 items x 64 and answer the ten best: our server beside TorchServe and Triton.

The same work for all: the same LMDB record, item matrix and ranker weights, two workers of one thread. Ours does more: it has a
context with a session, rules, metrics and the exposure log. Closed loop by wrk at 1, 8 and 32 connections, rounds of the servers in
turn; open loop at fixed rates; swaps of snapshots under load; twice the capacity.

    make bench-online PEERS=torchserve,triton
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import online_servers as servers
import torch
from measuring import ROOT, checked_out, report, scratch_folder
from model_servers import free_ports

from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.snapshot.repository import set_current
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.registry.bundle import RANKER_PREFIX

CONNECTIONS = (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=200, help="candidates per user")
    parser.add_argument("--before", help="commit whose build is measured beside this one")
    parser.add_argument("--peers", default="", help="torchserve,triton or a part of it")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with scratch_folder("bench-online-") as folder:
        measure(arguments, folder)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    peers = [peer for peer in arguments.peers.split(",") if peer]
    snapshots, weights = made(arguments, folder)
    details: dict[str, Any] = {"closed": {}, "open": {}, "swap": {}, "overload": {}}
    with ExitStack() as builds:
        codes = {"ours": ROOT}
        if arguments.before:
            codes["before"] = builds.enter_context(checked_out(arguments.before, folder))
        with ExitStack() as stack:
            ports = {name: stack.enter_context(servers.ours(snapshots, folder, free_ports(), code=code)) for name, code in codes.items()}
            for peer in peers:
                scratch = folder / peer
                scratch.mkdir()
                start = getattr(servers, peer)
                ports[peer] = stack.enter_context(start(snapshots / "one", weights, scratch, free_ports()))
            check(ports, snapshots)
            for name, port in ports.items():
                closed(name, port, 8, 3.0, arguments.users)  # warm
            details["closed"] = compared(ports, arguments)
            details["open"] = {name: opened(name, port, 1000, arguments.seconds, arguments.users) for name, port in ports.items()}
        capacity = details["closed"]["ours"]["32"]["qps"]
        for name, code in codes.items():
            (snapshots / "two" / ".verified").unlink(missing_ok=True)
            with servers.ours(snapshots, folder, free_ports(), code=code) as port:
                closed(name, port, 8, 3.0, arguments.users)
                details["swap"][name] = swapped(name, port, arguments)
                details["overload"][name] = opened(name, port, 2 * capacity, arguments.seconds, arguments.users, connections=512)
    report("online", {**vars(arguments), "exposures": True}, details, result_of(details, peers))


def made(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Make (folder with the snapshots "one", which is current, and its copy "two"; the ranker's weights for torch)."""
    params = RankerParameters.initialize(arguments.dim, len(FeatureSpec.default().names), 1)
    params.output += 0.1 * torch.randn(params.output.shape, generator=torch.Generator().manual_seed(1))
    params.gate = 1.0
    arrays = params.to_arrays()
    weights = {name.removeprefix(RANKER_PREFIX): array for name, array in arrays.items()}
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


def check(ports: dict[str, int], snapshots: Path) -> None:
    """Check that every peer and our server without context answer what the formula says."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
    from lookup import Lookup

    from recsys_batch.ranking.onnx_ranker import OnnxRanker

    lookup, ranker = Lookup(str(snapshots / "one")), OnnxRanker(snapshots / "one" / "ranker.onnx")
    for user in (0, 17, 4242):
        vector, codes, items, features = lookup.get(user)
        expected, scores = lookup.best(ranker.score(vector[None], items[None], features[None])[0], codes)
        for name, port in ports.items():
            if name not in ("ours", "before"):
                items = servers.ask(name, port, user)
                assert items is not None and set(items[:5]) == set(expected[:5].tolist()), (name, user, items, expected, scores)


def closed(kind: str, port: int, connections: int, seconds: float, users: int) -> dict[str, float]:
    """Run wrk's closed loop."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "-s",
        str(ROOT / "benchmarks" / "online_wrk.lua"),
        f"http://127.0.0.1:{port}",
    ]
    env = {**os.environ, "RECSYS_KIND": kind, "RECSYS_USERS": str(users)}
    output = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    print(f"  {kind:<11} c={connections:<3}{measured['qps']:9.0f} req/s   p99 {measured['p99']:8.2f} ms", flush=True)
    return measured


def compared(ports: dict[str, int], arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Compare servers by medians over rounds in which they take turns."""
    measured: dict[str, dict[str, list[dict[str, float]]]] = {name: {str(c): [] for c in CONNECTIONS} for name in ports}
    for _ in range(arguments.rounds):
        for connections in CONNECTIONS:
            for name, port in ports.items():
                measured[name][str(connections)].append(closed(name, port, connections, arguments.seconds, arguments.users))
    medians = {}
    for name, by_connections in measured.items():
        medians[name] = {
            c: {key: statistics.median(run[key] for run in rounds) for key in rounds[0]} for c, rounds in by_connections.items()
        }
    return medians


def opened(kind: str, port: int, rate: float, seconds: float, users: int, connections: int = 128) -> dict[str, Any]:
    """Run the open loop at a fixed rate."""
    command = [sys.executable, str(ROOT / "benchmarks" / "online_load.py"), "--kind", kind, "--port", str(port), "--rate", str(rate)]
    options = ["--seconds", str(seconds), "--users", str(users), "--connections", str(connections)]
    measured: dict[str, Any] = json.loads(subprocess.run([*command, *options], check=True, capture_output=True, text=True).stdout)
    print(
        f"  {kind:<11} {rate:.0f} req/s: {measured['statuses']}, "
        f"p99 {measured['ms']['p99']} ms ({measured['ms_since_sent']['p99']} since sent)",
        flush=True,
    )
    return measured


def swapped(kind: str, port: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the open loop at 1,000 req/s while snapshots are activated in turn; the first activation verifies all files."""
    seconds_taken: list[float] = []
    stop = threading.Event()

    def swap() -> None:
        turn = 0
        while not stop.wait(1.0):
            turn += 1
            began = time.monotonic()
            status = servers.admin(port, "POST", f"/v1/snapshots/{('one', 'two')[turn % 2]}/activate")
            if status != 200:
                raise SystemExit(f"activation answered {status}")
            seconds_taken.append(round(time.monotonic() - began, 2))

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        measured = opened(kind, port, 1000, max(12.0, arguments.seconds), arguments.users)
    finally:
        stop.set()
        thread.join()
    return {**measured, "activations_seconds": seconds_taken}


def result_of(details: dict[str, Any], peers: list[str]) -> dict[str, Any]:
    ours, swap, overload = details["closed"]["ours"]["32"], details["swap"]["ours"], details["overload"]["ours"]
    statuses = {int(status): n for status, n in overload["statuses"].items()}
    result = {"qps_c32": round(ours["qps"]), "p99_ms_c32": round(ours["p99"], 2)}
    result["p99_ms_at_1000qps"] = details["open"]["ours"]["ms"]["p99"]
    if "before" in details["closed"]:
        for connections in ("1", "8", "32"):
            before = details["closed"]["before"][connections]["qps"]
            result[f"qps_vs_before_c{connections}"] = round(details["closed"]["ours"][connections]["qps"] / before, 2)
    if peers:
        best = max(peers, key=lambda peer: details["closed"][peer]["32"]["qps"])
        theirs = details["closed"][best]["32"]
        result |= {"best_peer": best, "best_peer_qps_c32": round(theirs["qps"]), "qps_vs_peer": round(ours["qps"] / theirs["qps"], 2)}
        result["p99_vs_peer"] = round(ours["p99"] / min(details["closed"][peer]["32"]["p99"] for peer in peers), 3)
    failed = sum(n for status, n in swap["statuses"].items() if int(status) != 200) + swap["unanswered"] + swap["connections_lost"]
    result |= {"swap_p99_ms": swap["ms"]["p99"], "swap_failed": failed, "swaps": len(swap["activations_seconds"])}
    result["overload_p99_ms"] = overload["ms_since_sent"]["p99"]
    result["overload_503_share"] = round(statuses.get(503, 0) / max(sum(statuses.values()), 1), 3)
    result["overload_other"] = sum(n for status, n in statuses.items() if status not in (200, 503)) + overload["unanswered"]
    return result


if __name__ == "__main__":
    main()
