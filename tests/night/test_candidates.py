"""The candidates step under its settings: rules per segment, every item scored, and what the manifest keeps of the tuning."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pytest

from recsys_batch.config import Config
from recsys_batch.errors import ConfigError
from recsys_batch.night.audit import measure_run
from recsys_batch.night.open_run import open_run_context
from recsys_batch.night.runner import run_night, run_step
from recsys_batch.read import published_run, read_table

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAY = dt.date(2026, 3, 1)


def changed(config: Config, section: str, **values: Any) -> Config:
    return Config.model_validate({**config.model_dump(), section: {**getattr(config, section).model_dump(), **values}})


def items_of(config: Config, table: str) -> dict[str, set[int]]:
    rows = read_table(config.paths.warehouse, table).to_pylist()
    if table == "candidates":
        return {row["user_id"]: {item["item_id"] for item in row["items"]} for row in rows}
    lists: dict[str, set[int]] = {}
    for row in rows:
        lists.setdefault(row["user_id"], set()).add(row["item_id"])
    return lists


def test_a_segments_users_get_only_what_its_rule_allows(spark: SparkSession, fresh: Config, market: Any) -> None:
    rule = "array_contains(categories, 'genre 1') AND attributes['year'] <> '1990'"
    config = changed(fresh, "retrieval", mode="ivf", eligibility={"even": rule})
    run = run_night(spark, config, DAY)
    assert run.status == "PUBLISHED"
    allowed = {10 * n for n in range(1, 91) if n % 3 == 1 and n % 5 != 0}
    segment = dict(zip(market.users["user_id"].to_pylist(), market.users["segment"].to_pylist(), strict=True))
    candidates = items_of(config, "candidates")
    assert set(candidates) == set(items_of(config, "topk")) == set(market.interactions["user_id"].to_pylist()) | {"quiet"}
    seen: dict[str, set[int]] = {}
    for user, item in zip(market.interactions["user_id"].to_pylist(), market.interactions["item_id"].to_pylist(), strict=True):
        seen.setdefault(user, set()).add(item)
    for user, items in candidates.items():
        if segment.get(user) == "even":
            assert items == allowed - seen.get(user, set()) - {10}, user  # "quiet" too, whose list is the popular one
        elif user != "glutton":
            assert len(items) == config.retrieval.n_candidates
            assert items - allowed
    short = read_table(config.paths.warehouse, "shortfalls")
    reasons = dict(zip(short["user_id"].to_pylist(), short["reason"].to_pylist(), strict=True))
    assert reasons.pop("glutton") == "catalogue_exhausted"
    assert set(reasons.values()) == {"eligible_exhausted"}
    assert set(reasons) == {user for user, items in candidates.items() if segment.get(user) == "even"}


def test_the_audit_counts_rows_that_a_rule_forbids(spark: SparkSession, fresh_published: Config, market: Any) -> None:
    none_of_them = changed(fresh_published, "retrieval", eligibility={"even": "item_id < 0", "all": "item_id <= 450"})
    context = open_run_context(spark, none_of_them, dt.date(2026, 3, 2))
    run = published_run(fresh_published.paths.warehouse)
    context.run = replace(context.run, run_id=run.run_id, run_date=run.run_date)
    segment = dict(zip(market.users["user_id"].to_pylist(), market.users["segment"].to_pylist(), strict=True))
    rows = read_table(fresh_published.paths.warehouse, "topk").to_pylist()
    forbidden = sum(segment.get(row["user_id"]) == "even" or row["item_id"] > 450 for row in rows)
    assert measure_run(context)["rows_ineligible"] == forbidden > 0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("no_such_column = 1", "cannot be evaluated over items"),
        ("item_id +", "cannot be evaluated over items"),
        ("item_id + 1", "gives bigint, it must give a boolean"),
        ("item_id in (select item_id from delta.`/etc`)", "cannot be evaluated|reaches beyond"),
        ("exists (select 1)", "reaches beyond the columns of items"),
        ("reflect('java.lang.System', 'getenv', 'HOME') = 'x'", r"reaches beyond the columns of items \(CallMethodViaReflection\)"),
        ("row_number() over (order by item_id) = 1", "reaches beyond the columns of items"),
    ],
)
def test_a_rule_that_is_no_boolean_over_items_is_bad_config(spark: SparkSession, fresh: Config, rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_step(spark, changed(fresh, "retrieval", eligibility={"even": rule}), "embed", DAY)


def test_rules_of_the_business_shape_the_lists_and_say_what_they_changed(spark: SparkSession, fresh: Config) -> None:
    rules = {"boosts": {"item_id = 300": 100.0}, "blocklist": "item_id = 290", "max_per_category": 4}
    run = run_night(spark, changed(fresh, "rules", **rules), DAY)
    assert run.status == "PUBLISHED"
    assert run.metrics["rules.boosts.rows_changed"] > 0
    assert run.metrics["rules.max_per_category.rows_changed"] > 0
    assert run.metrics["audit.rows_ruled_out"] == 0.0
    lists = items_of(fresh, "topk")
    assert not any(290 in items for items in lists.values())
    first = {row["user_id"]: row["item_id"] for row in read_table(fresh.paths.warehouse, "topk").to_pylist() if row["rank"] == 1}
    had = {user for user, items in items_of(fresh, "candidates").items() if 300 in items}
    assert had
    assert all(first[user] == 300 for user in had)
    for user, items in lists.items():
        for genre in range(3):
            assert sum(item // 10 % 3 == genre for item in items) <= 4, user
    # Three genres of at most four leave twelve of the twenty places: everybody is short, and the table says why.
    short = read_table(fresh.paths.warehouse, "shortfalls")
    reasons = dict(zip(short["user_id"].to_pylist(), short["reason"].to_pylist(), strict=True))
    assert reasons.pop("glutton") == "catalogue_exhausted"
    assert set(reasons.values()) == {"rules"}
    assert dict(zip(short["user_id"].to_pylist(), short["n_items"].to_pylist(), strict=True)) == {
        u: len(items) for u, items in lists.items()
    }


def test_every_item_can_be_scored_instead_of_retrieved(spark: SparkSession, fresh: Config, market: Any) -> None:
    config = changed(fresh, "scoring", candidates="all")
    run = run_night(spark, config, DAY)
    assert run.status == "PUBLISHED"
    available = {10 * n for n in range(2, 91)}
    seen: dict[str, set[int]] = {}
    for user, item in zip(market.interactions["user_id"].to_pylist(), market.interactions["item_id"].to_pylist(), strict=True):
        seen.setdefault(user, set()).add(item)
    for user, items in items_of(config, "candidates").items():
        assert items == available - seen.get(user, set())
    for row in read_table(config.paths.warehouse, "candidates").to_pylist():
        scores = [item["score"] for item in row["items"]]
        assert scores == sorted(scores, reverse=True)
    assert read_table(config.paths.warehouse, "shortfalls")["user_id"].to_pylist() == ["glutton"]


def test_scoring_every_item_is_refused_where_items_are_many(spark: SparkSession, fresh: Config) -> None:
    config = changed(fresh, "scoring", candidates="all", all_max_items=80)
    run_step(spark, config, "embed", DAY)
    with pytest.raises(ConfigError, match=r"would rank 89 items for every user, more than scoring\.all_max_items = 80"):
        run_step(spark, config, "index", DAY)


def test_the_manifest_and_mlflow_keep_the_tuning(spark: SparkSession, fresh: Config) -> None:
    config = changed(fresh, "scoring", top_k=1)
    config = changed(config, "retrieval", mode="ivf", n_candidates=1, target_recall=0.9)
    run_step(spark, config, "embed", DAY)
    metrics = run_step(spark, config, "index", DAY).metrics
    assert metrics["nlist"] > 1
    assert metrics["list_imbalance"] >= 1.0
    setting = f"nprobe_{metrics['nprobe']:.0f}.overfetch_1"
    assert metrics[f"tuning.recall.{setting}"] == metrics["knn_recall"] >= 0.9
    assert metrics[f"tuning.seconds_per_1000_users.{setting}"] > 0
    (row,) = pc.unique(read_table(config.paths.warehouse, "runs")["mlflow_run_id"]).to_pylist()
    assert [path.name for path in Path(config.paths.state).rglob("*.png") if row in path.parts] == ["retrieval_tuning.png"]
