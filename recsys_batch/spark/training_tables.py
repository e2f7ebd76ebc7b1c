"""Tables that training reads, a key that says whether it would be the same training again, and what it will take."""

import hashlib
import json
from dataclasses import dataclass, field

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch import __version__
from recsys_batch.config import Config
from recsys_batch.dataset.user_sample import TrainingSample, choose_user_sample
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.model.training_cost import TrainingSize
from recsys_batch.read import has_table, open_table, read_table
from recsys_batch.spark.session import get_session
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.spark.user_sampling import count_activity, select_sampled_events

COLUMNS = {
    "interactions": ["user_id", "item_id", "event_ts", "weight"],
    "items": ["item_id", "categories", "attributes"],
    "users": ["user_id", "segment", "attributes"],
}
"""Columns of each table that training reads."""

STATED_ROWS = 2_000_000
"""Rows of interactions from which on memory and minutes are counted and stated before anything is read."""

_DEFAULT_DRIVER_MEMORY = "1g"
_JVM_OVERHEAD = 600 * 2**20
"""Reserve for what a driver's JVM holds beyond its heap: code, classes, network buffers."""


@dataclass(frozen=True)
class TrainingInputs:
    """Tables that training would read: Delta version of each, rows of interactions and items, and a key over versions, settings, release.

    Equal keys train equal models.
    """

    versions: dict[str, int]
    n_rows: int
    n_catalogue: int
    key: str


@dataclass(frozen=True)
class TrainingPlan:
    """Plan of a training: size of its input, memory of this process's JVM in bytes, and the sample; None where all users are taken."""

    size: TrainingSize
    jvm_bytes: int
    sample: TrainingSample | None


@dataclass(frozen=True)
class TrainingTables:
    """Tables for training; users None where there is no users table."""

    interactions: pa.Table = field(repr=False)
    items: pa.Table = field(repr=False)
    users: pa.Table | None = field(repr=False)


def identify_inputs(config: Config) -> TrainingInputs:
    """Find the newest versions of the tables, without reading their rows.

    Raises InputMissing where nothing was ingested.
    """
    if config.catalog:
        tables = WarehouseTables(get_session(config), config)
        versions = {name: tables.version(name) for name in COLUMNS if tables.exists(name)}
        counts = {name: tables.read(name, version).count() for name, version in versions.items()}
    else:
        warehouse = config.paths.warehouse
        opened = {name: open_table(warehouse, name) for name in COLUMNS if has_table(warehouse, name)}
        versions = {name: int(table.version()) for name, table in opened.items()}
        counts = {name: int(table.count()) for name, table in opened.items()}
    for name in ("interactions", "items"):
        if counts.get(name, 0) == 0:
            raise InputMissing(f"table {name} is missing or empty: run `recsys-batch ingest` before train")
    settings = config.model_dump(include={"data", "model", "training", "retrieval"}, mode="json")
    if settings["training"]["max_events"] is None:
        del settings["training"]["max_events"]  # as releases without the setting
    document = json.dumps({"versions": versions, "settings": settings, "release": __version__}, sort_keys=True)
    return TrainingInputs(versions, counts["interactions"], counts["items"], hashlib.sha256(document.encode()).hexdigest()[:24])


def plan_training(config: Config, inputs: TrainingInputs) -> TrainingPlan:
    """Count users, events and items on the cluster, and choose the users of ``training.max_events``; nothing of it comes to the driver.

    Raises:
        InputMissing: no interaction is positive.
        UsageError: no user's history is as short as max_events.
    """
    session = get_session(config)
    tables = WarehouseTables(session, config)
    positives = _read_positives(tables, config, inputs)
    counts = count_activity(positives, config.training.seed)
    if counts.n_events == 0:
        weight = config.data.min_weight
        raise InputMissing(f"none of {inputs.n_rows} interactions has weight > {weight} (data.min_weight): nothing to learn")
    limit, sample = config.training.max_events, None
    if limit is not None and counts.n_events > limit:
        sample = choose_user_sample(counts, limit, config.training.seed)
        if sample.n_users == 0:
            raise UsageError(f"training.max_events = {limit} takes no user: all have longer histories, or are too few to sample; raise it")
        positives = select_sampled_events(positives, sample)
    n_items = positives.select("item_id").distinct().count()
    n_users, n_events = (sample.n_users, sample.n_events) if sample is not None else (int(counts.users.sum()), counts.n_events)
    heap = _parse_java_size(session.sparkContext.getConf().get("spark.driver.memory", _DEFAULT_DRIVER_MEMORY))
    size = TrainingSize(inputs.n_rows, n_events, n_users, n_items, inputs.n_catalogue)
    return TrainingPlan(size, heap + _JVM_OVERHEAD, sample)


def read_training_tables(config: Config, inputs: TrainingInputs, sample: TrainingSample | None) -> TrainingTables:
    """Read the tables by deltalake, or through Spark where a catalog has to resolve their names or users are sampled."""
    if sample is not None:
        tables = _read_sample(config, inputs, sample)
    elif config.catalog:
        warehouse = WarehouseTables(get_session(config), config)
        tables = {name: warehouse.read(name, version).select(COLUMNS[name]).toArrow() for name, version in inputs.versions.items()}
    else:
        versions = inputs.versions.items()
        tables = {name: read_table(config.paths.warehouse, name, columns=COLUMNS[name], version=version) for name, version in versions}
    return TrainingTables(tables["interactions"], tables["items"], tables.get("users"))


def _read_sample(config: Config, inputs: TrainingInputs, sample: TrainingSample) -> dict[str, pa.Table]:
    """Read the sampled users' positive events, their rows in users, and the items of these events."""
    tables = WarehouseTables(get_session(config), config)
    events = select_sampled_events(_read_positives(tables, config, inputs), sample).toArrow()
    read = {"interactions": events}
    for name, key in (("items", "item_id"), ("users", "user_id")):
        if name in inputs.versions:
            known = events[key].unique()
            rows = tables.read(name, inputs.versions[name]).select(COLUMNS[name]).toArrow()
            read[name] = rows.filter(pa.compute.is_in(rows[key], value_set=known))
    return read


def _read_positives(tables: WarehouseTables, config: Config, inputs: TrainingInputs) -> DataFrame:
    rows = tables.read("interactions", inputs.versions["interactions"]).select(COLUMNS["interactions"])
    return rows.where(F.col("weight") > F.lit(config.data.min_weight))


def _parse_java_size(text: str) -> int:
    """Convert a size of Spark's, as 3g or 512m, to bytes; without a unit it is MiB."""
    units = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
    digits, unit = text.strip().lower().removesuffix("b"), "m"
    if digits and digits[-1] in units:
        digits, unit = digits[:-1], digits[-1]
    return int(digits) * units[unit]
