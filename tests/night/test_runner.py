"""A night: whole, resumed, refused, rolled back, and read by others."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from recsys_batch.cli import run
from recsys_batch.config import Config
from recsys_batch.errors import Busy, GateRefused, InputMissing, RecsysBatchError
from recsys_batch.night import run_locks, steps
from recsys_batch.night.open_run import AlreadyDone
from recsys_batch.night.publish import roll_back_run
from recsys_batch.night.run_context import RunContext
from recsys_batch.night.run_locks import publish_lock
from recsys_batch.night.runner import run_night, run_step
from recsys_batch.read import latest_topk, published_run, read_table, run_rows
from recsys_batch.registry.mlflow_registry import ModelRegistry
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.tables.run_manifest import STEP_NAMES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAY = dt.date(2026, 3, 1)
OUTPUTS = ("user_embeddings", "item_embeddings", "candidates", "shortfalls", "popular", "topk")


@pytest.fixture(scope="module")
def topk(published: Config) -> list[dict[str, Any]]:
    return latest_topk(published.paths.warehouse).to_pylist()


def lists_of(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    lists: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lists.setdefault(row["user_id"], []).append(row)
    return lists


def content(config: Config, name: str) -> list[tuple[Any, ...]]:
    """A table's rows without the time of generation, in a fixed order."""
    table = read_table(config.paths.warehouse, name)
    names = [column for column in table.schema.names if column != "generated_at"]
    return sorted(map(str, zip(*(table[column].to_pylist() for column in names), strict=True)))  # type: ignore[arg-type]


def test_everybody_gets_a_list_of_unseen_available_items(topk: list[dict[str, Any]], market: Any, published: Config) -> None:
    lists = lists_of(topk)
    assert set(lists) == set(market.interactions["user_id"].to_pylist()) | {"quiet"}
    seen = set(zip(market.interactions["user_id"].to_pylist(), market.interactions["item_id"].to_pylist(), strict=True))
    for user, rows in lists.items():
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        assert len({row["item_id"] for row in rows}) == len(rows)
        assert not {(user, row["item_id"]) for row in rows} & seen
        assert 10 not in {row["item_id"] for row in rows}
        if user != "glutton":
            assert len(rows) == published.scoring.top_k


def test_order_is_by_score_then_item_id(topk: list[dict[str, Any]]) -> None:
    for rows in lists_of(topk).values():
        assert rows == sorted(rows, key=lambda row: (-row["score"], row["item_id"]))


def test_taste_is_found(topk: list[dict[str, Any]]) -> None:
    own = [row["item_id"] // 10 % 3 == (int(row["user_id"][1:]) + 1) % 3 for row in topk if row["user_id"][0] == "u" and row["rank"] <= 5]
    assert sum(own) / len(own) > 0.6  # a third by chance


def test_a_user_who_has_seen_nearly_everything_gets_the_rest_and_a_reason(topk: list[dict[str, Any]], published: Config) -> None:
    assert {row["item_id"] for row in lists_of(topk)["glutton"]} == {880, 890, 900}
    shortfalls = read_table(published.paths.warehouse, "shortfalls").to_pylist()
    assert [(row["user_id"], row["n_items"], row["reason"]) for row in shortfalls if row["user_id"] == "glutton"] == [
        ("glutton", 3, "catalogue_exhausted")
    ]


def test_users_without_history_get_their_segments_popular_list(topk: list[dict[str, Any]], published: Config) -> None:
    lists = lists_of(topk)
    assert {row["source"] for row in lists["quiet"] + lists["returner"]} == {"popular"}
    popular = [row for row in read_table(published.paths.warehouse, "popular").to_pylist() if row["segment"] == "even"]
    best = [row["item_id"] for row in sorted(popular, key=lambda row: row["rank"])]
    assert [row["item_id"] for row in lists["quiet"]] == best[: published.scoring.top_k]
    assert {row["source"] for user, rows in lists.items() if user[0] == "u" for row in rows} == {"model"}


def test_popular_counts_distinct_users_with_a_positive_weight(market: Any, published: Config) -> None:
    pairs = zip(*(market.interactions[name].to_pylist() for name in ("user_id", "item_id", "weight")), strict=True)
    counts = Counter(item for user, item in {(u, i) for u, i, weight in pairs if weight > 0} if item != 10)
    rows = [row for row in read_table(published.paths.warehouse, "popular").to_pylist() if row["segment"] == "all"]
    expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    assert [(row["item_id"], row["score"]) for row in sorted(rows, key=lambda row: row["rank"])] == expected


def test_candidate_ranks_point_into_candidates(topk: list[dict[str, Any]], published: Config) -> None:
    candidates = {row["user_id"]: row["items"] for row in read_table(published.paths.warehouse, "candidates").to_pylist()}
    for row in topk:
        assert candidates[row["user_id"]][row["candidate_rank"] - 1]["item_id"] == row["item_id"]


def test_the_manifest_says_what_was_read_and_written(published: Config) -> None:
    run = published_run(published.paths.warehouse)
    assert run.run_id == "2026-03-01-r1"
    assert run.input_versions == {"interactions": 1, "items": 1, "users": 1}
    assert set(run.table_versions) >= {*OUTPUTS, "index"}
    assert run.n_users == 153
    assert run.n_rows == latest_topk(published.paths.warehouse).num_rows
    assert run.metrics["knn_recall"] >= 0.99
    assert all(run.metrics[f"{step}.seconds"] > 0 for step in steps.STEPS)


def test_the_same_date_again_changes_nothing(spark: SparkSession, fresh_published: Config) -> None:
    before = run_rows(fresh_published.paths.warehouse)
    with pytest.raises(AlreadyDone, match=r"already published as run 2026-03-01-r1.*--force"):
        run_night(spark, fresh_published, DAY)
    assert run_rows(fresh_published.paths.warehouse) == before


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize(("dies_in", "after_writing", "death"), [("index", False, Killed), ("score", True, RecsysBatchError)])
def test_a_night_that_died_goes_on_to_the_same_tables(
    spark: SparkSession,
    fresh: Config,
    published: Config,
    market: Any,
    monkeypatch: pytest.MonkeyPatch,
    dies_in: str,
    after_writing: bool,
    death: type[BaseException],
) -> None:
    """Also where rows arrive in between: the run keeps to the input versions that it began with."""
    real = steps.STEPS[dies_in]

    def killed(context: RunContext) -> Any:
        if after_writing:
            real(context)
        late = market.interactions.slice(0, 5).set_column(0, "user_id", pa.array(["late"] * 5))
        WarehouseTables(spark, fresh).append("interactions", spark.createDataFrame(late), {"by": "late"})
        raise death("disk full")

    with monkeypatch.context() as patch, pytest.raises(death):
        patch.setitem(steps.STEPS, dies_in, killed)
        run_night(spark, fresh, DAY)
    with pytest.raises(InputMissing, match="no night is published"):
        latest_topk(fresh.paths.warehouse)
    statuses = [row.status for row in run_rows(fresh.paths.warehouse)]
    assert ("FAILED" in statuses) == (death is RecsysBatchError)  # a killed process records nothing
    done: list[str] = []
    run = run_night(spark, fresh, DAY, progress=lambda step, event, _: done.append(f"{step} {event}") if event != "start" else None)
    assert (run.run_id, run.status, run.attempt) == ("2026-03-01-r1", "PUBLISHED", 2)
    assert done[0] == "embed skipped" and f"{dies_in} done" in done
    for name in OUTPUTS:
        assert content(fresh, name) == content(published, name), name


def test_a_refused_gate_publishes_nothing_and_stays_refused(spark: SparkSession, fresh_published: Config) -> None:
    strict = fresh_published.model_copy(update={"audit": fresh_published.audit.model_copy(update={"max_popular_share": 0.0})})
    with pytest.raises(GateRefused, match=r"2026-03-02-r1 is not published: popular_share is 0\.0\d+, at most 0 is required"):
        run_night(spark, strict, dt.date(2026, 3, 2))
    assert published_run(strict.paths.warehouse).run_id == "2026-03-01-r1"
    with pytest.raises(GateRefused):
        run_night(spark, strict, dt.date(2026, 3, 2))
    run = run_night(spark, fresh_published, dt.date(2026, 3, 2))
    assert (run.run_id, run.attempt) == ("2026-03-02-r1", 3)


def test_a_refused_run_is_published_for_a_reason_only(spark: SparkSession, fresh_published: Config, market: Any) -> None:
    strict = fresh_published.model_copy(update={"audit": fresh_published.audit.model_copy(update={"max_popular_share": 0.0})})
    day = dt.date(2026, 3, 2)
    with pytest.raises(GateRefused):
        run_night(spark, strict, day)
    late = market.interactions.slice(0, 5).set_column(0, "user_id", pa.array(["late"] * 5))
    WarehouseTables(spark, strict).append("interactions", spark.createDataFrame(late), {"by": "late"})
    with pytest.raises(InputMissing):
        run_step(spark, strict, "publish", day)
    run = run_step(spark, strict, "publish", day, override="the newsletter cannot wait")
    assert (run.run_id, run.metrics["override"], run.refused_gates) == ("2026-03-02-r1", 1.0, ["popular_share"])
    assert published_run(strict.paths.warehouse).run_id == "2026-03-02-r1"
    override = Path(artifact_root(strict.paths.warehouse)) / "runs" / "2026-03-02-r1" / "override.json"
    why = json.loads(override.read_text(encoding="utf-8"))
    assert (why["reason"], why["gates"]) == ("the newsletter cannot wait", "popular_share")
    # What was not found good is nothing to carry forward.
    assert run_night(spark, fresh_published, dt.date(2026, 3, 3), incremental=True).metrics["incremental"] == 0.0


def test_force_computes_a_new_run_and_rollback_goes_back_and_forth(spark: SparkSession, fresh_published: Config) -> None:
    warehouse = fresh_published.paths.warehouse
    assert run_night(spark, fresh_published, DAY, force=True).run_id == "2026-03-01-r2"
    assert latest_topk(warehouse)["run_id"][0].as_py() == "2026-03-01-r2"
    assert roll_back_run(spark, fresh_published).run_id == "2026-03-01-r1"
    assert latest_topk(warehouse)["run_id"][0].as_py() == "2026-03-01-r1"
    with pytest.raises(InputMissing, match="only published one"):
        roll_back_run(spark, fresh_published)
    assert roll_back_run(spark, fresh_published, "2026-03-01-r2").run_id == "2026-03-01-r2"
    assert latest_topk(warehouse)["run_id"][0].as_py() == "2026-03-01-r2"
    with pytest.raises(AlreadyDone):
        roll_back_run(spark, fresh_published, "2026-03-01-r2")
    with pytest.raises(InputMissing, match="never published"):
        roll_back_run(spark, fresh_published, "nobody")


def test_a_dry_rollback_names_the_run_and_changes_nothing(
    spark: SparkSession, fresh_published: Config, options: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_night(spark, fresh_published, DAY, force=True)
    before = run_rows(fresh_published.paths.warehouse)
    assert run(["rollback", "--dry-run", *options(fresh_published)]) == 0
    assert "readers would see run 2026-03-01-r1" in capsys.readouterr().out
    assert run(["rollback", "--dry-run", "--json", *options(fresh_published)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["run"]["run_id"]) == (False, "2026-03-01-r1")
    assert run(["rollback", "--dry-run", "--to", "nobody", *options(fresh_published)]) == 4
    assert run_rows(fresh_published.paths.warehouse) == before
    assert run(["rollback", "--json", *options(fresh_published)]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["status"] == "PUBLISHED"
    assert published_run(fresh_published.paths.warehouse).run_id == "2026-03-01-r1"


def test_a_night_tells_machines_what_it_did(fresh_published: Config, options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["nightly", "--run-date", "2026-03-02", "--json", *options(fresh_published)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["done"] and told["run"]["status"] == "PUBLISHED" and told["run"]["gates"]["popular_share"]["passed"]
    assert run(["nightly", "--run-date", "2026-03-02", "--json", *options(fresh_published)]) == 0
    assert json.loads(capsys.readouterr().out)["done"] is False
    dates = ["--start", "2026-03-01", "--end", "2026-03-02"]
    assert run(["backfill", *dates, "--json", *options(fresh_published)]) == 0
    assert {date: one["done"] for date, one in json.loads(capsys.readouterr().out)["dates"].items()} == {
        "2026-03-01": False,
        "2026-03-02": False,
    }


def test_what_readers_see_is_changed_by_one_at_a_time(
    spark: SparkSession, fresh_published: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_night(spark, fresh_published, DAY, force=True)
    monkeypatch.setattr(run_locks, "_CHANGE_SECONDS", 0.2)
    with publish_lock(fresh_published):
        with pytest.raises(Busy, match="what readers see is being changed already by process"):
            roll_back_run(spark, fresh_published)
        with pytest.raises(Busy):
            run_night(spark, fresh_published, dt.date(2026, 3, 2))
        assert published_run(fresh_published.paths.warehouse).run_id == "2026-03-01-r2"
    assert run_night(spark, fresh_published, dt.date(2026, 3, 2)).status == "PUBLISHED"


def test_a_tracking_server_that_fails_after_the_publish_fails_no_night(
    spark: SparkSession, fresh: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OSError("the tracking server is away")

    monkeypatch.setattr(ModelRegistry, "log_metrics", away)
    assert run_night(spark, fresh, DAY).status == "PUBLISHED"
    assert "MLflow did not take its metrics: the tracking server is away" in caplog.text
    assert run_rows(fresh.paths.warehouse)[-1].status != "FAILED"
    assert published_run(fresh.paths.warehouse).run_id == "2026-03-01-r1"


def test_single_steps_make_the_same_night(spark: SparkSession, fresh: Config, published: Config) -> None:
    with pytest.raises(InputMissing, match="no run of 2026-03-01 has begun"):
        run_step(spark, fresh, "candidates", DAY)
    run_step(spark, fresh, "embed", DAY)
    with pytest.raises(InputMissing, match="has not done index, candidates: run index first"):
        run_step(spark, fresh, "score", DAY)
    for name in STEP_NAMES[1:]:
        run_step(spark, fresh, name, DAY)
    for name in OUTPUTS:
        assert content(fresh, name) == content(published, name), name
    with pytest.raises(AlreadyDone):
        run_step(spark, fresh, "publish", DAY)


def test_without_a_model_the_night_says_so(spark: SparkSession, config: Config, market: Any, put_market: Any) -> None:
    with pytest.raises(InputMissing, match="run `recsys-batch ingest` first"):
        run_night(spark, config, DAY)
    put_market(spark, config, market)
    with pytest.raises(InputMissing, match="no alias champion: run `recsys-batch train`"):
        run_night(spark, config, DAY)
