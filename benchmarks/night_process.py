"""Nights of one build, one after the other in one process: called by night.py, which names the build in PYTHONPATH.

The session stays warm from night to night, as a scheduler's long-lived driver would keep it. The first two nights are of 2,000 users: one
pays for a cold JVM, the other is what a night costs whatever its users. Prints a JSON list of what was measured, the small one first.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ROOT, WorkerMemory

from recsys_batch.cli import run
from recsys_batch.read import read_table, run_rows
from recsys_batch.tables.run_manifest import STEP_NAMES, latest_state_by_run

RUN_DATE = "2026-01-01"
SMALL = 2_000


class Warehouse:
    """Generated tables in a temporary folder, with a model."""

    def __init__(self, n_users: int, n_items: int, events_per_user: int, seed: int, more: list[str], bundle: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-night-"))
        self.options = ["--conf", str(ROOT / "conf" / "local.toml")]
        places = [f"paths.warehouse={self.folder / 'warehouse'}", f"paths.state={self.folder / 'state'}", f"paths.jars={ROOT / '.jars'}"]
        for setting in [*places, "retrieval.mode=auto", *more]:
            self.options += ["--set", setting]
        numbers = {"users": n_users, "items": n_items, "events": n_users * events_per_user, "seed": seed}
        self.command("generate", *(part for name, value in numbers.items() for part in (f"--{name}", str(value))))
        if bundle is not None:
            self.command("register", "--bundle", str(bundle))

    def command(self, *words: str) -> float:
        """Seconds of a command in this process: the session stays warm, as a scheduler's long-lived driver would keep it."""
        started = time.perf_counter()
        code = run([*words, *self.options])
        if code:
            raise SystemExit(f"{' '.join(words)} ended with {code}")
        return time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        runs = latest_state_by_run(run_rows(str(self.folder / "warehouse")))
        return dict(max(runs.values(), key=lambda state: state.metrics["started_at"]).metrics)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def trained_bundle(n_users: int, n_items: int, arguments: argparse.Namespace, target: Path) -> None:
    """The champion of a small generated world with the same items."""
    small = Warehouse(n_users, n_items, arguments.events_per_user, arguments.seed, arguments.set)
    try:
        small.command("train", "--max-seconds", str(arguments.train_seconds))
        (bundle,) = small.folder.glob("state/**/bundle.json")
        shutil.copytree(bundle.parent, target)
    finally:
        small.remove()


def night(n_users: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a night and measure seconds by step and peak memory; the item embeddings are left in ``arguments.item_embeddings``."""
    warehouse = Warehouse(n_users, arguments.items, arguments.events_per_user, arguments.seed, arguments.set, arguments.bundle)
    try:
        with WorkerMemory() as memory:
            seconds = warehouse.command("nightly", "--run-date", RUN_DATE)
        metrics = warehouse.metrics()
        steps = {step: metrics[f"{step}.seconds"] for step in STEP_NAMES}
        column = read_table(str(warehouse.folder / "warehouse"), "item_embeddings", columns=["embedding"])["embedding"].combine_chunks()
        np.save(arguments.item_embeddings, np.asarray(column.flatten(), dtype=np.float32).reshape(len(column), -1))
        return {
            "users": n_users,
            "seconds": seconds,
            "steps": steps,
            "peak_worker_rss_mb": memory.peak_rss_mb,
            "recall": metrics["knn_recall"],
        }
    finally:
        warehouse.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", required=True)
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--events-per-user", type=int, required=True)
    parser.add_argument("--train-seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--bundle", type=Path, required=True, help="model; trained first where it is not there")
    parser.add_argument("--item-embeddings", type=Path, required=True, help="file to write")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if not arguments.bundle.exists():
        trained_bundle(10_000, arguments.items, arguments, arguments.bundle)
    night(SMALL, arguments)
    arguments.output.write_text(json.dumps([night(n_users, arguments) for n_users in (SMALL, *arguments.users)]), encoding="utf-8")


if __name__ == "__main__":
    main()
