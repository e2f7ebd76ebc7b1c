"""One Spark session for the whole suite, and one small market that has been through a whole night."""

from __future__ import annotations

import datetime as dt
import runpy
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyarrow import fs

from recsys_batch.config import Config, load_config
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.storage import stores
from recsys_batch.stream.live_table import LiveTable
from recsys_batch.tables.slice_writer import TableSlice

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).parent.parent
RUN_DATE = dt.date(2026, 3, 1)
IDS = IdTypes("STRING", "BIGINT")
N_USERS, N_ITEMS = 150, 90
SPARK_SETTINGS = {
    # One driver for a thousand tests keeps the logs of hundreds of tables: 2 GB ran out near the end of 2,400.
    "spark.driver.memory": "3g",
    # A driver that lives for minutes plans much and computes little: half of its time were C2 and Janino, which compile for hours to
    # come. Without them a night takes half the CPU. C1's own cache is 48 MB unless told, and full after ten nights.
    # Hadoop without its native library starts some twenty processes (chmod, readlink) a commit, half of them for the checksum file.
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m -XX:+UseSerialGC "
    "-Djdk.lang.Process.launchMechanism=VFORK",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.databricks.delta.writeChecksumFile.enabled": "false",
}
"""What makes the session of tests cheaper; the processes that tests start have the product's settings."""


def config_in(folder: Path, *overrides: str) -> Config:
    """conf/smoke.toml with warehouse and state under ``folder``."""
    places = [f"paths.warehouse={folder / 'warehouse'}", f"paths.state={folder / 'state'}", f"paths.jars={ROOT / '.jars'}"]
    return load_config(ROOT / "conf" / "smoke.toml", [*places, *overrides])


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes the session, and begin with its files: of two processes one has them, the other begins with the rest."""
    with_session = [item for item in items if "spark" in getattr(item, "fixturenames", ())]
    for item in with_session:
        item.add_marker("spark")
    heavy = {item.path for item in with_session}
    items.sort(key=lambda item: item.path not in heavy)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path)


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """By the same code as the product's."""
    from recsys_batch.spark.session import get_session

    settings = [f"paths.jars={ROOT / '.jars'}", *(f"spark.conf.{name}={value}" for name, value in SPARK_SETTINGS.items())]
    if (ROOT / ".jars-kafka").exists():  # a session gets its jars when it starts: tests of Kafka share this one
        settings += ["stream.source=kafka", f"paths.kafka_jars={ROOT / '.jars-kafka'}"]
    session = get_session(load_config(ROOT / "conf" / "smoke.toml", settings))
    yield session
    session.stop()


@pytest.fixture
def duck() -> duckdb.DuckDBPyConnection:
    """DuckDB with its Delta extension out of the wheel, which needs no download; it forgets files, so that each query opens its own."""
    (file,) = [file for file in distribution("duckdb-ext-delta").files or [] if file.name == "delta.duckdb_extension"]
    connection = duckdb.connect()
    connection.execute(f"LOAD '{file.locate()}'")
    connection.execute("SET enable_external_file_cache = false")
    return connection


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """The environment of clients of an S3 server, which runs as long as the tests do."""
    with runpy.run_path(str(ROOT / "tools" / "s3_server.py"))["s3_server"]() as environment:
        yield environment


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The location of a bucket of this test, in a store that this process reaches."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid.uuid4().hex}"
    fs.S3FileSystem(endpoint_override=s3["AWS_ENDPOINT_URL"], region=s3["AWS_REGION"], allow_bucket_creation=True).create_dir(name)
    return f"s3a://{name}"


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An HDFS, which runs as long as the tests do: tools/hdfs_server.py's HdfsServer."""
    folder = tmp_path_factory.mktemp("hdfs")
    with runpy.run_path(str(ROOT / "tools" / "hdfs_server.py"))["hdfs_server"](ROOT / ".jars-hdfs", folder) as server:
        yield server


@pytest.fixture
def hdfs_folder(hdfs: Any) -> str:
    """The location of a folder of this test in HDFS."""
    return f"{hdfs.location}/test-{uuid.uuid4().hex}"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The location of a store without a server: what is in it lies under the folder "store" of this test, and is no mounted path."""
    (tmp_path / "store").mkdir()
    folder = fs.SubTreeFileSystem(str(tmp_path / "store"), fs.LocalFileSystem())
    fake = stores.Store("fake://BUCKET/FOLDER", lambda bucket: folder, dict, "none", has_folders=True)
    monkeypatch.setitem(stores.STORES, "fake", fake)
    return "fake://bucket"


@dataclass(frozen=True)
class Market:
    """Tables with planted taste, and what is odd in them.

    Users "u000".. prefer the third of the items that their number falls in; item ids are BIGINT 10, 20, ...
    "quiet" is in users only; "returner" has nothing but returns; "glutton" has seen all items but three; item 10 is unavailable.
    """

    interactions: pa.Table
    items: pa.Table
    users: pa.Table


@pytest.fixture(scope="session")
def market() -> Market:
    rng = np.random.default_rng(7)
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    events: list[tuple[str, int, dt.datetime, float]] = []
    for user in range(N_USERS):
        own = np.arange(N_ITEMS) % 3 == user % 3
        chance = np.where(own, 10.0, 1.0) / (1 + np.arange(N_ITEMS) / 20)
        for item in rng.choice(N_ITEMS, size=rng.integers(4, 25), replace=False, p=chance / chance.sum()):
            events.append((f"u{user:03d}", 10 * (int(item) + 1), start + dt.timedelta(minutes=int(rng.integers(0, 60_000))), 1.0))
    events += [("returner", 20, start, -1.0), ("returner", 30, start, -1.0)]
    events += [("glutton", 10 * item, start + dt.timedelta(days=item), 1.0) for item in range(1, N_ITEMS - 2)]
    users = [(f"u{user:03d}", "even" if user % 2 == 0 else "odd", [("plan", "free")]) for user in range(N_USERS)]
    users.append(("quiet", "even", []))
    items = [(10 * n, f"Title {n}", [f"genre {n % 3}"], n != 1, start, [("year", str(1990 + n % 5))]) for n in range(1, N_ITEMS + 1)]
    stamped = [(user, item, when, "buy", weight, when.date()) for user, item, when, weight in events]
    return Market(_table("interactions", stamped), _table("items", items), _table("users", users))


@pytest.fixture(scope="session")
def put_market() -> Callable[[SparkSession, Config, Market], None]:
    """Writes a market's tables into the warehouse of a config."""

    def put(session: SparkSession, config: Config, market: Market) -> None:
        from recsys_batch.spark.tables import WarehouseTables

        tables = WarehouseTables(session, config)
        for name in ("interactions", "items", "users"):
            tables.ensure(name, IDS)
            tables.append(name, session.createDataFrame(getattr(market, name)), {"by": "test"})

    return put


@pytest.fixture(scope="session")
def trained(spark: SparkSession, market: Market, put_market: Any, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A warehouse with the market and a champion trained on it; no night yet. Copy before writing: see ``fresh``."""
    from recsys_batch.cli import run

    config = config_in(tmp_path_factory.mktemp("trained"))
    put_market(spark, config, market)
    assert run(["train", *arguments(config)]) == 0
    return config


@pytest.fixture(scope="session")
def published(spark: SparkSession, trained: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The trained warehouse after one published night. Read only."""
    from recsys_batch.night.runner import run_night

    config = _copied(trained, tmp_path_factory.mktemp("published"))
    run_night(spark, config, RUN_DATE)
    return config


@pytest.fixture
def fresh(trained: Config, tmp_path: Path) -> Config:
    """This test's own copy of the trained warehouse; the registry is shared."""
    return _copied(trained, tmp_path)


@pytest.fixture
def fresh_published(published: Config, tmp_path: Path) -> Config:
    """This test's own copy of the published warehouse."""
    return _copied(published, tmp_path)


def arguments(config: Config) -> list[str]:
    """The options that make a command use ``config``'s folders."""
    paths = config.paths
    settings = (f"paths.warehouse={paths.warehouse}", f"paths.state={paths.state}", f"paths.jars={paths.jars}")
    return ["--conf", str(ROOT / "conf" / "smoke.toml"), *(part for setting in settings for part in ("--set", setting))]


@pytest.fixture(scope="session")
def options() -> Callable[[Config], list[str]]:
    """``arguments``, for tests."""
    return arguments


def live_table(warehouse: str, run_id: str) -> LiveTable:
    """A run's slice of topk_live, the table made where there is none."""
    spec, folder = TABLES["topk_live"], f"{warehouse}/topk_live"
    if not DeltaTable.is_deltatable(folder):
        properties = {"delta.dataSkippingStatsColumns": "user_id"}
        DeltaTable.create(folder, spec.arrow_schema(IDS), partition_by=list(spec.partition_by), configuration=properties)
    return LiveTable(TableSlice(folder, spec, IDS, {"run_id": run_id}, 2**26), "interactions of a test")


def append_live_lists(warehouse: str, run_id: str, batch_id: int, lists: Mapping[str, Sequence[int]]) -> None:
    """Append a batch to topk_live as a stream does: users' items, best first, of events until as many minutes after the night."""
    table, night = live_table(warehouse, run_id), dt.datetime.combine(RUN_DATE, dt.time(), dt.UTC)
    of_batch = {"run_date": RUN_DATE, "source": "model", "model_version": "1", "generated_at": night, "batch_id": batch_id}
    of_batch["events_through"] = night + dt.timedelta(minutes=batch_id)
    rows = [
        {**of_batch, "user_id": user, "rank": rank, "item_id": item, "score": 1 / rank, "candidate_rank": rank}
        for user in sorted(lists)
        for rank, item in enumerate(lists[user], start=1)
    ]
    written = table.where.write(pa.Table.from_pylist(rows, schema=table.where.schema).to_batches(), 0)
    table.commit({"topk_live": list(written)}, batch_id)


@pytest.fixture
def put_live_lists() -> Callable[[str, str, int, Mapping[str, Sequence[int]]], None]:
    """``append_live_lists``, for tests."""
    return append_live_lists


def _copied(config: Config, folder: Path) -> Config:
    warehouse = folder / "warehouse"
    shutil.copytree(config.paths.warehouse, warehouse)
    return config.model_copy(update={"paths": config.paths.model_copy(update={"warehouse": str(warehouse)})})


def _table(name: str, rows: list[tuple[Any, ...]]) -> pa.Table:
    schema = TABLES[name].arrow_schema(IDS)
    columns = zip(*rows, strict=True)
    return pa.Table.from_arrays([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)
