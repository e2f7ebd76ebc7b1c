"""Re-rank 200 candidates of 1,000,000 items x 64 and answer the ten best: our server beside the build before it, TorchServe and Triton.

The same for all: the same LMDB record, item matrix and ranker weights, two workers of one thread that score, kept connections. Closed loop
by wrk at 1, 8 and 32 connections and open loop at 1,000 requests/s, in rounds in which the servers take turns, after a warm-up of each at 8
and at 32 connections, each as long as a measurement. Then, for ours and the build before: swaps of snapshots under load, twice the
capacity, and the closed loop by gRPC.
A ratio is the median over rounds of the ratio within a round; against peers it is to the best of them in that round.

What is unfair, and to whom:
- To ours: a request has a context with a session of three items, and rules, metrics and the log are on; peers take a user id alone.
- To whom is fast: wrk takes 20 to 60 us of a core per request of any server (load_cpu_us), 8 to 10 % of what ours takes, 10 % of
  what Triton does and 2 to 6 % of what TorchServe does, on cores that the server needs as well; the open loop's client takes more.
- To ours: TorchServe and Triton have their frontends' threads (Netty, Triton's HTTP) beside the two that score; ours has both in a worker.
- To pytriton: it calls both instances from one Python process, which take turns for the interpreter's lock. Triton's own Python backend has
  a process for each and answers several times as many: that is the peer triton; pytriton is there to compare with older figures.
- To TorchServe: a batch that is not full waits, 1 ms at least, as 0 means 100 there (findings/). It has a model with batches of 16 and one
  with batches of 4 (torchserve_b4), each of which counts as a peer. Java is warm after some ten seconds only, hence the long warm-up.
- To all: servers that are not asked run on; ours takes 2 % of a core meanwhile, peers less (idle_cores).

Figures of one machine compare with each other, not with another machine's.

    make bench-online BEFORE=COMMIT PEERS=torchserve,triton
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import online_servers as servers
from measuring import ROOT, checked_out, product_tree, report, scratch_folder
from model_servers import free_ports
from online_figures import result_of
from online_runs import GRPC_LOAD, activations, closed, grpc_closed, opened, take_turns, warm_up
from process_usage import cpu_seconds

CONNECTIONS = (1, 8, 32)
RATE = 1000.0
"""Of the open loop and of swaps, requests per second."""
SOAK_SECONDS = 600
"""A shorter soak shows nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=200, help="candidates per user")
    parser.add_argument("--before", help="commit whose build is measured beside this one")
    parser.add_argument("--peers", default="", help="of torchserve, triton, pytriton; comma between")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with scratch_folder("bench-online-") as folder:
        measure(arguments, folder)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    peers = [peer for peer in arguments.peers.split(",") if peer]
    if unknown := set(peers) - {"torchserve", "triton", "pytriton"}:
        raise SystemExit(f"--peers has {sorted(unknown)}: there are torchserve, triton, pytriton")
    snapshots, weights = servers.make_snapshots(arguments, folder)
    details: dict[str, Any] = {}
    with ExitStack() as builds:
        codes = {"ours": ROOT}
        if arguments.before:
            codes["before"] = builds.enter_context(checked_out(arguments.before, folder))
        with ExitStack() as stack:
            started = {name: stack.enter_context(servers.ours(snapshots, folder, free_ports(), code=code)) for name, code in codes.items()}
            for peer in peers:
                scratch = folder / peer
                scratch.mkdir()
                start = getattr(servers, peer)
                started |= {server.kind: server for server in stack.enter_context(start(snapshots / "one", weights, scratch, free_ports()))}
            check(started, snapshots)
            details |= measure_in_turn(started, arguments)
        capacity = details["closed"]["ours"]["32"]["qps"]
        details |= {"swap": {}, "overload": {}}
        for name, code in codes.items():
            (snapshots / "two" / ".verified").unlink(missing_ok=True)
            with servers.ours(snapshots, folder, free_ports(), code=code) as server:
                warm_up(server, arguments.users, arguments.seconds)
                details["swap"][name] = swapped(server, arguments)
                details["overload"][name] = opened(server, 2 * capacity, arguments.seconds, arguments.users, 512)
        details["grpc"] = measure_grpc(codes, snapshots, folder, arguments)
    details["soak"] = find_soak()
    report(
        "online",
        {**vars(arguments), "exposures": True},
        details,
        result_of(details, [kind for kind in details["closed"] if kind not in codes]),
    )


def measure_in_turn(started: dict[str, servers.RunningServer], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the closed and the open loop of servers that all run, by rounds in which they take turns.

    Returns:
        rounds (server, connections, runs), closed (the same, medians over rounds), open (server, runs), idle_cores (server).
    """
    for server in started.values():
        warm_up(server, arguments.users, arguments.seconds)
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in started}
    for connections in CONNECTIONS:
        run = partial(closed, connections=connections, seconds=arguments.seconds, users=arguments.users)
        runs = take_turns(started, arguments.rounds, run)
        for name in started:
            rounds[name][str(connections)] = runs[name]
    medians = {name: {n: _medians(runs) for n, runs in by_connections.items()} for name, by_connections in rounds.items()}
    open_runs = take_turns(started, arguments.rounds, lambda server: opened(server, RATE, arguments.seconds, arguments.users))
    return {"rounds": rounds, "closed": medians, "open": open_runs, "idle_cores": idle_cores(started)}


def idle_cores(started: dict[str, servers.RunningServer], seconds: float = 3.0) -> dict[str, float]:
    """Measure the processor time per second of servers that nobody asks anything."""
    before, began = {name: cpu_seconds(server.pid) for name, server in started.items()}, time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    return {name: round((cpu_seconds(server.pid) - before[name]) / elapsed, 3) for name, server in started.items()}


def measure_grpc(
    codes: dict[str, Path], snapshots: Path, folder: Path, arguments: argparse.Namespace
) -> dict[str, list[dict[str, Any]]] | None:
    """Measure the closed loop over gRPC, ours and the build before in turn; None where its load generator is missing."""
    if not GRPC_LOAD.exists():
        print(f"  gRPC is left out: {GRPC_LOAD.relative_to(ROOT)} is missing", flush=True)
        return None
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(servers.ours(snapshots, folder, free_ports(), code=code, grpc=True)) for name, code in codes.items()
        }
        for server in started.values():
            grpc_closed(server, 3.0, arguments.users)
        return take_turns(started, arguments.rounds, lambda server: grpc_closed(server, arguments.seconds, arguments.users))


def check(started: dict[str, servers.RunningServer], snapshots: Path) -> None:
    """Check that every peer answers what the formula says."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
    from lookup import Lookup

    from recsys_batch.ranking.onnx_ranker import OnnxRanker

    lookup, ranker = Lookup(str(snapshots / "one")), OnnxRanker(snapshots / "one" / "ranker.onnx")
    for user in (0, 17, 4242):
        vector, codes, items, features = lookup.get(user)
        expected, scores = lookup.best(ranker.score(vector[None], items[None], features[None])[0], codes)
        for name, server in started.items():
            if name not in ("ours", "before"):
                items = servers.ask(name, server.port, user)
                assert items is not None and set(items[:5]) == set(expected[:5].tolist()), (name, user, items, expected, scores)


def swapped(server: servers.RunningServer, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the open loop while snapshots are activated in turn, a second apart; the first activation verifies all files."""
    with activations(server, 1.0) as done:
        measured = opened(server, RATE, max(12.0, arguments.seconds), arguments.users)
    return {**measured, "activations_seconds": [activation["seconds"] for activation in done]}


def find_soak() -> dict[str, Any] | None:
    """Find what `make soak` wrote, where it ran this very product for as long as it should; None otherwise."""
    path = ROOT / "benchmarks" / "results" / "soak.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tree, settings = product_tree(), document.get("settings", {})
    is_this_build = tree is not None and document.get("product_tree") == tree
    if not is_this_build or settings["seconds"] < SOAK_SECONDS or settings["rate"] is not None:
        print("  the soak is left out: make soak has not run this build, committed, for ten minutes at 70 % of its capacity", flush=True)
        return None
    return {"date": document["date"], "commit": document["commit"], **document["result"]}


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


if __name__ == "__main__":
    main()
