"""Lists of refreshed users are, row for row, those of a full night over the same events and the same model."""

from __future__ import annotations

import datetime as dt
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys_batch.config import Config
from recsys_batch.night.runner import run_night
from recsys_batch.read import latest_topk, read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.stream.refresher import Refresher

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

IDS = IdTypes("STRING", "BIGINT")
NEXT = dt.date(2026, 3, 2)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
COLUMNS = ["user_id", "rank", "item_id", "score", "candidate_rank", "source", "model_version"]
Event = tuple[str, int, float]


def append_events(spark: SparkSession, config: Config, events: list[Event], start: dt.datetime = NOON) -> None:
    rows = [(user, item, start + dt.timedelta(seconds=n), "buy", weight, start.date()) for n, (user, item, weight) in enumerate(events)]
    schema = TABLES["interactions"].arrow_schema(IDS)
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
    WarehouseTables(spark, config).append("interactions", spark.createDataFrame(table), {"by": "test"})


def live_lists(config: Config) -> list[tuple[Any, ...]]:
    """Each refreshed user's newest rows, by user and rank."""
    rows = read_table(config.paths.warehouse, "topk_live").to_pylist()
    newest: dict[str, int] = {}
    for row in rows:
        newest[row["user_id"]] = max(newest.get(row["user_id"], -1), row["batch_id"])
    current = [tuple(row[name] for name in COLUMNS) for row in rows if row["batch_id"] == newest[row["user_id"]]]
    return sorted(current)


def lists_of_a_full_night(spark: SparkSession, config: Config, folder: Path, users: set[str]) -> list[tuple[Any, ...]]:
    """The rows that these users get of a night over what interactions has now, on a copy of the warehouse."""
    shutil.copytree(config.paths.warehouse, folder)
    full = config.model_copy(update={"paths": config.paths.model_copy(update={"warehouse": str(folder)})})
    run_night(spark, full, NEXT)
    rows = latest_topk(str(folder), columns=COLUMNS)
    return sorted(tuple(row.values()) for row in rows.filter(pc.is_in(rows["user_id"], value_set=pa.array(sorted(users)))).to_pylist())


EVENTS: list[Event] = [
    ("u003", 450, 1.0),
    ("u003", 460, 2.0),
    ("u003", 450, 1.0),  # again
    ("newcomer", 30, 1.0),
    ("clicked only", 70, -1.0),
    ("quiet", 80, 1.0),  # until now in users alone
    ("returner", 50, -1.0),
    ("u010", 99_990, 1.0),  # an item that nobody knows
    ("somebody", 99_991, 1.0),
    ("glutton", 900, 1.0),
    *(("busy", 10 * n, 1.0) for n in range(2, 60)),
    *((f"u{n:03d}", 10 * (90 - n), 1.0) for n in range(20, 40)),
]


@pytest.mark.parametrize("seed", [1, 2])
def test_refreshed_users_have_the_rows_of_a_full_night(spark: SparkSession, fresh_published: Config, tmp_path: Path, seed: int) -> None:
    events, rng = list(EVENTS), random.Random(seed)
    rng.shuffle(events)
    refresher = Refresher(spark, fresh_published)
    refresher.follow_published_run()
    assert refresher.refresh(1000) is None
    while events:
        n = rng.randint(1, 40)
        append_events(spark, fresh_published, events[:n])
        events = events[n:]
        if rng.random() < 0.7:
            refresher.refresh(1000)
    while refresher.refresh(10):
        pass
    refresher.refresh_popular_lists()
    users = {user for user, _, _ in EVENTS}
    live = live_lists(fresh_published)
    assert {row[0] for row in live} == users
    assert live == lists_of_a_full_night(spark, fresh_published, tmp_path / "full", users)
