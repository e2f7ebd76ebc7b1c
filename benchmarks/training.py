"""Benchmark training: generate, `train --dry-run`, then train on a sample of users; minutes and peak memory, seen from outside.

Commands are run as a scheduler would, one process each. Memory is the resident memory of the command and all that it started, JVM
included, read from /proc twice a second.

    make bench-training USERS=1000000 ITEMS=1000000 EVENTS=20000000 MAX_EVENTS=5000000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import ROOT, list_family, read_command, read_status, report

_POLL_SECONDS = 0.5
_REFUSED = 3


@dataclass(frozen=True)
class CommandRun:
    """One command: exit code, seconds, output, and peak resident memory in GiB, of all its processes at one moment and of each kind."""

    exit_code: int
    seconds: float
    output: str
    peak_gib: float
    peak_python_gib: float
    peak_java_gib: float


def run_command(arguments: list[str]) -> CommandRun:
    """Run a command of recsys-batch and watch its memory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "recsys_batch", *arguments], cwd=ROOT, env=environment, stdout=output, stderr=sys.stderr
        )
        peak, peak_python, peak_java = 0, 0, 0
        while process.poll() is None:
            resident = {pid: read_status(pid).get("VmRSS", 0) for pid in list_family(process.pid)}
            java = sum(size for pid, size in resident.items() if "java" in read_command(pid).split(" ")[0])
            total = sum(resident.values())
            peak, peak_python, peak_java = max(peak, total), max(peak_python, total - java), max(peak_java, java)
            time.sleep(_POLL_SECONDS)
        output.seek(0)
        gib = [round(size / 2**20, 2) for size in (peak, peak_python, peak_java)]
        return CommandRun(process.returncode, time.perf_counter() - started, output.read(), *gib)


def write_conf(folder: Path, driver_memory: str) -> Path:
    """Write the config of a warehouse in ``folder``."""
    conf = folder / "bench.toml"
    conf.write_text(
        f'[paths]\nwarehouse = "{folder}/warehouse"\nstate = "{folder}/state"\njars = "{ROOT}/.jars"\n'
        f'[spark]\nmaster = "local[*]"\n[spark.conf]\n"spark.driver.memory" = "{driver_memory}"\n"spark.ui.enabled" = "false"\n'
        '"spark.databricks.delta.snapshotPartitions" = "2"\n'
    )
    return conf


def require(run: CommandRun, what: str, allowed: tuple[int, ...] = (0,)) -> CommandRun:
    """Return a run that ended as it may; exits with its output otherwise."""
    if run.exit_code not in allowed:
        sys.exit(f"{what} ended with {run.exit_code}:\n{run.output}")
    return run


def measure(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure one training; returns (details, result)."""
    conf = write_conf(folder, options.driver_memory)
    common = ["--conf", str(conf)]
    sizes = ["--users", str(options.users), "--items", str(options.items), "--events", str(options.events), "--seed", "1"]
    if not (folder / "warehouse" / "interactions").exists():
        require(run_command(["generate", *common, *sizes]), "generate")
    settings = [*common, "--set", f"training.max_seconds={options.max_seconds}"]
    settings += ["--set", f"training.max_events={options.max_events}"] if options.max_events else []
    planned = require(run_command(["train", "--dry-run", "--json", *settings]), "train --dry-run")
    plan = json.loads(planned.output)
    print(f"  dry run, {planned.seconds:.0f} s: {json.dumps(plan)}", flush=True)
    trained = require(run_command(["train", "--force", "--json", *settings]), "train", (0, _REFUSED))
    outcome = json.loads(trained.output)
    details = {
        "plan": plan,
        "dry_run_seconds": round(planned.seconds, 1),
        "peak_python_gib": trained.peak_python_gib,
        "peak_java_gib": trained.peak_java_gib,
        "metrics": outcome["metrics"],
        "reason": outcome["reason"],
    }
    result = {
        "events_per_s": round(plan["n_events"] / trained.seconds),
        "minutes": round(trained.seconds / 60, 2),
        "peak_gib": trained.peak_gib,
        "stated_gib": round(plan["n_bytes"] / 2**30, 2),
        "stated_minutes": plan["minutes"],
        "events": plan["n_events"],
        "of_events": options.events,
        "users": plan["n_users"],
        "items": plan["n_items"],
        "of_items": plan["n_catalogue"],
        "ndcg_at_10": round(outcome["metrics"]["ndcg_at_10"], 4),
        "popularity_ndcg_at_10": round(outcome["metrics"]["popularity_ndcg_at_10"], 4),
    }
    return details, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--max-events", type=int, help="training.max_events; all events without it")
    parser.add_argument("--max-seconds", type=float, default=600.0, help="training.max_seconds")
    parser.add_argument("--driver-memory", default="3g", help="heap of the JVM")
    parser.add_argument("--folder", type=Path, help="keep the warehouse here, and use the one that is there")
    parser.add_argument("--output", type=Path, help="instead of benchmarks/results/training.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recsys-batch-training-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        details, result = measure(folder, options)
    names = ("users", "items", "events", "max_events", "max_seconds", "driver_memory")
    report("training", {name: getattr(options, name) for name in names}, details, result, options.output)


if __name__ == "__main__":
    main()
