"""The lists of 1 % of the users refreshed by the stream, against a full night on the same tables; and whether their rows are the same.

make bench-refresh USERS=300000 ITEMS=50000
"""

import argparse
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from incremental import NEXT, new_events, rows_of, run
from measuring import report, seconds
from night_process import RUN_DATE, Warehouse

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
    run(__doc__, measure)
