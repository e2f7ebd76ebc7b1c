"""An incremental night gives the rows of a full one, and computes only what changed."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from recsys_batch.config import Config
from recsys_batch.night import incremental as module
from recsys_batch.night.runner import run_night
from recsys_batch.read import read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import artifact_root, set_pointer
from recsys_batch.tables.appended_files import NotAppendOnly, list_appended_files
from recsys_batch.tables.run_manifest import Run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

IDS = IdTypes("STRING", "BIGINT")
NEXT = dt.date(2026, 3, 2)
OUTPUTS = ("user_embeddings", "item_embeddings", "candidates", "shortfalls", "popular", "topk")
Change = Callable[["SparkSession", Config], None]


def add_events(*events: tuple[str, int]) -> Change:
    def change(spark: SparkSession, config: Config) -> None:
        when = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
        rows = [(user, item, when, "buy", 1.0, when.date()) for user, item in events]
        _append(spark, config, "interactions", rows)

    return change


def put_item(item_id: int, available: bool = True, genre: int = 1) -> Change:
    def change(spark: SparkSession, config: Config) -> None:
        rows = [(item_id, f"Title {item_id}", [f"genre {genre}"], available, dt.datetime(2026, 3, 1, tzinfo=dt.UTC), [("year", "1991")])]
        _upsert(spark, config, "items", rows, "item_id")

    return change


def put_user(user_id: str, segment: str, plan: str = "free") -> Change:
    def change(spark: SparkSession, config: Config) -> None:
        _upsert(spark, config, "users", [(user_id, segment, [("plan", plan)])], "user_id")

    return change


def compact(spark: SparkSession, config: Config) -> None:
    """As maintain does."""
    folder = WarehouseTables(spark, config).folder("interactions")
    before = len(DeltaTable(folder).file_uris())
    spark.sql(f"OPTIMIZE delta.`{folder}` FULL")
    assert before > 1 == len(DeltaTable(folder).file_uris())


CHANGES: dict[str, list[Change]] = {
    "nothing": [],
    "events and users": [
        add_events(("u003", 450), ("u003", 460), ("newcomer", 30), ("quiet", 70)),
        put_user("u004", "odd"),
        put_user("nobody yet", "even"),
        put_user("u006", "even", plan="paid"),
    ],
    "a compaction between": [add_events(("u003", 450)), compact, add_events(("u003", 460), ("newcomer", 30))],
    "an item came and was taken": [put_item(905, genre=2), add_events(("u010", 905))],
    "all of it": [
        put_item(905, genre=1),
        put_item(600, available=False, genre=0),
        put_item(10, genre=1),  # was unavailable until now
        add_events(("u001", 905), ("u120", 100), ("glutton", 880), ("late", 905)),
        put_user("u077", "even"),
    ],
}


def rows_of(config: Config, run: Run, name: str) -> list[str]:
    """Rows of the run in a fixed order, without what tells runs apart."""
    table = read_table(config.paths.warehouse, name, where=pc.field("run_id") == run.run_id)
    names = [column for column in table.schema.names if column not in ("run_id", "generated_at")]
    return sorted(map(str, zip(*(table[column].to_pylist() for column in names), strict=True)))


def both(spark: SparkSession, config: Config, folder: Path, changes: list[Change]) -> tuple[tuple[Config, Run], tuple[Config, Run]]:
    """(incremental, full) nights of the next day, on copies of the same warehouse."""
    for change in changes:
        change(spark, config)
    other = folder / "full"
    shutil.copytree(config.paths.warehouse, other)
    full = config.model_copy(update={"paths": config.paths.model_copy(update={"warehouse": str(other)})})
    return (config, run_night(spark, config, NEXT, incremental=True)), (full, run_night(spark, full, NEXT))


PARTS_OF_ALL = ("events and users", "an item came and was taken")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in PARTS_OF_ALL)) for name in CHANGES])
def test_its_rows_are_those_of_a_full_night(
    spark: SparkSession, fresh_published: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(module, "_TOO_MANY", 0.99)  # of 90 items each is among the candidates of most users
    (config, run), (full_config, full) = both(spark, fresh_published, tmp_path, CHANGES[name])
    assert run.status == full.status == "PUBLISHED"
    assert run.metrics["incremental"] == 1.0
    for table in OUTPUTS:
        assert rows_of(config, run, table) == rows_of(full_config, full, table), table
    stamps = read_table(config.paths.warehouse, "topk", where=pc.field("run_id") == run.run_id)["generated_at"].unique().to_pylist()
    assert stamps == [run.started_at]


def score_by_onnx(spark: SparkSession, config: Config) -> None:
    """The published night was scored on nodes without torch, which have it now."""
    set_pointer(artifact_root(config.paths.warehouse), "2026-03-01-r1", "scoring", {"engine": "onnx"})


def test_it_computes_only_who_changed(spark: SparkSession, fresh_published: Config) -> None:
    add_events(("u003", 450), ("u008", 460))(spark, fresh_published)
    run = run_night(spark, fresh_published, NEXT, incremental=True)
    # u003, u008, and who has no embedding: returner, quiet
    assert run.metrics["incremental.users_changed"] == run.metrics["score.users_computed"] == 4.0
    assert run.metrics["candidates.rows_carried"] == 149.0


@pytest.mark.parametrize(
    ("change", "setting", "reason"),
    [
        (None, {"scoring": {"top_k": 15}}, "has settings"),
        (score_by_onnx, {}, "has scoring engine onnx, this one torch"),
        (add_events(*((f"u{user:03d}", 880) for user in range(80))), {}, "have changed, more than 30%"),
    ],
)
def test_it_is_a_full_night_where_it_cannot_be_less(
    spark: SparkSession,
    fresh_published: Config,
    caplog: pytest.LogCaptureFixture,
    change: Change | None,
    setting: dict[str, Any],
    reason: str,
) -> None:
    if change is not None:
        change(spark, fresh_published)
    config = Config.model_validate(
        {**fresh_published.model_dump(), **{name: {**getattr(fresh_published, name).model_dump(), **v} for name, v in setting.items()}}
    )
    with caplog.at_level("INFO", logger="recsys_batch.night"):
        run = run_night(spark, config, NEXT, incremental=True)
    assert run.metrics["incremental"] == 0.0
    assert reason in caplog.text
    assert "is a full night" in caplog.text


def test_rows_that_were_removed_or_files_that_are_gone_are_no_appends(spark: SparkSession, fresh_published: Config) -> None:
    folder = WarehouseTables(spark, fresh_published).folder("interactions")
    then = DeltaTable(folder).version()
    add_events(("u003", 450))(spark, fresh_published)
    before, since = list_appended_files(folder, then, DeltaTable(folder).version())
    assert before and len(since) >= 1
    compact(spark, fresh_published)
    assert list_appended_files(folder, then, DeltaTable(folder).version()) == (before, since)
    Path(before[0]).rename(f"{before[0]}.gone")
    with pytest.raises(NotAppendOnly, match="1 files of interactions were replaced and vacuumed since"):
        list_appended_files(folder, then, DeltaTable(folder).version())
    Path(f"{before[0]}.gone").rename(before[0])
    spark.sql(f"DELETE FROM delta.`{folder}` WHERE user_id = 'u003'")
    with pytest.raises(NotAppendOnly, match="rows of interactions were removed"):
        list_appended_files(folder, then, DeltaTable(folder).version())
    log = Path(folder) / "_delta_log" / f"{then + 1:020d}.json"
    log.unlink()
    with pytest.raises(NotAppendOnly, match=f"no longer has version {then + 1}"):
        list_appended_files(folder, then, then + 1)


def test_without_a_published_night_it_is_a_full_one(spark: SparkSession, fresh: Config, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="recsys_batch.night"):
        assert run_night(spark, fresh, NEXT, incremental=True).metrics["incremental"] == 0.0
    assert "is a full night: nothing is published yet" in caplog.text


def _append(spark: SparkSession, config: Config, name: str, rows: list[tuple[Any, ...]]) -> None:
    WarehouseTables(spark, config).append(name, spark.createDataFrame(_table(name, rows)), {"by": "test"})


def _upsert(spark: SparkSession, config: Config, name: str, rows: list[tuple[Any, ...]], key: str) -> None:
    WarehouseTables(spark, config).upsert(name, spark.createDataFrame(_table(name, rows)), key, {"by": "test"})


def _table(name: str, rows: list[tuple[Any, ...]]) -> pa.Table:
    schema = TABLES[name].arrow_schema(IDS)
    columns = zip(*rows, strict=True)
    return pa.Table.from_arrays([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)
