"""Run a server for ten minutes at 70 % of its capacity, and look whether its memory, descriptors and threads stay flat.

A short closed loop by wrk finds the capacity; then requests come at random times (open loop). The exposure log is on, in small files of
which the oldest go; each minute another snapshot is activated. Every 5 s all processes of the server are looked at. Growth is the median of
the last quarter of the run over that of the second one, summed over the processes; the first quarter warms up.

Ends with exit code 1 where
- resident memory, its share (PSS: a page that two processes map counts half for each), anonymous memory, descriptors or threads grew by
  more than 5 %;
- a process ended, or one is new;
- an answer was not 200, or there was none;
- a row of the exposure log was not written.
The result is written in either case: benchmarks/results/soak.json, and soak.png to look at.

    make soak SOAK_SECONDS=600
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import online_servers as servers
from background import in_background
from flatness import LARGEST_GROWTH, Sample, find_faults, growth
from measuring import ROOT, report, scratch_folder
from model_servers import free_ports
from online_runs import activations, closed, opened, warm_up
from process_usage import list_family, read_command, read_usage
from prometheus_client.parser import text_string_to_metric_families

RESULTS = ROOT / "benchmarks" / "results"
LOAD_SHARE = 0.7
LOG_MB = 64
"""Of the exposure log: a file is an eighth of it, so that it rotates every few seconds."""
SWAPS, SAMPLES = 10, 120
"""In a run, at most: one a minute, and one in 5 s, of ten minutes; as many in a shorter one."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=200, help="candidates per user")
    parser.add_argument("--rate", type=float, help="requests per second, instead of 70 %% of the capacity")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for soak.json and soak.png")
    arguments = parser.parse_args()
    with scratch_folder("soak-") as folder:
        details, faults = soak(arguments, folder)
    result = result_of(details, faults)
    draw(details, arguments.results / "soak.png")
    settings = {name: value for name, value in vars(arguments).items() if name != "results"}
    report("soak", settings, details, result, arguments.results / "soak.json")
    for fault in faults:
        print(f"not flat: {fault}", file=sys.stderr)
    return 1 if faults else 0


def soak(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Run the load; (what was measured, what is not as it should be)."""
    snapshots, _ = servers.make_snapshots(arguments, folder)
    port = free_ports()
    with servers.ours(snapshots, folder, port, exposures_max_mb=str(LOG_MB)) as server:
        warm_up(server, arguments.users, 5.0)
        capacity = closed(server, 32, 5.0, arguments.users)["qps"]
        rate = arguments.rate or LOAD_SHARE * capacity
        window = arguments.seconds / 60
        with activations(server, arguments.seconds / SWAPS) as swaps, sampled(server.pid, arguments.seconds / SAMPLES) as samples:
            options = ("--poisson", "--window", str(window))
            run = opened(server, rate, arguments.seconds, arguments.users, 128, *options, timeout=arguments.seconds + 300)
        time.sleep(2.0)  # workers report what they wrote every online.poll_ms
        log_rows = read_log_rows(server)
    growths = {key: round(growth(samples, key, arguments.seconds), 3) for key in LARGEST_GROWTH}
    details = {"capacity_qps": capacity, "rate": round(rate, 1), "growth": growths, "run": run, "swaps": swaps, "log_rows": log_rows}
    details |= {"log": describe_log(folder / f"exposures-{port}"), "samples": [asdict(sample) for sample in samples]}
    return details, find_faults(growths, samples, run, log_rows)


@contextmanager
def sampled(pid: int, every_seconds: float) -> Iterator[list[Sample]]:
    """Look at a process and all that it started during the block; yields a list that grows."""
    samples: list[Sample] = []
    began = time.monotonic()

    def look(stop: threading.Event) -> None:
        due = began
        while not stop.wait(max(0.0, due - time.monotonic())):
            at, family = round(time.monotonic() - began, 1), {one: read_usage(one) for one in list_family(pid)}
            samples.append(Sample(at, {name_of(one, pid): asdict(usage) for one, usage in family.items() if usage is not None}))
            due += every_seconds

    with in_background(look):
        yield samples


def name_of(process: int, main_process: int) -> str:
    """Name a process of the server by what it does, and its id."""
    if process == main_process:
        return f"main {process}"
    _, is_module, rest = read_command(process).partition(" -m ")
    role = rest.split(" ")[0].rpartition(".")[2] if is_module else "worker"  # a worker is forked from the main process
    return f"{role} {process}"


def read_log_rows(server: servers.RunningServer) -> dict[str, float]:
    """Read how many exposures were recorded, written, full, invalid and lost, of all workers."""
    rows = {}
    for family in text_string_to_metric_families(servers.get_metrics(server.port)):
        for metric in family.samples:
            if metric.name == "recsys_log_rows_total" and metric.labels["log"] == "exposures":
                rows[metric.labels["outcome"]] = metric.value
    return rows


def describe_log(folder: Path) -> dict[str, float]:
    """Describe the exposure log: files that were made, as they are numbered by each worker, and those that are left."""
    files = list(folder.glob("*.segment"))
    made: dict[str, int] = {}
    for file in files:
        kind, host, worker, number = file.stem.split("-")[0], *file.stem.rsplit("-", 3)[1:]
        made[f"{kind}-{host}-{worker}"] = max(made.get(f"{kind}-{host}-{worker}", 0), int(number))
    left_mb = sum(file.stat().st_size for file in files) / 2**20
    return {"files_made": sum(made.values()), "files_left": len(files), "left_mb": round(left_mb, 1)}


def result_of(details: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    growths, run, last = details["growth"], details["run"], Sample(**details["samples"][-1])
    return {
        "soak_rss_growth": growths["rss_mb"],
        "soak_pss_growth": growths["pss_mb"],
        "soak_own_growth": growths["own_mb"],
        "soak_fd_growth": growths["descriptors"],
        "soak_thread_growth": growths["threads"],
        "soak_threads": last.total("threads"),
        "soak_rss_mb": round(last.total("rss_mb")),
        "soak_p99_ms": run["ms"]["p99"],
        "soak_rate": details["rate"],
        "soak_statuses": run["statuses"],
        "soak_swaps": len(details["swaps"]),
        "soak_log_files": details["log"]["files_made"],
        "soak_flat": not faults,
    }


def draw(details: dict[str, Any], path: Path) -> None:
    """Draw memory, descriptors, threads and latency over the run, with a line where a snapshot was activated."""
    from matplotlib.figure import Figure

    samples = [Sample(**sample) for sample in details["samples"]]
    times = [sample.at for sample in samples]
    figure = Figure(figsize=(9, 11), layout="constrained")
    memory, own, descriptors, threads, latency = figure.subplots(5, sharex=True)
    for axes, title in (
        (memory, "resident memory, MiB"),
        (own, "anonymous memory, MiB"),
        (descriptors, "open descriptors"),
        (threads, "threads"),
        (latency, "ms since a request was due"),
    ):
        axes.set_ylabel(title)
        for swap in details["swaps"]:
            axes.axvline(swap["at"], color="lightgray", linewidth=1)
    for name in sorted({name for sample in samples for name in sample.usage}):
        for axes, key in ((memory, "rss_mb"), (own, "own_mb"), (descriptors, "descriptors"), (threads, "threads")):
            axes.plot(times, [sample.usage.get(name, {}).get(key, float("nan")) for sample in samples], label=name)
    memory.plot(times, [sample.total("pss_mb") for sample in samples], "k--", label="all, shared pages once (PSS)")
    windows = details["run"]["windows"]
    for key in ("p50", "p99"):
        latency.plot([window["at"] for window in windows], [window[key] for window in windows], label=key)
    latency.set_xlabel("seconds; a grey line is an activation of a snapshot")
    for axes in (memory, own, descriptors, threads, latency):
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.suptitle(f"{details['rate']:.0f} requests/s, {details['rate'] / details['capacity_qps']:.0%} of the capacity")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
