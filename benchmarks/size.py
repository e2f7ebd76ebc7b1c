"""Benchmark scaling: generate, then candidates, for a tenth of the users and for all; time per user and memory of the workers.

With more than 100,000 items, also for a tenth of the users and 100,000 items: what more items cost each user.

Commands are run as a scheduler would, one process each. Embeddings follow the planted tastes of the generated users and items, are
brought by `register`, and every user's own history is filtered.

    make bench-size USERS=1000000 ITEMS=100000 DIM=64
    make bench-size USERS=2000000 ITEMS=1000000 DIM=128
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import ROOT, WorkerMemory, report

from recsys_batch.dataset.synthetic import World
from recsys_batch.read import read_table, run_rows
from recsys_batch.tables.list_columns import matrix_column
from recsys_batch.tables.run_manifest import latest_state_by_run

RUN_DATE = "2026-01-01"
_CHUNK = 100_000
FEWER_ITEMS = 100_000
"""What more items are compared with."""


@dataclass(frozen=True)
class Measured:
    """Measurement of one size: seconds by step, peak memory of a Python worker in candidates, recall, users with too few results."""

    n_users: int
    n_items: int
    seconds: dict[str, float]
    forecast: str
    peak_rss_mb: float
    peak_own_mb: float
    recall: float
    n_short: int


def embeddings(world: World, dim: int, folder: Path) -> None:
    """Parquet of both sides: the centre of a user's favourite cluster and half of the second's, items their cluster's, and noise."""
    rng = np.random.default_rng(world.seed)
    spread = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    centres = rng.normal(size=(world.n_clusters, dim)).astype(np.float32) * spread

    def write(name: str, key: str, n: int, centre_of: object) -> None:
        with pq.ParquetWriter(folder / f"{name}.parquet", pa.schema([(key, pa.int64()), ("embedding", pa.list_(pa.float32()))])) as out:
            for start in range(0, n, _CHUNK):
                ids = np.arange(start + 1, min(start + _CHUNK, n) + 1)
                vectors = centre_of(ids) + np.float32(0.7) * rng.normal(size=(len(ids), dim)).astype(np.float32) * spread  # type: ignore[operator]
                out.write_table(pa.table({key: ids, "embedding": matrix_column(vectors)}))

    def of_users(ids: np.ndarray) -> np.ndarray:
        first, second = world.favourites(ids)
        return np.asarray(centres[first] + np.float32(0.5) * centres[second])

    write("users", "user_id", world.n_users, of_users)
    write("items", "item_id", world.n_items, lambda ids: centres[world.clusters(ids)])


def night(world: World, dim: int, k: int, more: list[str]) -> Measured:
    """Run all commands from generate to candidates."""
    folder = Path(tempfile.mkdtemp(prefix="bench-size-"))
    settings = [f"paths.warehouse={folder / 'warehouse'}", f"paths.state={folder / 'state'}", f"paths.jars={ROOT / '.jars'}"]
    settings += ["retrieval.mode=auto", f"retrieval.n_candidates={k}", f"scoring.top_k={min(k, 100)}", *more]

    def run(*command: str) -> str:
        options = [part for setting in settings for part in ("--set", setting)]
        program = [str(Path(sys.executable).with_name("recsys-batch")), *command, "--conf", str(ROOT / "conf" / "local.toml"), *options]
        done = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
        return done.stdout

    try:
        sizes = {"users": world.n_users, "items": world.n_items, "events": world.n_events, "seed": world.seed}
        run("generate", *(part for name, value in sizes.items() for part in (f"--{name}", str(value))))
        embeddings(world, dim, folder)
        run("register", "--user-embeddings", str(folder / "users.parquet"), "--item-embeddings", str(folder / "items.parquet"))
        run("embed", "--run-date", RUN_DATE)
        run("index", "--run-date", RUN_DATE)
        forecast = run("candidates", "--run-date", RUN_DATE, "--dry-run")
        with WorkerMemory() as memory:
            run("candidates", "--run-date", RUN_DATE)
        (state,) = latest_state_by_run(run_rows(str(folder / "warehouse"))).values()
        n_short = read_table(str(folder / "warehouse"), "shortfalls").num_rows
        seconds = {step: state.metrics[f"{step}.seconds"] for step in ("embed", "index", "candidates")}
        assert state.metrics["candidates.users"] == world.n_users
        return Measured(
            world.n_users, world.n_items, seconds, forecast, memory.peak_rss_mb, memory.peak_own_mb, state.metrics["knn_recall"], n_short
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--events-per-user", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    sizes = [(arguments.users // 10, arguments.items), (arguments.users, arguments.items)]
    if arguments.items > FEWER_ITEMS:
        sizes.append((arguments.users // 10, FEWER_ITEMS))
    nights = []
    for n_users, n_items in sizes:
        world = World(n_users, n_items, n_users * arguments.events_per_user, arguments.seed)
        nights.append(night(world, arguments.dim, arguments.k, arguments.set))
        print(nights[-1], flush=True)
    small, large, *fewer_items = nights
    per_user = [measured.seconds["candidates"] / measured.n_users for measured in nights]
    result = {
        "users": large.n_users,
        "candidates_users_per_s": round(1 / per_user[1], 1),
        "users_per_s_at_a_tenth": round(1 / per_user[0], 1),
        "time_per_user_ratio": round(per_user[1] / per_user[0], 3),
        "peak_worker_rss_mb": round(large.peak_rss_mb, 1),
        "rss_ratio": round(large.peak_rss_mb / small.peak_rss_mb, 3),
        "recall": round(large.recall, 4),
    }
    if fewer_items:
        result["items_ratio"] = round(per_user[0] / per_user[2], 2)
    settings = {key: value for key, value in vars(arguments).items() if key != "output"}
    report("size", settings, {"runs": [measured.__dict__ for measured in nights]}, result, arguments.output)


if __name__ == "__main__":
    main()
