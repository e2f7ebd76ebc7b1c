"""After an erasure the next night is right, incremental or full, and nothing that is ingested again brings the user back."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys_batch.config import Config
from recsys_batch.erasure.eraser import Places, erase_users
from recsys_batch.night import incremental as module
from recsys_batch.night.runner import run_night
from recsys_batch.read import read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.ingest.pipeline import run_ingest
from recsys_batch.spark.ingest.sources import IngestRequest
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import artifact_root, set_pointer
from recsys_batch.tables.run_manifest import Run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

IDS = IdTypes("STRING", "BIGINT")
GONE, NEXT = "glutton", dt.date(2026, 3, 2)
OUTPUTS = ("user_embeddings", "item_embeddings", "candidates", "shortfalls", "popular", "topk")
PlacesOf = Callable[[Config], Places]
Traces = Callable[[Path], list[str]]


def add_events(spark: SparkSession, config: Config, *events: tuple[str, int]) -> None:
    when = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    rows = [dict(user_id=u, item_id=i, event_ts=when, event_type="buy", weight=1.0, event_date=when.date()) for u, i in events]
    table = pa.Table.from_pylist(rows, schema=TABLES["interactions"].arrow_schema(IDS))
    WarehouseTables(spark, config).append("interactions", spark.createDataFrame(table), {"by": "test"})


def rows_of(config: Config, run: Run, name: str) -> list[str]:
    """Rows of the run in a fixed order, without what tells runs apart."""
    table = read_table(config.paths.warehouse, name, where=pc.field("run_id") == run.run_id)
    names = [column for column in table.schema.names if column not in ("run_id", "generated_at")]
    return sorted(map(str, zip(*(table[column].to_pylist() for column in names), strict=True)))


def copied(config: Config, folder: Path) -> Config:
    shutil.copytree(config.paths.warehouse, folder)
    return config.model_copy(update={"paths": config.paths.model_copy(update={"warehouse": str(folder)})})


def test_an_incremental_night_goes_on_and_gives_the_rows_of_a_full_one(
    spark: SparkSession, fresh_published: Config, places: PlacesOf, traces: Traces, tmp_path: Path
) -> None:
    tables = WarehouseTables(spark, fresh_published)
    assert tables.read("interactions").where(f"user_id = '{GONE}'").count() == 87  # the session knows the log as it was
    add_events(spark, fresh_published, (GONE, 880), ("u003", 450), ("newcomer", 30))
    erase_users(places(fresh_published), [GONE])
    assert tables.read("interactions").where(f"user_id = '{GONE}'").count() == 0
    full = copied(fresh_published, tmp_path / "full")
    run, whole = run_night(spark, fresh_published, NEXT, incremental=True), run_night(spark, full, NEXT)
    assert run.status == whole.status == "PUBLISHED" and run.metrics["incremental"] == 1.0
    assert run.metrics["audit.n_known"] == whole.metrics["audit.n_known"] == 153.0  # a newcomer for who went
    for table in OUTPUTS:
        assert rows_of(fresh_published, run, table) == rows_of(full, whole, table), table
    assert traces(tmp_path) == []


def test_where_popularity_cannot_be_corrected_the_next_night_is_a_full_one(
    spark: SparkSession, fresh_published: Config, caplog: pytest.LogCaptureFixture
) -> None:
    set_pointer(artifact_root(fresh_published.paths.warehouse), "2026-03-01-r1", "erased", {"popularity": "could not be corrected"})
    with caplog.at_level("INFO", logger="recsys_batch.night"), pytest.raises(module.FullRunRequired, match="could not be corrected"):
        module.find_base(_context(spark, fresh_published), catalogue=None)  # type: ignore[arg-type]


def _context(spark: SparkSession, config: Config) -> Any:
    from recsys_batch.night.open_run import open_run_context

    return open_run_context(spark, config, NEXT, incremental=True)


def test_old_files_bring_nobody_back_and_rows_are_counted(
    spark: SparkSession, fresh_published: Config, places: PlacesOf, traces: Traces, tmp_path: Path
) -> None:
    warehouse = tmp_path / "warehouse"
    erase_users(places(fresh_published), [GONE])
    source = tmp_path.parent / f"{tmp_path.name}.csv"
    lines = ["user_id,item_id,event_ts,weight", f"{GONE},20,2026-01-02,1", f"{GONE},30,2026-01-02,many", f"{GONE},30,2026-01-02,1,9,9"]
    source.write_text("\n".join([*lines, "u001,20,2026-02-02,1", "u001,20,2026-02-03,none", f"{GONE},99999,2026-01-02,1"]) + "\n")
    users = tmp_path.parent / f"{tmp_path.name}-users.csv"
    users.write_text(f"user_id,segment\n{GONE},odd\nu001,odd\n")
    request = IngestRequest((str(source),), users=(str(users),))
    summary = run_ingest(spark, fresh_published, request)
    assert summary.kinds["interactions"].rejected == {"erased": 4, "bad_weight": 1}
    assert summary.kinds["interactions"].accepted == 1 and summary.kinds["users"].rejected == {"erased": 1}
    assert traces(warehouse) == []
    assert [json.loads(row)["user_id"] for row in read_table(str(warehouse), "rejected")["row"].to_pylist()] == ["u001"]
    assert run_ingest(spark, fresh_published, request).kinds["interactions"].already_present == 1
