"""The published tables are read by engines that are not Spark, and say the same there."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.read import current_topk, has_table, latest_topk, open_table, published_run, read_table

WRITTEN = ("interactions", "items", "users", "user_embeddings", "item_embeddings", "candidates", "shortfalls", "popular", "topk", "runs")


def where(config: Config, name: str) -> str:
    return f"{config.paths.warehouse}/{name}"


def test_topk_comes_sorted_by_user_and_rank(published: Config) -> None:
    table = latest_topk(published.paths.warehouse)
    keys = list(zip(table["user_id"].to_pylist(), table["rank"].to_pylist(), strict=True))
    assert keys == sorted(keys) and len(keys) == published_run(published.paths.warehouse).n_rows


def test_some_users_and_columns(published: Config) -> None:
    table = latest_topk(published.paths.warehouse, user_ids=["u003", "nobody"], columns=["item_id", "score"])
    assert table.schema.names == ["item_id", "score"]
    assert table.num_rows == published.scoring.top_k
    whole = latest_topk(published.paths.warehouse).to_pandas()
    assert table["item_id"].to_pylist() == whole[whole.user_id == "u003"]["item_id"].tolist()


CURRENT = ["user_id", "rank", "item_id", "batch_id"]


@pytest.fixture
def refreshed(fresh_published: Config, put_live_lists: Callable[..., None]) -> Config:
    """Two users and a new one refreshed, one of them twice, and one in a run that nobody reads."""
    warehouse = fresh_published.paths.warehouse
    put_live_lists(warehouse, "2026-03-01-r1", 4, {"u003": [500, 510, 520, 530], "u020": [540], "zoe": [550, 560]})
    put_live_lists(warehouse, "2026-03-01-r1", 6, {"u003": [570, 580]})
    put_live_lists(warehouse, "2026-02-28-r1", 9, {"u004": [590]})
    return fresh_published


def test_current_lists_are_the_refreshed_ones_and_for_the_others_the_nights(refreshed: Config) -> None:
    night = latest_topk(refreshed.paths.warehouse)
    expected = [
        ("u003", 1, 570, 6),
        ("u003", 2, 580, 6),
        ("u020", 1, 540, 4),
        ("zoe", 1, 550, 4),
        ("zoe", 2, 560, 4),
        *((row["user_id"], row["rank"], row["item_id"], None) for row in night.to_pylist() if row["user_id"] not in ("u003", "u020")),
    ]
    now = current_topk(refreshed.paths.warehouse)
    assert list(zip(*(now[name].to_pylist() for name in CURRENT), strict=True)) == sorted(expected, key=lambda row: row[:2])
    assert now.schema.names == [*night.schema.names, "batch_id", "events_through"]
    assert now.schema.types[:-2] == night.schema.types
    others = now.filter(pc.is_null(now["batch_id"]))
    assert others.select(night.schema.names).to_pylist() == [row for row in night.to_pylist() if row["user_id"] not in ("u003", "u020")]
    through = dict(zip(now["user_id"].to_pylist(), map(str, now["events_through"].to_pylist()), strict=True))
    assert [through[user] for user in ("u003", "zoe", "u004")] == ["2026-03-01 00:06:00+00:00", "2026-03-01 00:04:00+00:00", "None"]


def test_some_users_and_columns_of_the_current_lists(refreshed: Config) -> None:
    users = ["zoe", "u003", "u004", "nobody"]
    some = current_topk(refreshed.paths.warehouse, user_ids=users, columns=CURRENT)
    whole = current_topk(refreshed.paths.warehouse, columns=CURRENT)
    assert some.to_pylist() == [row for row in whole.to_pylist() if row["user_id"] in users]
    assert len(some) == 2 + 2 + refreshed.scoring.top_k
    one = current_topk(refreshed.paths.warehouse, user_ids=["zoe"], columns=["item_id"])
    assert one.schema.names == ["item_id"] and one["item_id"].to_pylist() == [550, 560]


def test_files_that_cannot_hold_a_user_are_not_read(refreshed: Config, put_live_lists: Callable[..., None]) -> None:
    others = [file for name in ("topk", "topk_live") for file in Path(where(refreshed, name)).rglob("part-*.parquet")]
    put_live_lists(refreshed.paths.warehouse, "2026-03-01-r1", 7, {"aa": [600], "ab": [610]})
    for file in others:
        file.unlink()
    (row,) = current_topk(refreshed.paths.warehouse, user_ids=["ab"], columns=CURRENT).to_pylist()
    assert row == {"user_id": "ab", "rank": 1, "item_id": 610, "batch_id": 7}
    with pytest.raises(FileNotFoundError):
        current_topk(refreshed.paths.warehouse, user_ids=["u003"])


def test_without_a_stream_the_current_lists_are_the_nights(published: Config) -> None:
    night = latest_topk(published.paths.warehouse)
    for users in (None, ["u003", "u100"]):
        now = current_topk(published.paths.warehouse, user_ids=users)
        expected = night if users is None else night.filter(pc.is_in(night["user_id"], pa.array(users)))
        assert now.select(night.schema.names).to_pylist() == expected.to_pylist()
        assert now["batch_id"].null_count == now["events_through"].null_count == len(now) > 0


@pytest.mark.parametrize("name", WRITTEN)
def test_every_table_is_readable_at_protocol_version_one(published: Config, name: str) -> None:
    table = DeltaTable(where(published, name))
    assert table.protocol().min_reader_version == 1
    assert table.metadata().configuration["delta.enableDeletionVectors"] == "false"
    assert read_table(published.paths.warehouse, name).num_rows > 0


def test_polars_and_duckdb_read_the_same_rows(published: Config, duck: duckdb.DuckDBPyConnection) -> None:
    path, run_id = where(published, "topk"), published_run(published.paths.warehouse).run_id
    expected = latest_topk(published.paths.warehouse, columns=["user_id", "rank", "item_id"]).to_pylist()
    frame = pl.read_delta(path).filter(pl.col("run_id") == run_id).sort("user_id", "rank").select("user_id", "rank", "item_id")
    assert frame.to_dicts() == expected
    query = f"SELECT user_id, rank, item_id FROM delta_scan('{path}') WHERE run_id = ? ORDER BY user_id, rank"
    names = ("user_id", "rank", "item_id")
    assert [dict(zip(names, row, strict=True)) for row in duck.execute(query, [run_id]).fetchall()] == expected


@pytest.mark.parametrize("name", WRITTEN)
def test_a_filter_on_any_column_finds_its_rows(published: Config, name: str) -> None:
    """By this package and by plain deltalake: statistics of some columns alone once made it find nothing on the others."""
    rows = read_table(published.paths.warehouse, name)
    for column in rows.schema:
        if pa.types.is_nested(column.type) or not rows[column.name].drop_null():
            continue
        value = rows[column.name].drop_null()[0]
        where, expected = pc.field(column.name) == value, pc.sum(pc.equal(rows[column.name], value)).as_py()
        assert read_table(published.paths.warehouse, name, where=where).num_rows == expected, column.name
        plain = DeltaTable(f"{published.paths.warehouse}/{name}").to_pyarrow_dataset()
        assert plain.to_table(filter=where).num_rows == expected, column.name


@pytest.mark.parametrize("name", WRITTEN)
def test_timestamps_are_instants_in_every_file(published: Config, name: str) -> None:
    """As INT96, Spark's default, they have no zone, and DuckDB adds its session's."""
    for file in Path(where(published, name)).rglob("*.parquet"):
        columns = pq.ParquetFile(file).schema
        assert not [columns.column(n).path for n in range(len(columns)) if columns.column(n).physical_type == "INT96"]


@pytest.mark.parametrize(("name", "column"), [("interactions", "event_ts"), ("items", "first_seen_ts"), ("topk", "generated_at")])
def test_duckdb_gives_the_same_instants_in_a_session_of_another_zone(
    published: Config, duck: duckdb.DuckDBPyConnection, name: str, column: str
) -> None:
    moments = read_table(published.paths.warehouse, name)[column]
    expected = pc.min_max(moments.cast(pa.int64())).as_py()
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        duck.execute(f"SET TimeZone = '{zone}'")
        query = f"SELECT min(epoch_us({column})), max(epoch_us({column})) FROM delta_scan('{where(published, name)}')"
        assert duck.execute(query).fetchone() == (expected["min"], expected["max"]), zone


def test_columns_carry_their_comments(published: Config) -> None:
    schema = open_table(published.paths.warehouse, "topk").schema()
    comments = {field.name: field.metadata.get("comment") for field in schema.fields}
    assert all(comments.values()), comments


def test_what_is_missing_is_named(tmp_path: Path, published: Config) -> None:
    with pytest.raises(InputMissing, match="no night is published yet"):
        latest_topk(str(tmp_path))
    with pytest.raises(InputMissing, match="run other is not published"):
        latest_topk(published.paths.warehouse, run_id="other")
    with pytest.raises(InputMissing, match="table topk does not exist"):
        read_table(str(tmp_path), "topk")
    with pytest.raises(InputMissing, match="cannot be read at version 99"):
        read_table(published.paths.warehouse, "topk", version=99)
    assert not has_table(str(tmp_path), "topk")
