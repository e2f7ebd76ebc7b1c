"""Somebody's own embeddings: checked, registered, and a night runs on them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_batch.cli import run
from recsys_batch.config import Config
from recsys_batch.erasure.eraser import Places, erase_users
from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.night.runner import run_night
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.read import latest_topk
from recsys_batch.schemas import TABLES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DIM = 5


def vectors(folder: Path, key: str, ids: list[Any], changes: dict[int, list[float]] | None = None, dim: int = DIM) -> str:
    """A Parquet folder of unit-variance vectors, some replaced; its path."""
    rows = np.random.default_rng(len(ids)).normal(size=(len(ids), dim)).astype(np.float32).tolist()
    for place, row in (changes or {}).items():
        rows[place] = row
    folder.mkdir(parents=True)
    pq.write_table(pa.table({key: ids, "embedding": pa.array(rows, pa.list_(pa.float32()))}), folder / "part-0.parquet")
    return str(folder)


def register(config: Config, options: Callable[[Config], list[str]], users: str, items: str, *more: str) -> int:
    return run(["register", "--user-embeddings", users, "--item-embeddings", items, *more, *options(config)])


@pytest.fixture
def own(spark: SparkSession, config: Config, market: Any, put_market: Any) -> Config:
    """A warehouse with the market and nothing registered."""
    put_market(spark, config, market)
    return config


def test_a_night_runs_on_brought_embeddings_and_ranker(spark: SparkSession, own: Config, market: Any, options: Any, tmp_path: Path) -> None:
    items = vectors(tmp_path / "items", "item_id", market.items["item_id"].to_pylist()[:60])
    users = vectors(tmp_path / "users", "user_id", [f"u{user:03d}" for user in range(100)])
    ranker = tmp_path / "mine.onnx"
    ranker.write_bytes(export_ranker_onnx(RankerParameters.initialize(DIM, len(FeatureSpec.default().names), 1).to_arrays()))
    assert register(own, options, users, items, "--ranker", str(ranker)) == 0
    run_night(spark, own, dt.date(2026, 3, 1))
    rows = latest_topk(own.paths.warehouse).to_pylist()
    sources = {row["user_id"]: row["source"] for row in rows}
    assert len(sources) == 152  # "glutton" has seen every item that has a vector
    assert {user for user, source in sources.items() if source == "model"} == {f"u{user:03d}" for user in range(100)}
    assert {row["item_id"] for row in rows if row["source"] == "model"} <= set(market.items["item_id"].to_pylist()[:60])


@pytest.mark.parametrize(
    ("key", "ids", "changes", "dim", "words"),
    [
        ("user_id", ["a", "a"], None, DIM, "1 rows repeat a user_id"),
        ("user_id", ["a", "b"], {0: [float("nan")] * DIM}, DIM, "1 vectors have a value that is null, NaN or infinite"),
        ("user_id", ["a", "b"], {0: [1.0]}, DIM, "vectors have lengths 1 to 5"),
        ("user_id", ["a", "b"], None, DIM + 1, "need the same length"),
        ("user_id", [1, 2], None, DIM, "user_id is bigint, the warehouse's user_id is STRING"),
        ("customer", ["a"], None, DIM, "lacks user_id; it has customer, embedding"),
    ],
)
def test_what_cannot_be_registered_is_exit_code_2_and_says_why(
    own: Config, options: Any, tmp_path: Path, capsys: Any, key: str, ids: list[Any], changes: Any, dim: int, words: str
) -> None:
    items = vectors(tmp_path / "items", "item_id", [10, 20])
    assert register(own, options, vectors(tmp_path / "users", key, ids, changes, dim), items) == 2
    assert words in capsys.readouterr().err


def test_a_ranker_that_is_none_is_refused(own: Config, options: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "r.onnx").write_bytes(b"not a model")
    items, users = vectors(tmp_path / "items", "item_id", [10]), vectors(tmp_path / "users", "user_id", ["a"])
    assert register(own, options, users, items, "--ranker", str(tmp_path / "r.onnx")) == 2
    assert "is not an ONNX model" in capsys.readouterr().err


def test_the_same_tables_registered_again_are_the_same_version(own: Config, options: Any, tmp_path: Path, capsys: Any) -> None:
    items, users = vectors(tmp_path / "items", "item_id", [10, 20]), vectors(tmp_path / "users", "user_id", ["a"])
    for _ in range(2):
        assert register(own, options, users, items) == 0
        assert "model version 1 registered" in capsys.readouterr().out


def test_an_erased_user_is_in_no_vectors_and_the_next_night_counts_anew(
    spark: SparkSession, own: Config, market: Any, options: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = vectors(tmp_path / "items", "item_id", market.items["item_id"].to_pylist())
    users = vectors(tmp_path / "users", "user_id", [f"u{user:03d}" for user in range(100)])
    ranker = tmp_path / "mine.onnx"
    ranker.write_bytes(export_ranker_onnx(RankerParameters.initialize(DIM, len(FeatureSpec.default().names), 1).to_arrays()))
    assert register(own, options, users, items, "--ranker", str(ranker)) == 0
    run_night(spark, own, dt.date(2026, 3, 1))
    warehouse = Path(own.paths.warehouse)
    folders = {name: str(warehouse / name) for name in TABLES if (warehouse / name).is_dir()}
    online = own.online.model_copy(update={"snapshots": str(tmp_path / "snapshots")})
    report = erase_users(Places(own.model_copy(update={"online": online}), folders), ["u001"])
    assert report.found["artefacts: embeddings"] == 1 and report.is_done
    with caplog.at_level("INFO", logger="recsys_batch.night"):
        done = run_night(spark, own, dt.date(2026, 3, 2), incremental=True)
    assert done.status == "PUBLISHED" and "is a full night: users were erased since run 2026-03-01-r1, and its popularity" in caplog.text
    assert latest_topk(own.paths.warehouse, user_ids=["u001"]).num_rows == 0 < latest_topk(own.paths.warehouse, user_ids=["u002"]).num_rows
    assert register(own, options, users, items) == 0
    registered = list((warehouse / "_artifacts" / "embeddings").glob("user_id-*"))
    assert len(registered) == 2  # that of the first time, rewritten, and that of 99 users
    for folder in registered:
        found = [user for path in folder.glob("*.parquet") for user in pq.read_table(path)["user_id"].to_pylist()]
        assert sorted(found) == [f"u{user:03d}" for user in range(100) if user != 1]
