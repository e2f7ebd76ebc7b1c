"""What is wrong with the inputs ends with a sentence and a code, and publishes nothing."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_batch.cli import run as command
from recsys_batch.config import Config
from recsys_batch.errors import EXIT_FAILED, EXIT_MISSING, EXIT_USAGE
from recsys_batch.night.runner import run_step
from recsys_batch.read import read_table, run_rows
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.tables.run_manifest import STEP_NAMES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAY = dt.date(2026, 3, 1)


def nothing_published(config: Config) -> bool:
    return not any(row.status == "PUBLISHED" for row in run_rows(config.paths.warehouse))


def vectors(folder: Path, name: str, key: str, ids: list[Any], rows: list[list[float]]) -> str:
    kind = pa.string() if key == "user_id" else pa.int64()
    pq.write_table(pa.table({key: pa.array(ids, kind), "embedding": pa.array(rows, pa.list_(pa.float32()))}), folder / name)
    return str(folder / name)


ITEMS = [10 * n for n in range(1, 91)]
USERS = [f"u{n:03d}" for n in range(150)]


def rows(n: int, width: int = 4) -> list[list[float]]:
    found: list[list[float]] = np.random.default_rng(n).normal(size=(n, width)).round(3).tolist()
    return found


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda ids, found: (ids, [[float("nan")] * 4, *found[1:]]), "finite"),
        (lambda ids, found: ([ids[1], *ids[1:]], found), "repeat a user_id"),
        (lambda ids, found: (ids, [[1.0], *found[1:]]), "different lengths|dimension|length"),
        (lambda ids, found: ([], []), "empty|no rows"),
    ],
    ids=["nan", "duplicate", "dimensions", "empty"],
)
def test_embeddings_that_cannot_be_used_are_refused_when_they_are_brought(
    spark: SparkSession,
    fresh: Config,
    options: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[list[Any], list[list[float]]], tuple[list[Any], list[list[float]]]],
    sentence: str,
) -> None:
    items = vectors(tmp_path, "items.parquet", "item_id", ITEMS, rows(len(ITEMS)))
    users = vectors(tmp_path, "users.parquet", "user_id", *spoil(USERS, rows(len(USERS))))
    code = command(["register", "--user-embeddings", users, "--item-embeddings", items, *options(fresh)])
    said = capsys.readouterr().err
    assert code == EXIT_USAGE, said
    assert re.search(sentence, said), said
    assert nothing_published(fresh)


def test_tables_that_are_empty(spark: SparkSession, fresh: Config, options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tables = WarehouseTables(spark, fresh)
    tables.delta("items").delete()
    assert command(["nightly", "--run-date", str(DAY), *options(fresh)]) == EXIT_MISSING
    assert "the items table is empty" in capsys.readouterr().err
    assert nothing_published(fresh)


def test_interactions_that_are_empty(spark: SparkSession, fresh: Config, options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    WarehouseTables(spark, fresh).delta("interactions").delete()
    assert command(["nightly", "--run-date", str(DAY), *options(fresh)]) == EXIT_MISSING
    assert "no user has a positive interaction" in capsys.readouterr().err
    assert nothing_published(fresh)


def test_a_table_that_lacks_a_column(spark: SparkSession, fresh: Config, options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tables = WarehouseTables(spark, fresh)
    kept = tables.read("items").drop("is_available").localCheckpoint()
    shutil.rmtree(tables.path("items"))
    kept.write.format("delta").save(tables.path("items"))
    assert command(["nightly", "--run-date", str(DAY), *options(fresh)]) == EXIT_USAGE
    assert "table items lacks the column is_available" in capsys.readouterr().err
    assert nothing_published(fresh)


def test_a_model_without_the_alias(spark: SparkSession, fresh: Config, options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["nightly", "--run-date", str(DAY), *options(fresh), "--set", "mlflow.alias=nobody"]) == EXIT_MISSING
    assert "no alias nobody" in capsys.readouterr().err


Damage = Callable[[Path], None]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(("kind", "pattern", "after"), [("indexes", "vectors-*", "index"), ("bundles", "*/weights.safetensors", "embed")])
def test_a_damaged_artefact_stops_the_night_before_it_is_used(
    spark: SparkSession, fresh: Config, options: Any, capsys: pytest.CaptureFixture[str], kind: str, pattern: str, after: str
) -> None:
    for step in STEP_NAMES[: STEP_NAMES.index(after) + 1]:
        run_step(spark, fresh, step, DAY)
    (path,) = (Path(artifact_root(fresh.paths.warehouse)) / kind).glob(pattern)
    whole = path.read_bytes()
    damages: list[Damage] = [cut_short, altered, Path.unlink]
    for damage in damages:
        damage(path)
        code = command(["nightly", "--run-date", str(DAY), *options(fresh)])
        said = capsys.readouterr().err
        assert code in (EXIT_FAILED, EXIT_USAGE), said
        assert path.name in said and re.search("checksum|lacks|cannot be read", said), said
        assert nothing_published(fresh)
        path.write_bytes(whole)
    assert command(["nightly", "--run-date", str(DAY), *options(fresh)]) == 0


def test_a_bundle_of_another_version(
    spark: SparkSession, fresh: Config, options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_step(spark, fresh, "embed", DAY)
    (bundle,) = (Path(artifact_root(fresh.paths.warehouse)) / "bundles").iterdir()
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "bundle.json").read_text(encoding="utf-8"))
    (copy / "bundle.json").write_text(json.dumps({**manifest, "format_version": 99}), encoding="utf-8")
    assert command(["register", "--bundle", str(copy), *options(fresh)]) == EXIT_USAGE
    assert "format version 99" in capsys.readouterr().err


def test_what_was_published_stays_whatever_fails_after(
    spark: SparkSession, fresh_published: Config, options: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_table(fresh_published.paths.warehouse, "topk").num_rows
    WarehouseTables(spark, fresh_published).delta("items").delete()
    assert command(["nightly", "--run-date", "2026-03-02", *options(fresh_published)]) == EXIT_MISSING
    assert command(["status", *options(fresh_published)]) == 0
    assert "2026-03-01-r1 *" in capsys.readouterr().out
    assert read_table(fresh_published.paths.warehouse, "topk").num_rows == before
