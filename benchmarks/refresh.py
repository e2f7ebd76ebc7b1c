"""The lists of 1 % of the users refreshed by the stream, against a full night on the same tables; and whether their rows are the same.

make bench-refresh USERS=300000 ITEMS=50000
"""

import argparse
import tempfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from incremental import NEXT, new_events, rows_of
from measuring import report, seconds
from night import RUN_DATE, Warehouse, trained_bundle

from recsys_batch.config import load_config
from recsys_batch.dataset.synthetic import World
from recsys_batch.read import published_run, read_table
from recsys_batch.spark.session import get_session
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.stream.runner import run_stream


def live_rows(warehouse: Path) -> pa.Table:
    """The refreshed users' topk_live without what tells runs apart, in order; each was refreshed once."""
    names = ["user_id", "rank", "item_id", "score", "candidate_rank", "source", "model_version"]
    return (
        read_table(str(warehouse), "topk_live", columns=names).sort_by([("user_id", "ascending"), ("rank", "ascending")]).combine_chunks()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    spark, root = get_session(config), warehouse.folder / "warehouse"
    world = World(arguments.users, arguments.items, arguments.users * arguments.events_per_user, arguments.seed)
    events = new_events(world, arguments.share)
    WarehouseTables(spark, config).append("interactions", spark.createDataFrame(events), {"by": "benchmark"})
    refresh_seconds = seconds(lambda: run_stream(spark, config, available_now=True, trigger_seconds=1.0, stop=threading.Event()))
    live = live_rows(root)
    # The full one second: what is warm then is warm for it.
    full_seconds = warehouse.command("nightly", "--run-date", NEXT, "--force")
    full = rows_of(root, published_run(str(root)).run_id)
    same = live.equals(full.filter(pc.is_in(full["user_id"], value_set=live["user_id"].combine_chunks())).combine_chunks())
    result = {
        "refresh_speedup": round(full_seconds / refresh_seconds, 2),
        "refresh_seconds": round(refresh_seconds, 2),
        "full_seconds": round(full_seconds, 2),
        "users_refreshed": len(live["user_id"].unique()),
        "rows_identical": same,
    }
    report("refresh", {"changed": events.num_rows, **vars(arguments)}, {}, result)


if __name__ == "__main__":
    main()
