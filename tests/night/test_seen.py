"""Nights where some segments get again what they have had: lists, the audit, and incremental nights."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from recsys_batch.config import Config
from recsys_batch.night import incremental as module
from recsys_batch.night.audit import measure_run
from recsys_batch.night.open_run import open_run_context
from recsys_batch.night.runner import run_night
from recsys_batch.night.steps import candidates as candidates_module
from recsys_batch.read import published_run, read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.tables import WarehouseTables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

IDS = IdTypes("STRING", "BIGINT")
DAY = dt.date(2026, 3, 1)
NEXT = dt.date(2026, 3, 2)
AFTER = 30
BOUNDARY = dt.datetime(2026, 3, 2, tzinfo=dt.UTC) - dt.timedelta(days=AFTER)
"""What happened until then may come again in the night of DAY, for users of "odd"."""
SEEN: dict[str, Any] = {"even": "exclude", "odd": {"after_days": AFTER}, "all": "allow"}
OUTPUTS = ("user_embeddings", "item_embeddings", "candidates", "shortfalls", "popular", "topk")
Event = tuple[str, int, dt.datetime | None]


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    values = config.model_dump()
    return Config.model_validate({**values, **{name: {**values[name], **section} for name, section in sections.items()}})


def add_events(spark: SparkSession, config: Config, events: list[Event]) -> None:
    schema = TABLES["interactions"].arrow_schema(IDS)
    rows = [(user, item, when, "buy", 1.0, DAY if when is None else when.date()) for user, item, when in events]
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
    WarehouseTables(spark, config).append("interactions", spark.createDataFrame(table), {"by": "test"})


def put_item(spark: SparkSession, config: Config, item: int) -> None:
    schema = TABLES["items"].arrow_schema(IDS)
    row = (item, f"Title {item}", ["genre 1"], True, dt.datetime(2026, 3, 1, tzinfo=dt.UTC), [("year", "1991")])
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True))], schema=schema)
    WarehouseTables(spark, config).upsert("items", spark.createDataFrame(table), "item_id", {"by": "test"})


def seen_items(events: list[Event], segment: dict[str, str], boundary: dt.datetime) -> dict[str, set[int]]:
    """Which items SEEN keeps from whom."""
    seen: dict[str, set[int]] = {}
    for user, item, when in events:
        rule = SEEN[segment.get(user, "all")]
        if rule == "exclude" or (rule != "allow" and (when is None or when > boundary)):
            seen.setdefault(user, set()).add(item)
    return seen


def segments_of(market: Any) -> dict[str, str]:
    return dict(zip(market.users["user_id"].to_pylist(), market.users["segment"].to_pylist(), strict=True))


EDGES: list[Event] = [
    ("u001", 810, BOUNDARY),
    ("u001", 820, BOUNDARY + dt.timedelta(microseconds=1)),
    ("u001", 830, None),
    ("u001", 840, BOUNDARY - dt.timedelta(days=9)),
    ("u001", 840, BOUNDARY + dt.timedelta(days=9)),  # the newest counts
    ("u002", 810, BOUNDARY),
    ("quiet", 820, None),
    *((f"u{n:03d}", 890, BOUNDARY + dt.timedelta(days=1)) for n in (3, 5, 7, 9, 11, 13, 15)),  # the last moment that the next night frees
]


def test_a_night_lists_again_what_each_segment_may_have_again(spark: SparkSession, fresh: Config, market: Any) -> None:
    add_events(spark, fresh, EDGES)
    config = changed(fresh, retrieval={"seen": SEEN}, scoring={"candidates": "all"})
    run = run_night(spark, config, DAY)
    assert (run.status, run.metrics["audit.rows_seen"]) == ("PUBLISHED", 0.0)
    events = [*((row["user_id"], row["item_id"], row["event_ts"]) for row in market.interactions.to_pylist()), *EDGES]
    segment, available = segments_of(market), {10 * n for n in range(2, 91)}
    seen, had = seen_items(events, segment, BOUNDARY), {(user, item) for user, item, _ in events}
    lists = {
        row["user_id"]: {item["item_id"] for item in row["items"]} for row in read_table(config.paths.warehouse, "candidates").to_pylist()
    }
    assert set(lists) == {user for user, _, _ in events} | {"quiet"}
    for user, items in lists.items():
        assert items == available - seen.get(user, set()), user
    assert lists["u001"] & {810, 820, 830, 840} == {810}
    assert len(lists["glutton"]) == len(lists["returner"]) == len(available)  # one by the model, one by the popular list
    assert read_table(config.paths.warehouse, "shortfalls").num_rows == 0
    topk = read_table(config.paths.warehouse, "topk").to_pylist()
    again = {segment.get(row["user_id"]) for row in topk if (row["user_id"], row["item_id"]) in had}
    assert again == {"odd", None}


@pytest.mark.parametrize("mode", ["ivf", "exact"])
def test_retrieved_candidates_keep_to_it_too(spark: SparkSession, fresh: Config, market: Any, mode: str) -> None:
    add_events(spark, fresh, EDGES)
    config = changed(fresh, retrieval={"seen": SEEN, "mode": mode, "eligibility": {"odd": "item_id <= 850"}})
    assert run_night(spark, config, DAY).metrics["audit.rows_seen"] == 0.0
    events = [*((row["user_id"], row["item_id"], row["event_ts"]) for row in market.interactions.to_pylist()), *EDGES]
    segment = segments_of(market)
    seen, had = seen_items(events, segment, BOUNDARY), {(user, item) for user, item, _ in events}
    again = set()
    for row in read_table(config.paths.warehouse, "candidates").to_pylist():
        user, items = row["user_id"], {item["item_id"] for item in row["items"]}
        assert not items & seen.get(user, set())
        assert len(items) == config.retrieval.n_candidates
        if segment.get(user) == "odd":
            assert max(items) <= 850
        again |= {segment.get(user) for item in items if (user, item) in had}
    assert again == {"odd", None}


def test_the_audit_counts_what_the_setting_keeps_out(spark: SparkSession, fresh: Config, market: Any) -> None:
    add_events(spark, fresh, EDGES)
    free = changed(fresh, retrieval={"seen": "allow"})
    assert run_night(spark, free, DAY).status == "PUBLISHED"
    events = [*((row["user_id"], row["item_id"], row["event_ts"]) for row in market.interactions.to_pylist()), *EDGES]
    rows = {(row["user_id"], row["item_id"]) for row in read_table(free.paths.warehouse, "topk").to_pylist()}
    seen = seen_items(events, segments_of(market), BOUNDARY)
    forbidden = {"allow": 0, "exclude": len(rows & {(user, item) for user, item, _ in events})}
    forbidden["by segment"] = sum((user, item) in rows for user, items in seen.items() for item in items)
    assert 0 < forbidden["by segment"] < forbidden["exclude"]
    for name, setting in {"allow": "allow", "exclude": "exclude", "by segment": SEEN}.items():
        context = open_run_context(spark, changed(fresh, retrieval={"seen": setting}), NEXT)
        run = published_run(free.paths.warehouse)
        context.run = replace(context.run, run_id=run.run_id, run_date=run.run_date)
        assert measure_run(context)["rows_seen"] == forbidden[name], name


def rows_of(config: Config, run_id: str, name: str) -> list[str]:
    """Rows of the run in a fixed order, without what tells runs apart."""
    rows = [row for row in read_table(config.paths.warehouse, name).to_pylist() if row["run_id"] == run_id]
    return sorted(str({key: value for key, value in row.items() if key not in ("run_id", "generated_at")}) for row in rows)


@pytest.fixture
def nights(spark: SparkSession, fresh: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Publishes the night of DAY, lets things happen, and gives the incremental and the full night of NEXT, on copies."""
    monkeypatch.setattr(module, "_TOO_MANY", 0.99)

    def run(change: Any, events: list[Event]) -> tuple[Config, Any, Config, Any]:
        config = changed(fresh, retrieval={"seen": SEEN})
        add_events(spark, config, events)
        run_night(spark, config, DAY)
        change(config)
        shutil.copytree(config.paths.warehouse, tmp_path / "full")
        full = changed(config, paths={"warehouse": str(tmp_path / "full")})
        return config, run_night(spark, config, NEXT, incremental=True), full, run_night(spark, full, NEXT)

    return run


def test_an_incremental_night_gives_back_what_the_days_between_have_freed(nights: Any, market: Any) -> None:
    config, run, full_config, full = nights(lambda config: None, EDGES)
    assert (run.status, run.metrics["incremental"]) == ("PUBLISHED", 1.0)
    for table in OUTPUTS:
        assert rows_of(config, run.run_id, table) == rows_of(full_config, full.run_id, table), table
    events = [*((row["user_id"], row["event_ts"]) for row in market.interactions.to_pylist()), *((user, when) for user, _, when in EDGES)]
    segment, until = segments_of(market), BOUNDARY + dt.timedelta(days=1)
    freed = {user for user, when in events if segment.get(user) == "odd" and when is not None and BOUNDARY < when <= until}
    assert len({user for user, when in events if when == until} - {user for user, when in events if when and BOUNDARY < when < until}) > 0
    # returner has no embedding
    assert run.metrics["incremental.users_changed"] == len(freed | {"returner"}) > 5


def test_a_new_item_goes_into_carried_lists_where_it_may_come_again(spark: SparkSession, nights: Any) -> None:
    # Item 10 is unavailable until the second night. Some of those who have had it may have it again, others may not.
    may, may_not = [f"u{n:03d}" for n in range(5, 60, 2)], [f"u{n:03d}" for n in (*range(4, 60, 2), *range(61, 100, 2))]
    before, after = BOUNDARY - dt.timedelta(days=60), BOUNDARY + dt.timedelta(days=2)
    events = [*((user, 10, before) for user in may), *((user, 10, after) for user in may_not)]
    config, run, full_config, full = nights(lambda config: put_item(spark, config, 10), events)
    assert run.metrics["incremental"] == 1.0
    for table in OUTPUTS:
        assert rows_of(config, run.run_id, table) == rows_of(full_config, full.run_id, table), table
    changed_users = run.metrics["incremental.users_changed"]
    rows = [row for row in read_table(config.paths.warehouse, "candidates").to_pylist() if row["run_id"] == run.run_id]
    holders = {row["user_id"] for row in rows if 10 in {item["item_id"] for item in row["items"]}}
    assert not holders & set(may_not)
    assert changed_users < len(rows) - len(may) < len(rows)
    assert holders & set(may)


def test_pairs_of_new_items_are_seen_by_the_same_rules(spark: SparkSession, fresh: Config) -> None:
    events: list[Event] = [
        ("u001", 905, BOUNDARY),
        ("u003", 905, BOUNDARY + dt.timedelta(days=1)),
        ("u002", 905, BOUNDARY),
        ("x", 905, None),
    ]
    add_events(spark, fresh, events)
    expected = {"exclude": {"u001", "u002", "u003", "x"}, "allow": set(), "by segment": {"u002", "u003"}}
    for name, setting in {"exclude": "exclude", "allow": "allow", "by segment": SEEN}.items():
        context = open_run_context(spark, changed(fresh, retrieval={"seen": setting}), DAY)
        pairs = candidates_module.collect_seen_pairs(context, context.read_input("interactions").where("item_id = 905"))
        assert set(pairs["user_id"].to_pylist()) == expected[name], name
