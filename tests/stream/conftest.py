"""Events into a published market, the lists that a stream made of them, and those of a full night over the same events."""

from __future__ import annotations

import datetime as dt
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys_batch.config import Config
from recsys_batch.night.runner import run_night
from recsys_batch.read import latest_topk, read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.tables import WarehouseTables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parent.parent.parent
TOPIC = "events"
IDS = IdTypes("STRING", "BIGINT")
NEXT = dt.date(2026, 3, 3)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
COLUMNS = ["user_id", "rank", "item_id", "score", "candidate_rank", "source", "model_version"]
Event = tuple[str, int, float]


def _append(spark: SparkSession, config: Config, events: list[Event], start: dt.datetime = NOON) -> None:
    rows = [(user, item, start + dt.timedelta(seconds=n), "buy", weight, start.date()) for n, (user, item, weight) in enumerate(events)]
    schema = TABLES["interactions"].arrow_schema(IDS)
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
    WarehouseTables(spark, config).append("interactions", spark.createDataFrame(table), {"by": "test"})


def _live_lists(config: Config) -> list[tuple[Any, ...]]:
    """Each refreshed user's newest rows, by user and rank."""
    rows = read_table(config.paths.warehouse, "topk_live").to_pylist()
    newest: dict[str, int] = {}
    for row in rows:
        newest[row["user_id"]] = max(newest.get(row["user_id"], -1), row["batch_id"])
    current = [tuple(row[name] for name in COLUMNS) for row in rows if row["batch_id"] == newest[row["user_id"]]]
    return sorted(current)


def _full_night(spark: SparkSession, config: Config, folder: Path, users: set[str]) -> list[tuple[Any, ...]]:
    """The rows that these users get of a night over what interactions has now, on a copy of the warehouse."""
    shutil.copytree(config.paths.warehouse, folder)
    full = config.model_copy(update={"paths": config.paths.model_copy(update={"warehouse": str(folder)})})
    run_night(spark, full, NEXT)
    rows = latest_topk(str(folder), columns=COLUMNS)
    return sorted(tuple(row.values()) for row in rows.filter(pc.is_in(rows["user_id"], value_set=pa.array(sorted(users)))).to_pylist())


@pytest.fixture
def append_events(spark: SparkSession) -> Callable[[Config, list[Event]], None]:
    """Appends (user, item, weight) to interactions, one second after the other."""
    return lambda config, events: _append(spark, config, events)


@pytest.fixture
def live_lists() -> Callable[[Config], list[tuple[Any, ...]]]:
    return _live_lists


@pytest.fixture
def full_night_lists(spark: SparkSession, tmp_path: Path) -> Callable[[Config, set[str]], list[tuple[Any, ...]]]:
    return lambda config, users: _full_night(spark, config, tmp_path / "full", users)


@pytest.fixture(scope="session")
def kafka_broker_class() -> Any:
    return runpy.run_path(str(ROOT / "tools" / "kafka_broker.py"))["KafkaBroker"]


@pytest.fixture
def kafka_broker(kafka_broker_class: Any, tmp_path: Path) -> Iterator[Any]:
    """A running broker with the topic "events" of two partitions."""
    from confluent_kafka.admin import AdminClient, NewTopic

    with kafka_broker_class(tmp_path / "kafka", ROOT / ".jars-kafka-broker") as running:
        admin = AdminClient({"bootstrap.servers": running.address})
        admin.create_topics([NewTopic(TOPIC, 2, 1)])[TOPIC].result(30)
        yield running


@pytest.fixture
def kafka_config(fresh_published: Config, kafka_broker: Any) -> Config:
    """A published market of this test's own, whose stream reads the broker's topic."""
    settings = {"source": "kafka", "bootstrap_servers": kafka_broker.address, "topic": TOPIC}
    return fresh_published.model_copy(update={"stream": fresh_published.stream.model_copy(update=settings)})
