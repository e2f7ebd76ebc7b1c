"""Views in a catalog show what readers see now, and follow the manifest by themselves."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from recsys_batch.config import Config
from recsys_batch.errors import GateRefused
from recsys_batch.night.publish import roll_back_run
from recsys_batch.night.run_store import load_run_rows
from recsys_batch.night.runner import run_night
from recsys_batch.read import current_topk, latest_topk, published_run, read_table, run_rows
from recsys_batch.schemas import STATUSES, TABLES, IdTypes
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.spark.views import VIEWS, create_views
from recsys_batch.tables import run_manifest
from recsys_batch.tables.run_manifest import Run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

IDS = IdTypes("STRING", "BIGINT")
CATALOG = "spark_catalog.views_of_a_test"


@pytest.fixture
def catalog(spark: SparkSession, fresh_published: Config) -> Iterator[str]:
    """A schema of the session's catalog with this warehouse's tables."""
    spark.sql(f"CREATE DATABASE {CATALOG}")
    WarehouseTables(spark, fresh_published).ensure("topk_live", IDS)
    for name in ("topk", "topk_live", "candidates", "runs"):
        spark.sql(f"CREATE TABLE {CATALOG}.{name} USING delta LOCATION '{fresh_published.paths.warehouse}/{name}'")
    create_views(spark, CATALOG)
    yield CATALOG
    spark.sql(f"DROP DATABASE {CATALOG} CASCADE")


def test_the_views_show_the_run_that_readers_see(spark: SparkSession, fresh_published: Config, catalog: str) -> None:
    warehouse = fresh_published.paths.warehouse
    found = spark.sql(f"SELECT user_id, rank, item_id FROM {catalog}.topk_latest ORDER BY user_id, rank").toArrow()
    assert found.to_pylist() == latest_topk(warehouse, columns=["user_id", "rank", "item_id"]).to_pylist()
    mine = spark.sql(f"SELECT candidate_rank, item_id FROM {catalog}.candidates_latest WHERE user_id = 'u003' ORDER BY 1").collect()
    (expected,) = [row["items"] for row in read_table(warehouse, "candidates").to_pylist() if row["user_id"] == "u003"]
    assert [tuple(row) for row in mine] == [(place, item["item_id"]) for place, item in enumerate(expected, start=1)]


def test_topk_now_has_the_rows_of_the_reader_before_and_after_the_stream_wrote(
    spark: SparkSession, fresh_published: Config, catalog: str, put_live_lists: Callable[..., None]
) -> None:
    def seen() -> list[dict[str, Any]]:
        return spark.sql(f"SELECT * FROM {catalog}.topk_now ORDER BY user_id, rank").toArrow().to_pylist()

    warehouse = fresh_published.paths.warehouse
    n_night = latest_topk(warehouse).num_rows
    assert seen() == current_topk(warehouse).to_pylist() and len(seen()) == n_night
    put_live_lists(warehouse, "2026-03-01-r1", 4, {"u003": [500, 510, 520], "u020": [540], "zoe": [550, 560]})
    put_live_lists(warehouse, "2026-03-01-r1", 6, {"u003": [570, 580]})
    put_live_lists(warehouse, "2026-02-28-r1", 9, {"u004": [590]})
    assert seen() == current_topk(warehouse).to_pylist()
    assert [row["item_id"] for row in seen() if row["batch_id"] is not None] == [570, 580, 540, 550, 560]
    assert len(seen()) == n_night - 2 * fresh_published.scoring.top_k + 5


def test_they_follow_a_new_night_and_a_rollback(spark: SparkSession, fresh_published: Config, catalog: str) -> None:
    """Without being made again; a night of the same inputs, so that only its run_id differs."""
    run_night(spark, fresh_published, dt.date(2026, 3, 2))
    run_ids = [row[0] for row in spark.sql(f"SELECT DISTINCT run_id FROM {catalog}.topk_latest").collect()]
    assert run_ids == ["2026-03-02-r1"]
    roll_back_run(spark, fresh_published)
    health = spark.sql(f"SELECT run_id, status, is_current, refused_by FROM {catalog}.run_health ORDER BY run_id").collect()
    assert [tuple(row) for row in health] == [
        ("2026-03-01-r1", "PUBLISHED", True, []),
        ("2026-03-02-r1", "ROLLED_BACK", False, []),
    ]


def test_run_health_has_the_values_of_the_audit(spark: SparkSession, fresh_published: Config, catalog: str) -> None:
    (row,) = spark.sql(f"SELECT * FROM {catalog}.run_health").collect()
    run = published_run(fresh_published.paths.warehouse)
    assert row["catalogue_coverage"] == run.metrics["audit.catalogue_coverage"]
    assert (row["n_users"], row["knn_recall"]) == (run.n_users, run.metrics["knn_recall"])


def test_a_gate_that_refused_is_named(spark: SparkSession, fresh_published: Config, catalog: str) -> None:
    strict = fresh_published.model_copy(update={"audit": fresh_published.audit.model_copy(update={"max_head_share": 0.0})})
    with pytest.raises(GateRefused):
        run_night(spark, strict, dt.date(2026, 3, 2))
    rows = spark.sql(f"SELECT run_id, status, refused_by FROM {catalog}.run_health WHERE run_id LIKE '2026-03-02%'").collect()
    assert [tuple(row) for row in rows] == [("2026-03-02-r1", "FAILED", ["head_share"])]


def manifest(seed: int) -> list[Run]:
    """Rows in every status: runs published again, moments that several rows share, rows without a number."""
    rng = random.Random(seed)
    rows, taken = [], set()
    for _ in range(rng.randint(1, 25)):
        run_id, attempt, event = f"r{rng.randint(1, 4)}", rng.randint(1, 3), rng.randint(0, 4)
        if (run_id, attempt, event) not in taken:
            taken.add((run_id, attempt, event))
            status = rng.choice(STATUSES)
            at = dt.datetime(2026, 3, 1, 2, rng.randint(0, 3), tzinfo=dt.UTC) if status == "PUBLISHED" else None
            metrics = {"started_at": 1.0, **({"event": float(event)} if event else {})}
            rows.append(Run(run_id, dt.date(2026, 3, int(run_id[1:])), attempt, status, at, {}, {}, "1", "0", "h", metrics=metrics))
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_view_reader_and_night_agree_on_what_is_published(spark: SparkSession, fresh: Config, seed: int) -> None:
    rows = manifest(seed)
    schema = pa.schema([column.arrow(IdTypes("STRING", "STRING")) for column in TABLES["runs"].columns])
    folder = f"{fresh.paths.warehouse}/runs"
    write_deltalake(folder, pa.Table.from_pylist([row.row() for row in rows], schema=schema))
    query = VIEWS["run_health"][1].format(runs=f"delta.`{folder}`")
    health = {row["run_id"]: (row["status"], row["is_current"]) for row in spark.sql(query).collect()}
    current = run_manifest.newest_published(rows)
    states = run_manifest.latest_state_by_run(rows)
    assert health == {run_id: (state.status, current is not None and run_id == current.run_id) for run_id, state in states.items()}
    by_night, by_reader = load_run_rows(WarehouseTables(spark, fresh)), run_rows(fresh.paths.warehouse)
    assert run_manifest.newest_published(by_night) == run_manifest.newest_published(by_reader) == current
    assert run_manifest.latest_state_by_run(by_night) == states
