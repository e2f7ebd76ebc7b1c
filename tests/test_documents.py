"""What docs/data-contract.md shows is run here, engine by engine, as a reader would; test_files_read.py looks at the files it opens."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from recsys_batch.config import Config
from recsys_batch.read import current_topk, latest_topk, published_run, read_table

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


def here(code: str, config: Config, user: str = USER) -> str:
    """On the tables of a test, with a user that they have."""
    code = code.replace("/srv/recsys/warehouse", config.paths.warehouse).replace("data/warehouse", config.paths.warehouse)
    return code.replace("user_id = 42", f"user_id = '{user}'").replace("[42]", f"['{user}']").replace("== 42", f"== '{user}'")


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
        "By Spark SQL, the catalogue",
        "By Polars, the catalogue",
        "By pandas, the catalogue",
        "By DuckDB, the catalogue",
        "since a time (DuckDB",
        "since a time (Polars",
        "Spark SQL (absolute paths",
        "DuckDB (`INSTALL delta`",
        "pandas:",
        "Polars:",
        "lists by Spark SQL",
        "lists by DuckDB",
        "lists by pandas",
        "lists by Polars",
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


@pytest.fixture
def refreshed(fresh_published: Config, put_live_lists: Callable[..., None]) -> Config:
    """The user's list refreshed twice, another's in a run that nobody reads."""
    put_live_lists(fresh_published.paths.warehouse, "2026-03-01-r1", 4, {USER: [500, 510, 520]})
    put_live_lists(fresh_published.paths.warehouse, "2026-03-01-r1", 6, {USER: [530, 540]})
    put_live_lists(fresh_published.paths.warehouse, "2026-02-28-r1", 9, {"u004": [550]})
    return fresh_published


def rows_now(config: Config, user: str) -> list[tuple[Any, ...]]:
    rows = current_topk(config.paths.warehouse, user_ids=[user], columns=["rank", "item_id", "score", "batch_id"]).to_pylist()
    assert [row["item_id"] for row in rows] == [530, 540] if user == USER else len(rows) >= 10
    return [tuple(row.values()) for row in rows[:10]]


@pytest.mark.parametrize("user", [USER, "u004"])
def test_current_lists_in_sql(spark: SparkSession, duck: duckdb.DuckDBPyConnection, refreshed: Config, user: str) -> None:
    assert [tuple(row) for row in spark.sql(here(block("lists by Spark SQL"), refreshed, user)).collect()] == rows_now(refreshed, user)
    assert duck.execute(here(block("lists by DuckDB"), refreshed, user)).fetchall() == rows_now(refreshed, user)


@pytest.mark.parametrize("user", [USER, "u004"])
def test_current_lists_in_python(refreshed: Config, user: str) -> None:
    variables: dict[str, Any] = {}
    for engine in ("lists by pandas", "lists by Polars"):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(here(block(engine), refreshed, user), variables)
    found = variables["now"].astype(object).itertuples(index=False, name=None)
    assert [tuple(None if pd.isna(value) else value for value in row) for row in found] == rows_now(refreshed, user)
    assert variables["lists"].collect().rows() == rows_now(refreshed, user)


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


@pytest.fixture
def sold_out(fresh_published: Config) -> tuple[Config, str]:
    """A warehouse whose items were all sold out since the night, and the moment before they were."""
    items = read_table(fresh_published.paths.warehouse, "items")
    time.sleep(0.05)  # readers go by milliseconds
    moment = dt.datetime.now(dt.UTC)
    time.sleep(0.05)
    gone = items.set_column(items.schema.get_field_index("is_available"), items.schema.field("is_available"), pa.repeat(False, len(items)))
    write_deltalake(f"{fresh_published.paths.warehouse}/items", gone, mode="overwrite")
    return fresh_published, moment.isoformat()


@pytest.mark.parametrize(
    "words", ["By Spark SQL, the catalogue", "By Polars, the catalogue", "By pandas, the catalogue", "By DuckDB, the catalogue"]
)
def test_the_catalogue_as_it_was(
    request: pytest.FixtureRequest, duck: duckdb.DuckDBPyConnection, sold_out: tuple[Config, str], words: str
) -> None:
    config, moment = sold_out
    code = here(block(words), config)
    if "DuckDB" in words:
        rows = duck.execute(code).fetchall()
    else:
        assert "2026-11-28T06:00:00Z" in code
        code = code.replace("2026-11-28T06:00:00Z", moment)
        rows = request.getfixturevalue("spark").sql(code).collect() if "Spark" in words else _items_of(code)
    available = {item_id: is_available for item_id, _, is_available in rows}
    assert len(available) == 90 and [item_id for item_id in available if not available[item_id]] == [10]


def _items_of(code: str) -> list[tuple[Any, ...]]:
    variables: dict[str, Any] = {}
    exec(code, variables)
    items = variables["items"]
    return list(zip(*(items[name].to_list() for name in ("item_id", "title", "is_available")), strict=True))


def test_what_a_user_did_since_a_time_whatever_the_zone_of_the_session(duck: duckdb.DuckDBPyConnection, published: Config) -> None:
    moment, user = dt.datetime(2026, 2, 10, 6, tzinfo=dt.UTC), "glutton"
    rows = [row for row in read_table(published.paths.warehouse, "interactions").to_pylist() if row["user_id"] == user]
    expected = sorted((row["event_ts"], row["item_id"], row["weight"]) for row in rows if row["event_ts"] >= moment)
    for zone in ("UTC", "Asia/Tokyo"):
        duck.execute(f"SET TimeZone = '{zone}'")
        assert duck.execute(here(block("since a time (DuckDB"), published, user)).fetchall() == expected
    variables: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(here(block("since a time (Polars"), published, user), variables)
    assert variables["since"].select("event_ts", "item_id", "weight").collect().rows() == expected
    assert 40 < len(expected) < len(rows)


def test_why_rows_were_refused(duck: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    rows = [
        {"source": "a.csv", "kind": "interactions", "reason": reason, "row": row} for reason, row in (("x", "2"), ("x", "1"), ("y", "3"))
    ]
    write_deltalake(str(tmp_path / "rejected"), pa.Table.from_pylist(rows))
    code = block("Why rows were refused").replace("data/warehouse", str(tmp_path))
    assert duck.execute(code).fetchall() == [("a.csv", "interactions", "x", 2, "1"), ("a.csv", "interactions", "y", 1, "3")]
