"""From an event to an answer: a night, its snapshot, a stream's micro-batches, and a server that answers from all of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recsys_batch.cli import run
from recsys_batch.config import Config
from recsys_batch.online.snapshot.repository import read_current
from recsys_batch.read import read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.stream.run_follower import RunFollower

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def test_an_event_changes_the_list_that_a_server_answers_with(
    spark: SparkSession, fresh_published: Config, options: Callable[[Config], list[str]], serve: Any, wait_for: Any, tmp_path: Path
) -> None:
    config = fresh_published.model_copy(update={"online": fresh_published.online.model_copy(update={"live": "table"})})
    warehouse = config.paths.warehouse
    assert run(["export-snapshot", *options(config), "--out", str(tmp_path / "snapshots")]) == 0
    server = serve(tmp_path / "snapshots", *options(config), "--set", "online.live=table")
    refresher = RunFollower(spark, config).follow()
    assert refresher.artifacts.run.run_id == read_current(tmp_path / "snapshots")

    def stream(*events: tuple[str, int, float]) -> None:
        rows = [(user, item, NOON + dt.timedelta(seconds=n), "buy", weight, NOON.date()) for n, (user, item, weight) in enumerate(events)]
        schema = TABLES["interactions"].arrow_schema(IdTypes("STRING", "BIGINT"))
        table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
        WarehouseTables(spark, config).append("interactions", spark.createDataFrame(table), {"by": "test"})
        assert refresher.refresh(1000) is not None

    def newest(user: str) -> tuple[list[int], list[float]]:
        rows = [row for row in read_table(warehouse, "topk_live").to_pylist() if row["user_id"] == user]
        rows = [row for row in rows if row["batch_id"] == max(row["batch_id"] for row in rows)]
        rows.sort(key=lambda row: row["rank"])
        return [row["item_id"] for row in rows], [row["score"] for row in rows]

    def answered(user: str) -> Any:
        return server.call("GET", f"/v1/users/{user}/topk?k=100")[1]

    night = answered("u003")
    assert night["lists"] == "night" and server.call("GET", "/v1/users/newcomer/topk")[0] == 404
    stream(("u003", 450, 1.0), ("newcomer", 30, 1.0), ("u004", 20, 1.0), ("browser", 70, -1.0))
    wait_for(lambda: answered("u003")["lists"] == "live")
    for user, segment in (("u003", "odd"), ("u004", "even"), ("newcomer", None)):
        items, scores = newest(user)
        answer = answered(user)
        assert [item["item_id"] for item in answer["items"]] == items and len(items) > 5
        assert [item["score"] for item in answer["items"]] == scores and answer["source"] == "batch"
        ranked = server.rank(user, k=len(items))
        assert ranked["source"] == "ranker" and ranked["degraded"] is None
        np.testing.assert_allclose([item["score"] for item in ranked["items"]], scores, atol=2e-4)
        assert server.call("GET", f"/v1/users/{user}")[1]["segment"] == segment
    assert answered("u003")["events_through"] == "2026-03-01T12:00:00Z" and 450 not in newest("u003")[0]
    assert [item["item_id"] for item in answered("u003")["items"]] != [item["item_id"] for item in night["items"]]
    assert (answered("browser")["source"], answered("browser")["lists"]) == ("popular", "live")
    stream(("newcomer", 60, 1.0))
    wait_for(lambda: [item["item_id"] for item in answered("newcomer")["items"]] == newest("newcomer")[0])
    assert 60 not in newest("newcomer")[0]
    refresher.close()
