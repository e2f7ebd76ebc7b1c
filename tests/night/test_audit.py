"""The audit finds each way in which a night can be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pyspark.sql import functions as F

from recsys_batch.config import Audit, Config
from recsys_batch.night.audit import evaluate_gates, measure_run
from recsys_batch.night.run_context import RunContext
from recsys_batch.read import published_run
from recsys_batch.registry.mlflow_registry import ModelRegistry
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import artifact_root

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

GOOD = {
    "lists_broken": 0.0,
    "rows_not_finite": 0.0,
    "rows_seen": 0.0,
    "rows_unavailable": 0.0,
    "rows_ineligible": 0.0,
    "rows_ruled_out": 0.0,
    "rows_not_carried": 0.0,
    "list_fill": 1.0,
    "lists_short_unexplained": 0.0,
    "user_coverage": 1.0,
    "knn_recall": 1.0,
    "popular_share": 0.1,
}


def refused(**changes: float) -> list[str]:
    return [gate.name for gate in evaluate_gates({**GOOD, **changes}, Audit()) if not gate.passed]


def test_a_good_night_passes() -> None:
    assert refused() == []


@pytest.mark.parametrize("name", GOOD)
def test_each_gate_refuses_what_is_bad_and_what_is_undefined(name: str) -> None:
    worse = GOOD[name] + 1 if name in ("popular_share",) or GOOD[name] == 0 else 0.0
    assert refused(**{name: worse}) == [name]
    assert refused(**{name: float("nan")}) == [name]


@pytest.fixture
def context(spark: SparkSession, fresh_published: Config) -> RunContext:
    tables = WarehouseTables(spark, fresh_published)
    run = published_run(fresh_published.paths.warehouse)
    root = artifact_root(fresh_published.paths.warehouse)
    return RunContext(spark, fresh_published, tables, tables.require_ids(), run, root, ModelRegistry(fresh_published))


def test_what_is_wrong_in_the_rows_is_counted(context: RunContext, market: Any) -> None:
    clean = measure_run(context)
    assert {name: clean[name] for name in GOOD if GOOD[name] == 0.0} == {name: 0.0 for name in GOOD if GOOD[name] == 0.0}
    assert (clean["n_users"], clean["user_coverage"]) == (153.0, 1.0)
    seen = next(row["item_id"] for row in market.interactions.to_pylist() if row["user_id"] == "u001")
    spoiled = _spoiled(context.read_slice("topk"), int(seen))
    context.write_slice("topk", spoiled.localCheckpoint())
    found = measure_run(context)
    assert found["rows_seen"] == 1.0
    assert found["rows_unavailable"] == 3.0  # item 10, and twice an item that is nowhere
    assert found["lists_broken"] == 3.0  # an item twice, scores that rise, a rank that is missing
    assert found["lists_short_unexplained"] == 1.0
    assert found["n_users"] == 152.0
    assert found["user_coverage"] == pytest.approx(152 / 153)


def _spoiled(rows: DataFrame, seen: int) -> DataFrame:
    user, rank = F.col("user_id"), F.col("rank")
    item = (
        F.when((user == "u001") & (rank == 1), F.lit(seen))
        .when((user == "u002") & (rank == 1), F.lit(10))
        .when((user == "u003") & (rank <= 2), F.lit(900_000))
        .otherwise(F.col("item_id"))
    )
    score = F.when((user == "u004") & (rank == 20), F.lit(1e6)).otherwise(F.col("score"))
    kept = (user != "u005") & ~((user == "u006") & (rank == 1))

    return rows.withColumn("item_id", item).withColumn("score", score.cast("float")).where(kept)
