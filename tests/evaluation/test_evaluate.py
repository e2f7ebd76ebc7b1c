"""evaluate's numbers are those that a reader computes from the tables with a calculator."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.evaluation.evaluate import Evaluation, evaluate_run, read_holdout_truth
from recsys_batch.read import latest_topk, published_run, read_table
from recsys_batch.spark.tables import WarehouseTables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

K = 5


@pytest.fixture(scope="module")
def truth(market: Any) -> pa.Table:
    """Two liked items and a returned one for every other user, a user that nobody knows, and an item that nobody knows."""
    rng = np.random.default_rng(1)
    rows = [(f"u{user:03d}", int(item) * 10, 1.0) for user in range(0, 150, 2) for item in rng.integers(1, 91, size=3)]
    rows += [("u000", 123_456, 1.0), ("stranger", 20, 1.0), ("u001", 30, -1.0), ("u000", rows[0][1], 1.0)]
    users, items, weights = zip(*rows, strict=True)
    return pa.table({"user_id": users, "item_id": pa.array(items, pa.int64()), "weight": pa.array(weights, pa.float32())})


@pytest.fixture(scope="module")
def result(published: Config, truth: pa.Table) -> Evaluation:
    warehouse = published.paths.warehouse
    return evaluate_run(warehouse, published_run(warehouse), truth, "a table", (K, 10), 0.0)


def by_hand(lists: dict[str, list[int]], truth: pa.Table) -> dict[str, float]:
    relevant: dict[str, set[int]] = {}
    for row in truth.to_pylist():
        if row["weight"] > 0 and row["user_id"] in lists:
            relevant.setdefault(row["user_id"], set()).add(row["item_id"])
    recall, ndcg, hit, mrr = [], [], [], []
    for user, items in relevant.items():
        hits = [rank for rank, item in enumerate(lists[user][:K], start=1) if item in items]
        recall.append(len(hits) / len(items))
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(items), K) + 1))
        ndcg.append(sum(1 / math.log2(rank + 1) for rank in hits) / ideal)
        hit.append(float(bool(hits)))
        mrr.append(1 / hits[0] if hits else 0.0)
    named = {"recall": recall, "ndcg": ndcg, "hit_rate": hit, "mrr": mrr}
    return {f"{name}_at_{K}": sum(values) / len(values) for name, values in named.items()}


def test_the_models_metrics_are_those_of_the_published_rows(result: Evaluation, truth: pa.Table, published: Config) -> None:
    lists: dict[str, list[int]] = {}
    for row in latest_topk(published.paths.warehouse).to_pylist():
        lists.setdefault(row["user_id"], []).append(row["item_id"])
    for name, value in by_hand(lists, truth).items():
        assert result.model[name] == pytest.approx(value), name
    assert (result.n_users, result.n_users_without_list) == (75, 1)
    shown = {item for items in lists.values() for item in items[:K]}
    assert result.model[f"coverage_at_{K}"] == pytest.approx(len(shown) / 89)  # 90 items, one unavailable


def test_popularity_is_what_counting_gives_without_seen_items(result: Evaluation, truth: pa.Table, published: Config, market: Any) -> None:
    counts: dict[int, set[str]] = {item: set() for item in market.items["item_id"].to_pylist() if item != 10}
    seen: dict[str, set[int]] = {}
    for row in market.interactions.to_pylist():
        seen.setdefault(row["user_id"], set()).add(row["item_id"])
        if row["weight"] > 0 and row["item_id"] != 10:
            counts[row["item_id"]].add(row["user_id"])
    order = sorted(counts, key=lambda item: (-len(counts[item]), item))
    users = set(latest_topk(published.paths.warehouse)["user_id"].to_pylist())
    lists = {user: [item for item in order if item not in seen.get(user, set())] for user in users}
    for name, value in by_hand(lists, truth).items():
        assert result.popularity[name] == pytest.approx(value), name


def test_without_a_holdout_the_truth_is_what_arrived_after_the_run(spark: SparkSession, fresh_published: Config, market: Any) -> None:
    warehouse = fresh_published.paths.warehouse
    run = published_run(warehouse)
    with pytest.raises(InputMissing, match="no interaction arrived after the run"):
        read_holdout_truth(warehouse, run)
    later = market.interactions.slice(0, 3).set_column(2, "event_ts", pa.array([dt.datetime(2026, 3, 5, tzinfo=dt.UTC)] * 3))
    WarehouseTables(spark, fresh_published).append(
        "interactions", spark.createDataFrame(later.cast(market.interactions.schema)), {"by": "test"}
    )
    truth, origin = read_holdout_truth(warehouse, run)
    assert sorted(truth["item_id"].to_pylist()) == sorted(later["item_id"].to_pylist())
    assert "arrived after run 2026-03-01-r1" in origin
    assert read_table(warehouse, "interactions").num_rows == market.interactions.num_rows + 3


def test_ids_of_another_kind_are_an_error_and_not_a_zero(published: Config) -> None:
    warehouse = published.paths.warehouse
    strangers = pa.table({"user_id": ["x"], "item_id": pa.array([10], pa.int64()), "weight": pa.array([1.0], pa.float32())})
    with pytest.raises(InputMissing, match="no user of a table has a list"):
        evaluate_run(warehouse, published_run(warehouse), strangers, "a table", (K,), 0.0)
