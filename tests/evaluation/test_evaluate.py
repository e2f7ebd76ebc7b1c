"""evaluate's numbers are those that a reader computes from the tables with a calculator."""

from __future__ import annotations

import datetime as dt
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from recsys_batch.cli import run as run_command
from recsys_batch.config import Config
from recsys_batch.dataset.seen_policy import make_seen_policy
from recsys_batch.errors import InputMissing
from recsys_batch.evaluation.evaluate import Evaluation, evaluate_run, read_holdout_truth
from recsys_batch.read import latest_topk, published_run, read_table
from recsys_batch.spark.tables import WarehouseTables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

K = 5
EXCLUDE = make_seen_policy("exclude", dt.date(2026, 3, 1))


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
    return evaluate_run(warehouse, published_run(warehouse), truth, "a table", (K, 10), 0.0, EXCLUDE)


def pairs_of(table: pa.Table) -> set[tuple[str, int]]:
    return set(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))


def relevant_items(truth: pa.Table, interactions: pa.Table) -> dict[str, set[int]]:
    relevant: dict[str, set[int]] = {}
    for user, item in pairs_of(truth.filter(pc.greater(truth["weight"], 0))) - pairs_of(interactions):
        relevant.setdefault(user, set()).add(item)
    return relevant


def by_hand(lists: dict[str, list[int]], truth: pa.Table, interactions: pa.Table) -> dict[str, float]:
    relevant = {user: items for user, items in relevant_items(truth, interactions).items() if user in lists}
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


def test_the_models_metrics_are_those_of_the_published_rows(result: Evaluation, truth: pa.Table, published: Config, market: Any) -> None:
    lists: dict[str, list[int]] = {}
    for row in latest_topk(published.paths.warehouse).to_pylist():
        lists.setdefault(row["user_id"], []).append(row["item_id"])
    for name, value in by_hand(lists, truth, market.interactions).items():
        assert result.model[name] == pytest.approx(value), name
    relevant = relevant_items(truth, market.interactions)
    assert (result.n_users, result.n_users_without_list) == (len(relevant) - 1, 1)
    assert result.n_relevant == sum(map(len, relevant.values())) - 1
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
    for name, value in by_hand(lists, truth, market.interactions).items():
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
        evaluate_run(warehouse, published_run(warehouse), strangers, "a table", (K,), 0.0, EXCLUDE)


def with_repeats(truth: pa.Table, market: Any) -> pa.Table:
    """The truth, and what some users did before: once again."""
    again = market.interactions.filter(pc.match_substring_regex(market.interactions["user_id"], "[05]$")).select(truth.schema.names)
    return pa.concat_tables([truth, again.cast(truth.schema)])


def known_pairs(truth: pa.Table) -> set[tuple[str, int]]:
    return {(user, item) for user, item in pairs_of(truth.filter(pc.greater(truth["weight"], 0))) if user != "stranger"}


def put_oracles_lists(warehouse: str, relevant: dict[str, set[int]]) -> None:
    """Replace the published lists by the relevant items, and behind them what was listed."""
    rows, listed = read_table(warehouse, "topk").to_pylist(), dict[str, list[int]]()
    for row in rows:
        listed.setdefault(row["user_id"], []).append(row["item_id"])
    oracle = {}
    for user, items in listed.items():
        wanted = relevant.get(user, set())
        oracle[user] = sorted(wanted) + [item for item in items if item not in wanted]
    changed = [{**row, "item_id": oracle[row["user_id"]][row["rank"] - 1]} for row in rows]
    schema = DeltaTable(f"{warehouse}/topk").to_pyarrow_dataset().schema
    write_deltalake(f"{warehouse}/topk", pa.Table.from_pylist(changed, schema=schema), mode="overwrite")


def test_an_oracles_lists_are_perfect_although_users_take_again_what_they_had(
    fresh_published: Config, truth: pa.Table, market: Any
) -> None:
    warehouse, repeated = fresh_published.paths.warehouse, with_repeats(truth, market)
    put_oracles_lists(warehouse, relevant_items(repeated, market.interactions))
    found = evaluate_run(warehouse, published_run(warehouse), repeated, "a table", (K, 10), 0.0, EXCLUDE)
    for name in ("recall", "ndcg", "hit_rate", "mrr"):
        assert [found.model[f"{name}_at_{k}"] for k in (K, 10)] == [1.0, 1.0], name
    assert found.n_seen == len(known_pairs(repeated) & pairs_of(market.interactions)) > 200
    assert found.n_relevant == len(known_pairs(repeated) - pairs_of(market.interactions))


def test_a_pair_that_may_be_listed_again_is_relevant(published: Config, truth: pa.Table, market: Any) -> None:
    warehouse, repeated = published.paths.warehouse, with_repeats(truth, market)
    run, end = published_run(warehouse), dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
    segment = dict(zip(market.users["user_id"].to_pylist(), market.users["segment"].to_pylist(), strict=True))
    last = {(row["user_id"], row["item_id"]): row["event_ts"] for row in market.interactions.to_pylist()}
    pairs = known_pairs(repeated)
    expected = {
        "allow": 0,
        "by segment": sum(segment[user] != "odd" for user, item in pairs & set(last)),
        "by age": sum(end - last[pair] < dt.timedelta(days=40) for pair in pairs & set(last)),
    }
    assert 0 < expected["by segment"] < len(pairs & set(last)) > expected["by age"] > 0
    settings = {"allow": "allow", "by segment": {"odd": "allow"}, "by age": {"after_days": 40}}
    for name, setting in settings.items():
        found = evaluate_run(warehouse, run, repeated, "a table", (K,), 0.0, make_seen_policy(setting, run.run_date))
        assert (found.n_seen, found.n_relevant) == (expected[name], len(pairs) - expected[name]), name


def test_where_all_may_be_listed_again_popularity_is_one_list_for_everybody(published: Config, truth: pa.Table) -> None:
    warehouse = published.paths.warehouse
    run = published_run(warehouse)
    found = evaluate_run(warehouse, run, truth, "a table", (K,), 0.0, make_seen_policy("allow", run.run_date))
    assert found.popularity[f"coverage_at_{K}"] == pytest.approx(K / 89)


def test_a_truth_of_repeats_alone_is_said_to_be_one(published: Config, market: Any) -> None:
    warehouse = published.paths.warehouse
    with pytest.raises(InputMissing, match="users had seen all 25 relevant items of a table before run 2026-03-01-r1"):
        evaluate_run(warehouse, published_run(warehouse), market.interactions.slice(0, 25), "a table", (K,), 0.0, EXCLUDE)


def test_intervals_hold_the_means_and_the_gain_over_popularity(result: Evaluation) -> None:
    assert set(result.intervals) == {f"{name}_at_{k}" for name in ("recall", "ndcg", "hit_rate", "mrr") for k in (K, 10)}
    for name, interval in result.intervals.items():
        assert interval.low <= result.model[name] <= interval.high
        gain = result.gain_over_popularity[name]
        assert gain.low <= result.model[name] - result.popularity[name] <= gain.high
    assert result.previous is None


def test_better_lists_than_the_run_before_are_told_from_the_same_ones(fresh_published: Config, truth: pa.Table, market: Any) -> None:
    warehouse = fresh_published.paths.warehouse
    run = published_run(warehouse)
    same = evaluate_run(warehouse, run, truth, "a table", (K,), 0.0, EXCLUDE, previous=run).previous
    assert same is not None
    assert same.n_users == evaluate_run(warehouse, run, truth, "a table", (K,), 0.0, EXCLUDE).n_users
    assert not any(gain.excludes_zero for gain in same.gain.values())
    before = evaluate_run(warehouse, run, truth, "a table", (K,), 0.0, EXCLUDE)
    assert same.model == pytest.approx({name: before.model[name] for name in same.model})
    put_oracles_lists(warehouse, relevant_items(truth, market.interactions))
    perfect = evaluate_run(warehouse, run, truth, "a table", (K,), 0.0, EXCLUDE)
    assert perfect.gain_over_popularity[f"ndcg_at_{K}"].low > 0


def test_a_run_before_without_lists_of_these_users_is_left_out(published: Config, truth: pa.Table) -> None:
    warehouse = published.paths.warehouse
    run = published_run(warehouse)
    nowhere = replace(run, run_id="2020-01-01-r1", run_date=dt.date(2020, 1, 1))
    assert evaluate_run(warehouse, run, truth, "a table", (K,), 0.0, EXCLUDE, previous=nowhere).previous is None


def test_what_is_left_out_is_printed_and_in_the_json(
    published: Config, options: Any, market: Any, truth: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = tmp_path / "later.parquet"
    pq.write_table(with_repeats(truth, market), later)
    command = ["evaluate", *options(published), "--truth", str(later), "--format", "parquet", "--k", "5"]
    assert run_command([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_seen"] == len(known_pairs(with_repeats(truth, market)) & pairs_of(market.interactions))
    assert run_command(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"left out: {found['n_seen']} relevant items that users had seen before, 1 users without a list" in printed
    assert run_command([*command, "--set", "retrieval.seen=allow", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_seen"] == 0
