"""Float columns of the contract: what comes in by the product's doors, and that every reader finds the same rows by it."""

import datetime as dt
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder
from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.read import table_dataset
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.sources.typed_rows import REASON
from recsys_batch.spark.ingest.exposure_source import parse_exposures
from recsys_batch.spark.ingest.pipeline import run_ingest
from recsys_batch.spark.ingest.sources import IngestRequest
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.tables.delta_log import commit
from recsys_batch.tables.slice_writer import TableSlice

IDS = IdTypes("STRING", "STRING")
VALUES = {
    **{"zero": 0.0, "minus_zero": -0.0, "tiny": 1e-30, "minus_tiny": -1e-30, "one": 1.0, "huge": 1e30, "minus_huge": -1e30},
    **{"not_a_number": math.nan, "infinity": math.inf, "minus_infinity": -math.inf},
}
FINITE = {name: value for name, value in VALUES.items() if math.isfinite(value)}
CONDITIONS: dict[str, Callable[[float], bool]] = {
    f"{symbol} {bound}": lambda value, compare=compare, bound=bound: compare(value, float(bound))  # type: ignore[misc]
    for symbol, compare in {"=": operator.eq, ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}.items()
    for bound in ("0", "1e29", "1e-31")
}


def by_spark(spark: SparkSession, path: str, key: str, condition: str) -> list[str]:
    return [row[0] for row in spark.read.format("delta").load(path).where(condition).select(key).collect()]


@cache
def connection_to_duckdb() -> duckdb.DuckDBPyConnection:
    """DuckDB with its Delta extension out of its wheel, which needs no download."""
    connection = duckdb.connect()
    (extension,) = (file for file in distribution("duckdb-ext-delta").files or [] if file.name == "delta.duckdb_extension")
    connection.execute(f"LOAD '{extension.locate()}'")
    return connection


def by_duckdb(_spark: SparkSession, path: str, key: str, condition: str) -> list[str]:
    return [row[0] for row in connection_to_duckdb().execute(f"SELECT {key} FROM delta_scan('{path}') WHERE {condition}").fetchall()]


def by_polars(_spark: SparkSession, path: str, key: str, condition: str) -> list[str]:
    return list(pl.scan_delta(path).filter(pl.sql_expr(condition)).select(key).collect()[key])


def by_query_builder(_spark: SparkSession, path: str, key: str, condition: str) -> list[str]:
    query = QueryBuilder().register("rows", DeltaTable(path)).execute(f"SELECT {key} FROM rows WHERE {condition}")
    return list(pa.table(query.read_all())[key].to_pylist())


def _arrow_condition(condition: str) -> pc.Expression:
    column, symbol, bound = condition.split()
    compare = {"=": operator.eq, ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}[symbol]
    return compare(pc.field(column), pa.scalar(float(bound), pa.float32()))


def by_deltalake(_spark: SparkSession, path: str, key: str, condition: str) -> list[str]:
    return list(DeltaTable(path).to_pyarrow_dataset().to_table(columns=[key], filter=_arrow_condition(condition))[key].to_pylist())


def by_this_package(_spark: SparkSession, path: str, key: str, condition: str) -> list[str]:
    warehouse, _, name = path.rpartition("/")
    return list(table_dataset(warehouse, name).to_table(columns=[key], filter=_arrow_condition(condition))[key].to_pylist())


READERS = (by_spark, by_duckdb, by_polars, by_query_builder, by_deltalake, by_this_package)


def assert_found_alike(spark: SparkSession, path: str, key: str, column: str, values: Mapping[str, float]) -> None:
    """Assert that each reader finds, by every condition, the rows for which it holds in Python's arithmetic."""
    found: dict[tuple[str, str], list[str]] = {}
    expected: dict[tuple[str, str], list[str]] = {}
    for condition, holds in CONDITIONS.items():
        for reader in READERS:
            place = condition, reader.__name__
            found[place] = sorted(reader(spark, path, key, f"{column} {condition}"))
            expected[place] = sorted(name for name, value in values.items() if holds(value))
    assert {place: names for place, names in found.items() if names != expected[place]} == {}


def stored(path: str, key: str, column: str) -> dict[str, float]:
    return {row[key]: row[column] for row in DeltaTable(path).to_pyarrow_table(columns=[key, column]).to_pylist()}


def interactions_of(names: Sequence[str]) -> pa.Table:
    """One interaction for each of VALUES, of a user of its name."""
    columns = {"user_id": list(names), "item_id": ["i"] * len(names), "event_type": ["view"] * len(names)}
    return pa.table({**columns, "weight": pa.array([VALUES[name] for name in names], pa.float32())})


@pytest.mark.parametrize("files", [[list(VALUES)], [["zero", "minus_zero"], ["minus_zero", "zero"], ["minus_zero"]]], ids=["all", "zeros"])
def test_every_reader_finds_the_same_interactions_by_their_weight(
    spark: SparkSession, config: Config, tmp_path: Path, files: list[list[str]]
) -> None:
    expected: dict[str, float] = {}
    for number, names in enumerate(files):
        rows = interactions_of(names)
        rows = rows.set_column(0, "user_id", pa.array([f"{name} of {number}" for name in names]))
        pq.write_table(rows, tmp_path / f"{number}.parquet")
        request = IngestRequest(sources=(str(tmp_path / f"{number}.parquet"),), format=SourceFormat(kind="parquet"), max_rejected_share=1.0)
        rejected = run_ingest(spark, config, request).kinds["interactions"].rejected
        assert rejected == ({"bad_weight": 3} if "not_a_number" in names else {})
        expected |= {f"{name} of {number}": float(np.float32(FINITE[name])) for name in names if name in FINITE}
    path = WarehouseTables(spark, config).path("interactions")
    weights = stored(path, "user_id", "weight")
    assert weights == expected
    assert [name for name, weight in weights.items() if weight == 0 and math.copysign(1, weight) < 0] == []
    assert_found_alike(spark, path, "user_id", "weight", expected)


def test_every_reader_finds_the_same_exposures_by_their_scores(spark: SparkSession, config: Config) -> None:
    columns, now = ("score", "batch_score", "candidate_score", "propensity"), dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    constant = {"user_id": "u", "item_id": "i", "position": 1, "source": "ranker", "shown_at": now}
    rows = [{**constant, "request_id": name, **dict.fromkeys(columns, value)} for name, value in VALUES.items()]
    rows += [{**constant, "request_id": f"{column} only", "score": 1.0, column: math.inf} for column in columns]
    rows += [{**constant, "request_id": "no others", **dict.fromkeys(columns, math.nan), "score": 1.0}]
    schema = pa.schema([field.with_nullable(True) for field in TABLES["exposures"].arrow_schema(IDS)])
    raw = spark.createDataFrame(pa.Table.from_pylist(rows, schema=schema).drop_columns(["shown_date"]))
    parsed = parse_exposures(raw, IDS).coalesce(1)
    reasons = {row.request_id: row[REASON] for row in parsed.select("request_id", REASON).collect() if row[REASON]}
    bad_scores = {"infinity", "minus_infinity", "not_a_number", "score only", "batch_score only", "candidate_score only"}
    assert reasons == {**dict.fromkeys(bad_scores, "bad_score"), "propensity only": "bad_propensity"}
    tables = WarehouseTables(spark, config)
    tables.ensure("exposures", IDS)
    tables.append("exposures", parsed.where(f"{REASON} IS NULL").select(*schema.names), {})
    path, expected = tables.path("exposures"), {name: float(np.float32(value)) for name, value in FINITE.items()}
    for column in columns:
        values = stored(path, "request_id", column)
        assert values == {**expected, "no others": 1.0 if column == "score" else None}
        assert math.copysign(1, values["minus_zero"]) == 1
        assert_found_alike(spark, path, "request_id", column, {**expected, **({"no others": 1.0} if column == "score" else {})})


def test_every_reader_finds_the_same_rows_of_a_night_by_their_score(spark: SparkSession, tmp_path: Path) -> None:
    spec = TABLES["topk"]
    properties = {"delta.dataSkippingStatsColumns": ",".join(spec.stats_columns(IDS))}
    DeltaTable.create(str(tmp_path / "topk"), spec.arrow_schema(IDS), partition_by=list(spec.partition_by), configuration=properties)
    where = TableSlice(str(tmp_path / "topk"), spec, IDS, {"run_date": dt.date(2026, 3, 1), "run_id": "r"}, 10**9)
    constant = {"rank": 1, "item_id": "i", "candidate_rank": 1, "source": "model", "model_version": "1", "generated_at": None}
    parts = []
    for number, names in enumerate([sorted(FINITE), ["minus_zero", "zero"], ["minus_zero"]]):
        rows = [{**constant, "user_id": f"{name} of {number}", "score": FINITE[name]} for name in names]
        parts += list(where.write(pa.Table.from_pylist(rows, schema=where.schema).to_batches(), number))
    commit(where, parts, {})
    path = str(tmp_path / "topk")
    values = stored(path, "user_id", "score")
    assert {math.copysign(1, value) for name, value in values.items() if value == 0} == {1}
    expected = {name: float(np.float32(FINITE[name.partition(" ")[0]])) for name in values}
    assert len(expected) == len(FINITE) + 3 and values == expected
    assert_found_alike(spark, path, "user_id", "score", expected)


def test_weights_by_event_type_are_numbers_of_the_column(spark: SparkSession, config: Config, tmp_path: Path) -> None:
    rows = pa.table({"user_id": ["a", "b"], "item_id": ["i", "i"], "event_type": ["view", "buy"]})
    pq.write_table(rows, tmp_path / "days.parquet")
    how = SourceFormat(kind="parquet", weights={"view": -0.0, "buy": math.inf})
    summary = run_ingest(spark, config, IngestRequest(sources=(str(tmp_path / "days.parquet"),), format=how, max_rejected_share=1.0))
    assert summary.kinds["interactions"].rejected == {"bad_weight": 1}
    weights = stored(WarehouseTables(spark, config).path("interactions"), "user_id", "weight")
    assert {user: math.copysign(1, weight) for user, weight in weights.items()} == {"a": 1} and weights == {"a": 0}
