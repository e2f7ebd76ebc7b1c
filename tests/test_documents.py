"""What docs/data-contract.md shows is run here, engine by engine, as a reader would."""

from __future__ import annotations

import contextlib
import io
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from recsys_batch.config import Config
from recsys_batch.read import latest_topk, published_run, read_table

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DOCUMENT = (Path(__file__).parent.parent / "docs" / "data-contract.md").read_text(encoding="utf-8")
EXAMPLES = DOCUMENT[DOCUMENT.index("## Examples") : DOCUMENT.index("## Tables")]
BLOCKS = re.findall(r"([^\n]+)\n```(sql|python)\n(.*?)```", EXAMPLES, re.DOTALL)
USER = "u003"


def block(words: str) -> str:
    """The one example whose introduction has these words."""
    (found,) = [code for said, _, code in BLOCKS if words in said]
    return found


def here(code: str, config: Config) -> str:
    """On the tables of a test, with a user that they have."""
    code = code.replace("/srv/recsys/warehouse", config.paths.warehouse).replace("data/warehouse", config.paths.warehouse)
    return code.replace("user_id = 42", f"user_id = '{USER}'").replace("[42]", f"['{USER}']").replace("== 42", f"== '{USER}'")


@pytest.fixture
def duck() -> duckdb.DuckDBPyConnection:
    """DuckDB with its Delta extension out of the wheel."""
    (file,) = [file for file in distribution("duckdb-ext-delta").files or [] if file.name == "delta.duckdb_extension"]
    connection = duckdb.connect()
    connection.execute(f"LOAD '{file.locate()}'")
    return connection


@pytest.fixture
def expected(published: Config) -> list[tuple[int, Any, str]]:
    """rank, item_id and title of the user's first ten."""
    titles = {row["item_id"]: row["title"] for row in read_table(published.paths.warehouse, "items").to_pylist()}
    rows = latest_topk(published.paths.warehouse, user_ids=[USER], columns=["rank", "item_id"]).to_pylist()[:10]
    return [(row["rank"], row["item_id"], titles[row["item_id"]]) for row in rows]


def printed(code: str) -> str:
    """What a Python example prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    return said.getvalue()


def test_every_example_has_a_test() -> None:
    tested = (
        "Spark SQL (absolute paths",
        "DuckDB (`INSTALL delta`",
        "pandas:",
        "Polars:",
        "touched is a weak no",  # tests/spark/ingest/test_exposure_source.py
        "How the nights went",
        "What changed for a user",
        "in most lists",
        "order of retrieval",
        "Why rows were refused",
    )
    assert all(len([said for said, _, _ in BLOCKS if words in said]) == 1 for words in tested)
    assert len(BLOCKS) == len(tested)


def test_top_ten_in_spark_sql(spark: SparkSession, published: Config, expected: list[Any]) -> None:
    rows = spark.sql(here(block("Spark SQL (absolute paths"), published)).collect()
    assert [(row["rank"], row["item_id"], row["title"]) for row in rows] == expected


def test_top_ten_in_duckdb(duck: duckdb.DuckDBPyConnection, published: Config, expected: list[Any]) -> None:
    assert [row[:3] for row in duck.execute(here(block("DuckDB (`INSTALL delta`"), published)).fetchall()] == expected


@pytest.mark.parametrize("engine", ["pandas:", "Polars:"])
def test_top_ten_in_python(published: Config, expected: list[Any], engine: str) -> None:
    said = printed(here(block(engine), published))
    places = [said.index(f"{item} ") if f"{item} " in said else said.index(str(item)) for _, item, _ in expected]
    assert places == sorted(places)


def test_how_the_nights_went(duck: duckdb.DuckDBPyConnection, published: Config) -> None:
    (row,) = duck.execute(here(block("How the nights went"), published)).fetchall()
    run = published_run(published.paths.warehouse)
    assert row[:5] == (run.run_id, "PUBLISHED", run.n_users, run.n_rows, run.model_version)
    assert row[5] == run.metrics["audit.catalogue_coverage"]


def test_what_changed_for_a_user(duck: duckdb.DuckDBPyConnection, published: Config, expected: list[Any]) -> None:
    """After one night alone everything is new."""
    rows = duck.execute(here(block("What changed for a user"), published)).fetchall()
    assert rows == [(item, None, rank) for rank, item, _ in expected]


def test_items_in_most_lists(published: Config) -> None:
    listed = latest_topk(published.paths.warehouse, columns=["item_id"])["item_id"].to_pylist()
    most = max(listed.count(item) for item in set(listed))
    first = printed(here(block("in most lists"), published)).splitlines()[6]
    assert f" {most} " in first


def test_a_users_candidates(duck: duckdb.DuckDBPyConnection, published: Config) -> None:
    rows = duck.execute(here(block("order of retrieval"), published)).fetchall()
    (candidates,) = [row["items"] for row in read_table(published.paths.warehouse, "candidates").to_pylist() if row["user_id"] == USER]
    assert rows == [(place, item["item_id"], item["score"]) for place, item in enumerate(candidates, start=1)]


def test_why_rows_were_refused(duck: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    rows = [
        {"source": "a.csv", "kind": "interactions", "reason": reason, "row": row} for reason, row in (("x", "2"), ("x", "1"), ("y", "3"))
    ]
    write_deltalake(str(tmp_path / "rejected"), pa.Table.from_pylist(rows))
    code = block("Why rows were refused").replace("data/warehouse", str(tmp_path))
    assert duck.execute(code).fetchall() == [("a.csv", "interactions", "x", 2, "1"), ("a.csv", "interactions", "y", 1, "3")]
