"""A stream goes on after an erasure with the others' lists, as if the user had never been."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_batch.config import Config
from recsys_batch.erasure.eraser import Places, erase_users
from recsys_batch.read import read_table
from recsys_batch.schemas import TABLES
from recsys_batch.stream.runner import run_stream

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

GONE = "glutton"


def test_a_stream_goes_on_without_the_user(
    spark: SparkSession,
    fresh_published: Config,
    append_events: Callable[[Config, list[tuple[str, int, float]]], None],
    live_lists: Callable[[Config], list[tuple[Any, ...]]],
    full_night_lists: Callable[[Config, set[str]], list[tuple[Any, ...]]],
    tmp_path: Path,
) -> None:
    online = {"live": "table", "snapshots": str(tmp_path / "snapshots")}
    config = fresh_published.model_copy(update={"online": fresh_published.online.model_copy(update=online)})
    warehouse = Path(config.paths.warehouse)

    def stream() -> Any:
        return run_stream(spark, config, available_now=True, trigger_seconds=1.0, stop=threading.Event())

    append_events(config, [(GONE, 880, 1.0), ("u003", 450, 1.0), ("newcomer", 30, 1.0)])
    assert stream().users == 3
    folders = {name: str(warehouse / name) for name in TABLES if (warehouse / name).is_dir()}
    report = erase_users(Places(config, folders), [GONE])
    assert report.is_done and report.found["table topk_live"] and report.found["artefacts: live"] and report.found["stream caches"]
    append_events(config, [("u003", 460, 1.0), ("u010", 880, 1.0)])
    assert stream().users == 2
    users = set(read_table(str(warehouse), "topk_live")["user_id"].to_pylist())
    assert users == {"u003", "newcomer", "u010"}
    assert live_lists(config) == full_night_lists(config, users)
