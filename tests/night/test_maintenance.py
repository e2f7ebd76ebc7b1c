"""Maintenance keeps what readers and unfinished runs need, removes the rest, and says the same when it only would."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from recsys_batch.cli import run as command
from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.night import steps
from recsys_batch.night.maintenance import runs_to_keep
from recsys_batch.night.publish import roll_back_run
from recsys_batch.night.runner import run_night
from recsys_batch.read import current_topk, latest_topk, published_run, read_table
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.tables.run_manifest import Run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAY = dt.date(2026, 3, 1)
NOW = dt.datetime(2026, 3, 20, tzinfo=dt.UTC)


def state(run_id: str, status: str, days_ago: float) -> Run:
    when = NOW - dt.timedelta(days=days_ago)
    published_at = when if status == "PUBLISHED" else None
    return Run(run_id, when.date(), 1, status, published_at, {}, {}, "1", "0", "h", metrics={"started_at": when.timestamp()})


@pytest.mark.parametrize(("keep", "expected"), [(1, {"a", "r", "d"}), (2, {"a", "b", "r", "d"}), (9, {"a", "b", "c", "back", "r", "d"})])
def test_the_newest_published_and_the_unfinished_stay(keep: int, expected: set[str]) -> None:
    runs = [state("a", "PUBLISHED", 1), state("b", "PUBLISHED", 2), state("back", "ROLLED_BACK", 3), state("c", "PUBLISHED", 9)]
    runs += [state("r", "RUNNING", 0.1), state("d", "FAILED", 4), state("old", "FAILED", 8)]
    states = {run.run_id: run for run in runs}
    assert runs_to_keep(states, states["a"], keep, NOW - dt.timedelta(days=7)) == expected
    assert runs_to_keep(states, states["c"], 1, NOW - dt.timedelta(days=7)) >= {"c"}, "what readers see stays, whatever its age"


def runs_in(config: Config, name: str) -> set[str]:
    return set(pc.unique(read_table(config.paths.warehouse, name)["run_id"]).to_pylist())


def age(root: Path) -> None:
    for path in [*root.rglob("*")]:
        os.utime(path, (0, 0))


def test_only_the_kept_runs_rows_and_artefacts_stay(
    spark: SparkSession, fresh_published: Config, options: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root = fresh_published, Path(artifact_root(fresh_published.paths.warehouse))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(steps.STEPS, "score", _dies)
        run_night(spark, config, dt.date(2026, 3, 2))
    for _ in range(2):
        run_night(spark, config, DAY, force=True)
    before = latest_topk(config.paths.warehouse)
    orphan = Path(config.paths.warehouse) / "topk" / "run_date=2026-03-01" / "run_id=2026-03-01-r1" / "part-0-lost.parquet"
    orphan.write_bytes(b"cut short")
    age(root)
    os.utime(orphan, (0, 0))
    assert runs_in(config, "topk") == {"2026-03-01-r1", "2026-03-01-r2", "2026-03-01-r3"}

    def maintained(*more: str) -> dict[str, Any]:
        capsys.readouterr()
        assert command(["maintain", "--keep-runs", "1", "--json", *more, *options(config)]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    planned = maintained("--dry-run")
    assert orphan.exists() and runs_in(config, "topk") == {"2026-03-01-r1", "2026-03-01-r2", "2026-03-01-r3"}
    done = maintained()
    assert {**done, "dry_run": True} == planned
    assert done["runs"] == ["2026-03-01-r1", "2026-03-01-r2"]
    assert done["rows"]["topk"] == 2 * before.num_rows
    assert not orphan.exists() and done["vacuumed"]["topk"] >= 1
    assert latest_topk(config.paths.warehouse).equals(before)
    assert runs_in(config, "candidates") == {"2026-03-01-r3", "2026-03-02-r1"}
    assert {path.name for path in (root / "runs").iterdir()} == {"2026-03-01-r3", "2026-03-02-r1"}
    assert maintained()["runs"] == [] and maintained()["artefacts"] == []
    with pytest.raises(InputMissing, match=r"run 2026-03-01-r1 is no longer kept: maintain removed its rows"):
        roll_back_run(spark, config, "2026-03-01-r1")
    assert run_night(spark, config, dt.date(2026, 3, 2)).attempt == 2, "the unfinished run goes on"
    assert run_night(spark, config, dt.date(2026, 3, 3), incremental=True).metrics["incremental"] == 1.0


def _dies(night: Any) -> Any:
    raise KeyboardInterrupt


def test_many_small_files_of_interactions_become_few_of_the_same_rows(
    spark: SparkSession, fresh: Config, market: Any, options: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = WarehouseTables(spark, fresh)
    for place in range(12):
        tables.append("interactions", spark.createDataFrame(market.interactions.slice(10 * place, 10)), {"by": "test"})
    folder = tables.folder("interactions")
    rows, n_files = sorted(map(str, read_table(fresh.paths.warehouse, "interactions").to_pylist())), len(DeltaTable(folder).file_uris())
    assert n_files > 20
    for more in (["--dry-run"], []):
        assert command(["maintain", "--json", *more, *options(fresh)]) == 0
        assert json.loads(capsys.readouterr().out)["compacted"] == {"interactions": n_files}
    assert len(DeltaTable(folder).file_uris()) < 5
    assert sorted(map(str, read_table(fresh.paths.warehouse, "interactions").to_pylist())) == rows
    assert command(["maintain", "--json", *options(fresh)]) == 0
    assert json.loads(capsys.readouterr().out)["compacted"] == {}


def test_live_lists_that_nobody_reads_go_and_the_files_of_the_others_become_one(
    spark: SparkSession,
    fresh_published: Config,
    options: Any,
    put_live_lists: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    warehouse, first, second = fresh_published.paths.warehouse, "2026-03-01-r1", "2026-03-02-r1"
    root = Path(artifact_root(warehouse))
    run_night(spark, fresh_published, dt.date(2026, 3, 2))
    put_live_lists(warehouse, first, 4, {"u003": [500, 510], "u020": [540]})
    for batch in range(5, 10):
        put_live_lists(warehouse, second, batch, {"u003": [10 * batch, 10 * batch + 10], f"user {batch}": [10 * batch]})
    for run_id in (first, second):
        (root / "live" / run_id / "candidates").mkdir(parents=True)
        (root / "live" / run_id / "candidates" / "part-0.parquet").write_bytes(b"rows")
    age(root)
    before = current_topk(warehouse).to_pylist()
    for more in (["--dry-run"], []):
        assert command(["maintain", "--keep-runs", "1", "--json", *more, *options(fresh_published)]) == 0
        done = json.loads(capsys.readouterr().out)
        assert (done["runs"], done["compacted"], done["rows"]["topk_live"]) == ([first], {"topk_live": 5}, 3 + 8)
        assert "live/2026-03-01-r1" in done["artefacts"] and "live/2026-03-02-r1" not in done["artefacts"]
    assert read_table(warehouse, "topk_live").num_rows == 2 + 5 and runs_in(fresh_published, "topk_live") == {second}
    assert len(DeltaTable(f"{warehouse}/topk_live").file_uris()) == 1
    assert current_topk(warehouse).to_pylist() == before
    assert [path.name for path in (root / "live").iterdir()] == [second]
    assert command(["maintain", "--keep-runs", "1", "--json", *options(fresh_published)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["compacted"], again["rows"]) == ({}, {})


def test_nothing_to_maintain_is_no_error(config: Config, options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["maintain", *options(config)]) == 0
    assert "0 runs were removed: none" in capsys.readouterr().out


def test_backfilled_dates_leave_readers_with_the_latest(
    spark: SparkSession, fresh_published: Config, options: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    dates = ["--start", "2026-02-27", "--end", "2026-03-01"]
    assert command(["backfill", *dates, "--dry-run", *options(fresh_published)]) == 0
    assert capsys.readouterr().out.splitlines() == ["2026-02-27  a new run", "2026-02-28  a new run", "2026-03-01  nothing to do"]
    assert command(["backfill", *dates, *options(fresh_published)]) == 0
    assert "2026-03-01 is already published" in capsys.readouterr().out
    assert published_run(fresh_published.paths.warehouse).run_id == "2026-03-01-r1"
    assert published_run(fresh_published.paths.warehouse, "2026-02-27-r1").status == "PUBLISHED"
    assert command(["backfill", "--start", "2026-03-02", "--end", "2026-03-02", *options(fresh_published)]) == 0
    assert published_run(fresh_published.paths.warehouse).run_id == "2026-03-02-r1"
    assert command(["backfill", "--start", "2026-03-02", "--end", "2026-03-01", *options(fresh_published)]) == 2
