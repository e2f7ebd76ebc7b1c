"""Tables that training reads, and a key that says whether it would be the same training again."""

import hashlib
import json
from dataclasses import dataclass, field

import pyarrow as pa

from recsys_batch import __version__
from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.read import has_table, open_table, read_table

_TABLES = ("interactions", "items", "users")


@dataclass(frozen=True)
class TrainingTables:
    """Tables for training, and what identifies them.

    Attributes:
        users: None where there is no users table.
        versions: Delta version of each table read.
        key: hex digest over versions, settings and release: equal keys train equal models.
    """

    interactions: pa.Table = field(repr=False)
    items: pa.Table = field(repr=False)
    users: pa.Table | None = field(repr=False)
    versions: dict[str, int]
    key: str


def read_training_tables(config: Config) -> TrainingTables:
    """Read the tables by deltalake, or through Spark where a catalog has to resolve their names.

    Raises InputMissing where nothing was ingested, or no interaction is positive.
    """
    tables, versions = _read_by_spark(config) if config.catalog else _read_by_path(config.paths.warehouse)
    for name in ("interactions", "items"):
        if name not in tables or tables[name].num_rows == 0:
            raise InputMissing(f"table {name} is missing or empty: run `recsys-batch ingest` before train")
    settings = config.model_dump(include={"data", "model", "training", "retrieval"}, mode="json")
    document = json.dumps({"versions": versions, "settings": settings, "release": __version__}, sort_keys=True)
    key = hashlib.sha256(document.encode()).hexdigest()[:24]
    return TrainingTables(tables["interactions"], tables["items"], tables.get("users"), versions, key)


def _read_by_path(warehouse: str) -> tuple[dict[str, pa.Table], dict[str, int]]:
    versions = {name: int(open_table(warehouse, name).version()) for name in _TABLES if has_table(warehouse, name)}
    return {name: read_table(warehouse, name, version=version) for name, version in versions.items()}, versions


def _read_by_spark(config: Config) -> tuple[dict[str, pa.Table], dict[str, int]]:
    from recsys_batch.spark.session import get_session
    from recsys_batch.spark.tables import WarehouseTables

    tables = WarehouseTables(get_session(config), config)
    versions = {name: tables.version(name) for name in _TABLES if tables.exists(name)}
    return {name: tables.read(name, version).toArrow() for name, version in versions.items()}, versions
