"""The published tables are read by engines that are not Spark, and say the same there."""

from importlib.metadata import distribution
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.read import has_table, latest_topk, open_table, published_run, read_table

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


@pytest.mark.parametrize("name", WRITTEN)
def test_every_table_is_readable_at_protocol_version_one(published: Config, name: str) -> None:
    table = DeltaTable(where(published, name))
    assert table.protocol().min_reader_version == 1
    assert table.metadata().configuration["delta.enableDeletionVectors"] == "false"
    assert read_table(published.paths.warehouse, name).num_rows > 0


def test_polars_and_duckdb_read_the_same_rows(published: Config) -> None:
    path, run_id = where(published, "topk"), published_run(published.paths.warehouse).run_id
    expected = latest_topk(published.paths.warehouse, columns=["user_id", "rank", "item_id"]).to_pylist()
    frame = pl.read_delta(path).filter(pl.col("run_id") == run_id).sort("user_id", "rank").select("user_id", "rank", "item_id")
    assert frame.to_dicts() == expected
    connection = duckdb.connect()
    _load_delta(connection)
    query = f"SELECT user_id, rank, item_id FROM delta_scan('{path}') WHERE run_id = ? ORDER BY user_id, rank"
    names = ("user_id", "rank", "item_id")
    assert [dict(zip(names, row, strict=True)) for row in connection.execute(query, [run_id]).fetchall()] == expected


def _load_delta(connection: duckdb.DuckDBPyConnection) -> None:
    """DuckDB's Delta extension out of its wheel, which needs no download."""
    files = [file for file in distribution("duckdb-ext-delta").files or [] if file.name == "delta.duckdb_extension"]
    connection.execute(f"LOAD '{files[0].locate()}'")


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
