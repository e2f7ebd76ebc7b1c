"""A whole night, embed to publish, against MLlib's recommendForAllUsers alone, per user; or the growth of its cost with users.

The two run one after the other on the same machine, with the same session settings; MLlib gets factors of the same numbers and
ranks 20,000 of the users. The reference model is trained once, on a tenth of the users, and carried to every size: item features
are the same for all.

    make bench-night USERS=100000 ITEMS=50000
    python benchmarks/night.py --growth 10000,30000,100000,300000
"""

import argparse
import itertools
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ROOT, WorkerMemory, report
from mllib import mllib_users_per_s

from recsys_batch.cli import run
from recsys_batch.read import read_table, run_rows
from recsys_batch.tables.run_manifest import STEP_NAMES, latest_state_by_run

RUN_DATE = "2026-01-01"


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


def night(n_users: int, arguments: argparse.Namespace, bundle: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Seconds by step and peak memory; and item embeddings for MLlib's factors."""
    warehouse = Warehouse(n_users, arguments.items, arguments.events_per_user, arguments.seed, arguments.set, bundle)
    try:
        with WorkerMemory() as memory:
            seconds = warehouse.command("nightly", "--run-date", RUN_DATE)
        metrics = warehouse.metrics()
        steps = {step: metrics[f"{step}.seconds"] for step in STEP_NAMES}
        column = read_table(str(warehouse.folder / "warehouse"), "item_embeddings", columns=["embedding"])["embedding"].to_pylist()
        found = {
            "users": n_users,
            "seconds": seconds,
            "steps": steps,
            "peak_worker_rss_mb": memory.peak_rss_mb,
            "recall": metrics["knn_recall"],
        }
        return found, np.asarray(column, dtype=np.float32)
    finally:
        warehouse.remove()


def chart(runs: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds per user over users, a band per step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="users", ylabel="ms per user", title="Cost of a whole night")
    users = [one["users"] for one in runs]
    axes.stackplot(users, [[one["steps"][step] / one["users"] * 1000 for one in runs] for step in STEP_NAMES], labels=STEP_NAMES, alpha=0.8)
    axes.plot(users, [one["seconds"] / one["users"] * 1000 for one in runs], color="black", marker="o", label="command")
    middles, marginal = further_users(runs)
    axes.plot(middles, marginal, color="black", marker="s", linestyle="--", label="each further user")
    axes.set_xticks(users, [f"{n:,}" for n in users])
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def further_users(runs: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Between neighbouring sizes: (their geometric mean, milliseconds that each further user took)."""
    pairs = list(itertools.pairwise(runs))
    middles = [(one["users"] * more["users"]) ** 0.5 for one, more in pairs]
    return middles, [1000 * (more["seconds"] - one["seconds"]) / (more["users"] - one["users"]) for one, more in pairs]


def growth(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Cost per user, and of each further user: a night has a fixed part, so the first falls and the second is what has to stay flat."""
    per_user, (_, marginal) = [1000 * one["seconds"] / one["users"] for one in runs], further_users(runs)
    return {
        "users": [one["users"] for one in runs],
        "ms_per_user": [round(each, 4) for each in per_user],
        "ms_per_further_user": [round(each, 4) for each in marginal],
        "further_user_spread": round(max(marginal) / min(marginal) - 1, 3) if marginal else None,
        "largest_vs_flat": round(per_user[-1] / min(per_user), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--k", type=int, default=200, help="MLlib's list length; the night's candidates")
    parser.add_argument("--events-per-user", type=int, default=20)
    parser.add_argument("--mllib-users", type=int, default=20_000)
    parser.add_argument("--train-seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", help="comma-separated numbers of users: a chart instead of the comparison")
    parser.add_argument("--set", action="append", default=["model.embedding_dim=64"], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    arguments.set.append(f"retrieval.n_candidates={arguments.k}")
    sizes = [int(part) for part in arguments.growth.split(",")] if arguments.growth else [arguments.users]
    with tempfile.TemporaryDirectory(prefix="bench-bundle-") as folder:
        bundle = Path(folder) / "bundle"
        trained_bundle(min(10_000, min(sizes)), arguments.items, arguments, bundle)
        # A night that is not counted, so that no size pays for a cold JVM.
        night(min(2_000, min(sizes)), arguments, bundle)
        runs = []
        for n_users in sizes:
            found, items = night(n_users, arguments, bundle)
            runs.append(found)
            print(json.dumps(found), flush=True)
        settings = {key: value for key, value in vars(arguments).items() if key != "growth"}
        if arguments.growth:
            chart(runs, ROOT / "benchmarks" / "results" / "night_growth.png")
            report("night_growth", settings, {"runs": runs}, growth(runs))
            return
        users = np.random.default_rng(arguments.seed).normal(size=(arguments.mllib_users, items.shape[1])).astype(np.float32)
        mllib = mllib_users_per_s(users, items, arguments.k, arguments.set)
        rate = runs[0]["users"] / runs[0]["seconds"]
        result = {
            "night_users_per_s": round(rate, 1),
            "mllib_users_per_s": round(mllib, 1),
            "night_vs_mllib": round(rate / mllib, 2),
            "steps": {step: round(value, 2) for step, value in runs[0]["steps"].items()},
        }
        report("night", settings, runs[0], result)


if __name__ == "__main__":
    main()
