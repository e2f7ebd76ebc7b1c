"""An incremental night after 1 % of the users did something, against a full night on the same tables; and whether rows are the same.

make bench-incremental USERS=300000 ITEMS=50000
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from measuring import report
from night_process import RUN_DATE, Warehouse, trained_bundle

from recsys_batch.config import load_config
from recsys_batch.dataset.synthetic import END_US, IDS, World, make_interactions
from recsys_batch.read import read_table, run_rows
from recsys_batch.spark.session import get_session
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.tables.run_manifest import STEP_NAMES, latest_state_by_run

NEXT = "2026-01-02"


def new_events(world: World, share: float) -> pa.Table:
    """One more event each of a share of the users: an item that the next user took, a minute after the last day."""
    users = np.random.default_rng(world.seed).choice(world.n_users, size=max(1, int(world.n_users * share)), replace=False) + 1
    table = make_interactions(world, np.sort(users))
    first = np.unique(table["user_id"].to_numpy(), return_index=True)[1]
    rows = table.take(pa.array(first))
    when = pa.array(np.full(len(first), END_US + 60_000_000)).cast(pa.timestamp("us", tz="UTC"))
    rows = rows.set_column(rows.schema.get_field_index("event_ts"), rows.schema.field("event_ts"), when)
    rows = rows.set_column(rows.schema.get_field_index("event_date"), rows.schema.field("event_date"), when.cast(pa.date32()))
    return rows.set_column(
        rows.schema.get_field_index("item_id"), rows.schema.field("item_id"), pa.array(np.roll(rows["item_id"].to_numpy(), 1))
    )


def rows_of(warehouse: Path, run_id: str) -> pa.Table:
    """The run's topk without what tells runs apart, in order."""
    names = ["user_id", "rank", "item_id", "score", "candidate_rank", "source", "model_version"]
    table = read_table(str(warehouse), "topk", columns=names, where=pc.field("run_id") == run_id)
    return table.sort_by([("user_id", "ascending"), ("rank", "ascending")]).combine_chunks()


def run(description: str | None, measure: Callable[[argparse.Namespace, Warehouse], None]) -> None:
    """Measure on generated tables of the size that the command line says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=300_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--events-per-user", type=int, default=20)
    parser.add_argument("--train-seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=["model.embedding_dim=64"], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    arguments.set.append(f"retrieval.n_candidates={arguments.k}")
    with tempfile.TemporaryDirectory(prefix="bench-bundle-") as folder:
        bundle = Path(folder) / "bundle"
        trained_bundle(min(10_000, arguments.users), arguments.items, arguments, bundle)
        warehouse = Warehouse(arguments.users, arguments.items, arguments.events_per_user, arguments.seed, arguments.set, bundle)
        try:
            measure(arguments, warehouse)
        finally:
            warehouse.remove()


def measure(arguments: argparse.Namespace, warehouse: Warehouse) -> None:
    warehouse.command("nightly", "--run-date", RUN_DATE)
    config = load_config(warehouse.options[1], warehouse.options[3::2])
    spark = get_session(config)
    world = World(arguments.users, arguments.items, arguments.users * arguments.events_per_user, arguments.seed)
    events = new_events(world, arguments.share)
    assert WarehouseTables(spark, config).ids() == IDS
    WarehouseTables(spark, config).append("interactions", spark.createDataFrame(events), {"by": "benchmark"})
    seconds: dict[str, float] = {}
    found: dict[str, Any] = {}
    root = warehouse.folder / "warehouse"
    # The full one second: what is warm then is warm for it.
    for name, options in (("incremental", ["--incremental"]), ("full", ["--force"])):
        seconds[name] = warehouse.command("nightly", "--run-date", NEXT, *options)
        found[name] = max(latest_state_by_run(run_rows(str(root))).values(), key=lambda state: state.metrics["started_at"])
    same = rows_of(root, found["incremental"].run_id).equals(rows_of(root, found["full"].run_id))
    steps = {name: {step: run.metrics[f"{step}.seconds"] for step in STEP_NAMES} for name, run in found.items()}
    metrics = found["incremental"].metrics
    result = {
        "incremental_speedup": round(seconds["full"] / seconds["incremental"], 2),
        "incremental_seconds": round(seconds["incremental"], 2),
        "full_seconds": round(seconds["full"], 2),
        "users_changed": int(metrics["incremental.users_changed"]) if metrics["incremental"] else None,
        "rows_identical": same,
    }
    report("incremental", {"changed": events.num_rows, **vars(arguments)}, {"steps": steps}, result)


if __name__ == "__main__":
    run(__doc__, measure)
