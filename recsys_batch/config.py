"""Typed configuration: TOML file, then ``--set section.key=value`` overrides, checked once, immutable after.

Every key has a default, so an empty file is a valid config. An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from recsys_batch.errors import ConfigError

SeenSetting = str | dict[str, Any]
"""When an item that a user has had may be listed again: "exclude" (never), "allow" (always), {"after_days": N}; or these by segment."""
_MAX_DAYS = 36_500


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Paths(Section):
    warehouse: str = Field(
        "warehouse",
        description="folder that holds the Delta tables and run artefacts: on a path that every node mounts, s3a://BUCKET/FOLDER or "
        "hdfs://NAMENODE:PORT/FOLDER",
    )
    state: str = Field("state", description="local folder for MLflow's database, its artefacts and bundles being written")
    node_cache: str = Field(
        default_factory=lambda: f"{tempfile.gettempdir()}/recsys_batch-{os.getuid()}",
        description="folder on each node's own disk for copies of models and indexes of a warehouse in a store",
    )
    node_cache_mb: int = Field(51_200, ge=1, description="MiB that these copies may take; what nobody uses goes first")
    jars: str = Field(".jars", description="folder with the Delta jars that set-up resolved; read when it exists")
    kafka_jars: str = Field(".jars-kafka", description="folder with the jars of `make kafka-jars`; read where stream.source is kafka")
    s3a_jars: str = Field(".jars-s3a", description="folder with the jars of `make s3a-jars`; read where the warehouse is in s3a://")


class SparkSection(Section):
    master: str = Field("local[*]", description="used only where spark-submit has not set one")
    app_name: str = "recsys-batch"
    conf: dict[str, str] = Field(default_factory=dict, description="any Spark property, passed through")


class Data(Section):
    min_weight: float = Field(0.0, description="an interaction is positive when weight > min_weight; others only count as seen")
    null_values: tuple[str, ...] = Field(
        ("", "null", "NULL", "nan", "NaN", "None", r"\N", "<NA>", "NaT"), description="texts that mean a missing value in every source"
    )
    session_gap: float = Field(30.0, gt=0, description="minutes without an event that end a session; no split cuts through one")


class ModelSection(Section):
    """The reference model's shape."""

    embedding_dim: int | None = Field(
        None, ge=4, le=1024, description="unset: the narrowest of 64, 128, 256 within 2 % of the best on the validation part"
    )
    history_length: int = Field(1000, ge=1, le=5000, description="positive interactions the user tower looks back on, newest first")


class Training(Section):
    seed: int = Field(17, ge=0)
    max_seconds: float = Field(600.0, gt=0, description="budget of towers and ranker together, wall clock")
    max_events: int | None = Field(
        None,
        ge=1_000,
        description="train on at most so many positive events: a seeded sample of users with whole histories, stratified by activity; "
        "unset: on all",
    )
    batch_size: int = Field(512, ge=8, description="users per step, fewer where the catalogue is large")
    learning_rate: float = Field(1e-3, gt=0, le=1)
    refit: bool = Field(True, description="train again on all data, validation part included, for the epochs that were best")
    max_epochs: int = Field(100, ge=1)
    validation_fraction: float = Field(0.1, gt=0, lt=0.5, description="newest share of each user's positives kept for validation")
    promotion_confidence: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="of the interval of the gain over the champion, which must lie above 0 for a model to take its place; 0: any gain does",
    )


def _check_seen_rule(key: str, rule: Any) -> None:
    """Raise ValueError where ``rule`` is no rule for seen items."""
    if rule in ("exclude", "allow"):
        return
    days = rule.get("after_days") if isinstance(rule, dict) and len(rule) == 1 else None
    if type(days) is not int:
        raise ValueError(f'{key} is {rule!r}: expected "exclude", "allow" or {{after_days = N}}, N a whole number of days')
    if not 0 <= days <= _MAX_DAYS:
        raise ValueError(f"{key} has after_days = {days}: expected 0 to {_MAX_DAYS:,} days")


def check_seen_setting(seen: Any) -> None:
    """Raise ValueError where a value is no ``retrieval.seen``: a rule, or rules by segment."""
    if not isinstance(seen, dict) or list(seen) == ["after_days"]:
        _check_seen_rule("it", seen)
    elif not seen:
        raise ValueError('the table names no segment: write "exclude", or a rule for each segment')
    elif "after_days" in seen:
        raise ValueError("after_days stands beside segments: write all = {after_days = N}; no segment can be called after_days")
    else:
        for segment, rule in seen.items():
            _check_seen_rule(f"the rule for {segment}", rule)


class Retrieval(Section):
    mode: Literal["exact", "ivf", "sharded", "auto"] = Field("auto", description="how candidates are searched; auto: by size, and says why")
    metric: Literal["ip", "cosine"] = "ip"
    n_candidates: int = Field(200, ge=1, le=10_000)
    storage: Literal["float32", "int8", "auto"] = Field(
        "auto", description="what inverted lists are searched in; auto: int8 where memory_mb does not hold float32"
    )
    memory_mb: int = Field(4096, ge=1, description="MiB of item vectors that a node may hold in memory")
    nlist: int | None = Field(None, ge=1, description="IVF lists; unset: 4 * sqrt(n_items), at least 16 items in each")
    nprobe: int | None = Field(None, ge=1, description="IVF lists searched for n_candidates; unset: tuned to target_recall")
    target_recall: float = Field(0.99, gt=0, le=1)
    tuning_users: int = Field(2000, ge=10, description="sampled users that recall is measured on")
    exact_max_items: int = Field(20_000, ge=0, description="auto: exact search up to this many items")
    eligibility: dict[str, str] = Field(
        default_factory=dict,
        description="segment -> boolean SQL over columns of items: only these items for its users; 'all': for segments not named here",
    )
    seen: SeenSetting = Field(
        "exclude",
        description="items that a user has had: exclude, allow, or {after_days = N}, again N days after the newest event; "
        "or a table segment -> one of these, 'all': for segments not named here",
    )

    @field_validator("seen", mode="before")
    @classmethod
    def _check_seen(cls, seen: Any) -> Any:
        check_seen_setting(seen)
        return seen

    @model_validator(mode="after")
    def _check_storage(self) -> Retrieval:
        if self.mode == "sharded" and self.storage == "int8":
            raise ValueError("shards are float32: set mode = ivf for int8, or storage = float32 for shards")
        return self


class Scoring(Section):
    top_k: int = Field(100, ge=1, le=10_000)
    batch_users: int = Field(64, ge=1, description="users per ranker call")
    engine: Literal["auto", "torch", "onnx"] = Field(
        "auto", description="what scores by the reference ranker on executors; auto: torch where all of them have it, else ONNX Runtime"
    )
    candidates: Literal["retrieved", "all"] = Field(
        "retrieved", description="all: the ranker scores every item that a user has left, for small catalogues; n_candidates is not used"
    )
    all_max_items: int = Field(5_000, ge=1, description="candidates = all is refused for more items than this")


class Rules(Section):
    """Business rules on lists, after the ranker. Conditions are boolean SQL over columns of items."""

    boosts: dict[str, float] = Field(default_factory=dict, description="condition -> added to the score; several add up")
    blocklist: str | None = Field(None, description="items for which it holds are never listed")
    max_age_days: int | None = Field(
        None, ge=1, description="items first seen longer before the run date, or at no known time, are not listed"
    )
    max_per_category: int | None = Field(None, ge=1, description="at most so many of a user's list share a category")


class Audit(Section):
    """Gates before publishing; a limit that is not set is no gate."""

    min_user_coverage: float = Field(1.0, ge=0, le=1, description="share of known users with a published list")
    min_list_fill: float = Field(0.5, ge=0, le=1, description="mean rows per listed user, as a share of scoring.top_k")
    min_catalogue_coverage: float | None = Field(None, ge=0, le=1, description="share of available items that are in somebody's list")
    min_recall: float = Field(0.95, ge=0, le=1, description="measured ANN recall against exact search")
    min_overlap: float | None = Field(
        None, ge=0, le=1, description="mean Jaccard of users' items with the published run's, on sampled users"
    )
    min_model_metric_ratio: float | None = Field(
        None, ge=0, description="the model's validation NDCG@10, as a share of that of the published run's model"
    )
    max_popular_share: float = Field(0.5, ge=0, le=1, description="share of users served the popular list")
    max_head_share: float | None = Field(
        None, ge=0, le=1, description="share of rows whose item is among the most popular 1 % of the catalogue"
    )
    max_score_drift: float | None = Field(
        None, ge=0, description="population stability index of scores against the published run, where it has the same model"
    )
    max_input_age_days: float | None = Field(None, ge=0, description="days from the newest event to the end of the run date")


class TablesSection(Section):
    target_file_mb: int = Field(64, ge=1, le=1024, description="a file of the night's tables is closed at about this size")
    popular_items: int = Field(1000, ge=1, description="length of each segment's popular list")
    retention_days: int = Field(30, ge=1, description="time travel and VACUUM floor")
    keep_runs: int = Field(14, ge=1, description="published runs whose rows `maintain` keeps, and rollback can go to")


class Online(Section):
    """The online ranker: where snapshots are, and how they are served."""

    model_config = ConfigDict(allow_inf_nan=False)

    snapshots: str = Field("snapshots", description="folder of snapshots; export-snapshot fills it, serve reads it")
    store: Literal["lmdb", "redis"] = Field(
        "lmdb", description="users' lists: in the snapshot, or in Redis or Valkey (RECSYS_BATCH_REDIS_URL)"
    )
    keep: int = Field(3, ge=1, description="snapshots that export-snapshot keeps, beside those in use")
    redis_cluster: bool = Field(False, description="the store is a cluster")
    redis_expire_hours: float = Field(96.0, gt=0, description="records in Redis go by themselves after so long")
    store_timeout_ms: float = Field(20.0, gt=0, description="a slower answer of Redis counts as none")
    host: str = Field("127.0.0.1", description="0.0.0.0 lets others in: set RECSYS_BATCH_CLIENT_TOKEN then")
    port: int = Field(8080, ge=1, le=65535)
    grpc_port: int | None = Field(None, ge=1, le=65535, description="the Open Inference Protocol over gRPC; unset: over HTTP alone")
    workers: int | None = Field(None, ge=1, le=256, description="processes; unset: one per core")
    grpc_workers: int | None = Field(
        None, ge=1, le=256, description="processes for gRPC, between which clients' connections are spread; unset: as many as workers"
    )
    max_k: int = Field(200, ge=1, le=10_000, description="longest list that a request may ask for")
    max_ids: int = Field(1000, ge=1, description="most ids in session_item_ids, in exclude_item_ids, most events of a feedback")
    max_candidates: int = Field(1000, ge=1, le=10_000, description="most candidate_item_ids, which a request brings to have them ranked")
    max_body_kb: int = Field(256, ge=1, description="KiB of a request's body")
    read_timeout_seconds: float = Field(
        10.0,
        ge=0.1,
        le=3600,
        description="in which a request's headers, and its body, have to arrive; an idle connection is closed after it",
    )
    max_waiting: int = Field(
        32,
        ge=1,
        description="requests of a worker that may wait; more get 503 and Retry-After. Of /v2, 256 rows or users for each; a batch of /v1 "
        "counts as its requests, 16 at most, as so many of it are ranked at a time",
    )
    max_age_hours: float = Field(36.0, gt=0, description="since the night began; past it answers say degraded: stale_snapshot")
    max_age_hard_hours: float | None = Field(None, gt=0, description="past it the server is not ready any more")
    poll_ms: float = Field(100.0, ge=10, le=60_000, description="how often a worker looks for another snapshot")
    exposures: str | None = Field(
        None, description="folder for what was shown and what POST /v1/feedback brings; ingest --format exposures reads it"
    )
    exposures_max_mb: float = Field(2048.0, gt=0, description="of each kind of file in that folder; the oldest go")
    explore: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of an answer's places that are filled at random, with logged propensity; 0: none",
    )
    live: Literal["off", "table", "redis"] = Field(
        "off",
        description="lists that the stream refreshed since the night are preferred to the snapshot's: each host keeps them in files "
        "(table), or all share them in Redis; stream and serve read it, and serve needs paths.warehouse and the extra read then",
    )
    live_max_lag_seconds: float = Field(
        60.0, gt=0, description="since a server last knew all live lists; past it /readyz says live: behind, and answers stay"
    )
    engine: Literal["onnx", "oip", "torchserve", "tfserving"] = Field(
        "onnx",
        description="who runs the ranker: this server, or one that export-model wrote it for, by its protocol; oip is the Open Inference "
        "Protocol, of Triton and MLServer",
    )
    engine_url: str = Field("http://127.0.0.1:8000", description="that model server's address, for HTTP")
    engine_model: str = Field("ranker", description="its name for the ranker; the version is the snapshot's model version")
    engine_binary: bool = Field(True, description="oip: tensors as bytes, a fifth of JSON's; MLServer takes JSON only")
    engine_timeout_ms: float = Field(20.0, gt=0, description="a later answer counts as none: the night's order is shown")
    engine_connections: int = Field(8, ge=1, description="of a worker; requests beyond wait, and go out together")
    engine_retry_share: float = Field(0.1, ge=0, le=1, description="calls of which so many may be tried again, where a connection broke")
    engine_max_failures: int = Field(5, ge=1, description="in a row, past which it is left alone for a while")
    engine_rest_seconds: float = Field(1.0, gt=0, description="that while; then one call tries it")
    page: bool = Field(True, description="the explorer page at /")
    samples: int = Field(1000, ge=0, le=100_000, description="users whose newest items a snapshot keeps for the explorer page")
    batch_rows: int = Field(16, ge=1, description="/v2: most rows of concurrent requests in one run of the model")
    batch_delay_us: int = Field(0, ge=0, description="/v2: how long a request may wait for others")


class Digest(Section):
    """Digests for e-mail senders."""

    max_age_hours: float = Field(36.0, gt=0, description="since the night began; an older run is refused")
    repeat_days: int = Field(30, ge=0, le=3650, description="days in which nothing is sent to a user twice; 0: as the lists are")


class Stream(Section):
    """Refreshing users between two nights."""

    source: Literal["delta", "kafka"] = Field(
        "delta", description="delta: whatever is appended to interactions; kafka: a topic, whose events are appended to it first"
    )
    max_events: int = Field(50_000, ge=1, description="a micro-batch ends with the commit, or the offset, that reaches so many")
    bootstrap_servers: str = Field("127.0.0.1:9092", description="Kafka's brokers, HOST:PORT[,HOST:PORT]")
    topic: str = Field("interactions", description="Kafka's topic of events: JSON with the columns of ingest")


class Prices(Section):
    """Prices that `plan` computes with. They are the reader's own: put yours here."""

    currency: str = Field("USD", description="of the prices below")
    as_of: str = Field("2026-11", description="when they were looked up; shown beside every figure")
    core_hour: float = Field(0.04, gt=0, description="one core for an hour, with its share of memory")
    gb_month: float = Field(0.023, ge=0, description="a GB of storage for a month")
    gb_read: float = Field(0.01, ge=0, description="a GB read from the store of cached lists")
    node_cores: int = Field(16, ge=1, description="cores of a machine")
    node_memory_gb: float = Field(64.0, gt=0, description="its memory")


class MLflow(Section):
    tracking_uri: str | None = Field(None, description="unset: RECSYS_BATCH_TRACKING_URI, or sqlite in paths.state")
    experiment: str = "recsys_batch"
    model_name: str = "recsys_batch"
    alias: str = Field("champion", description="names the version that nights use; not latest, nor v and a number, which MLflow reserves")

    @field_validator("alias")
    @classmethod
    def _refuse_reserved(cls, alias: str) -> str:
        if re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
            raise ValueError(
                "is reserved: MLflow answers latest with the newest version, crowned or not, and v1 with version 1; take another name"
            )
        if re.fullmatch(r"[\w-]{1,255}", alias) is None:
            raise ValueError("cannot be an alias of MLflow: expected 1 to 255 letters, digits, underscores or hyphens, like champion")
        return alias

    @field_validator("tracking_uri")
    @classmethod
    def _refuse_secrets(cls, uri: str | None) -> str | None:
        if uri and urlparse(uri).password:
            raise ValueError("has a password in it: leave the key out, and name the server in RECSYS_BATCH_TRACKING_URI")
        return uri


class Config(Section):
    catalog: str | None = Field(None, description="catalog.schema; unset: tables are paths under paths.warehouse")
    paths: Paths = Paths()
    spark: SparkSection = SparkSection()
    data: Data = Data()
    model: ModelSection = ModelSection()
    training: Training = Training()
    retrieval: Retrieval = Retrieval()
    scoring: Scoring = Scoring()
    rules: Rules = Rules()
    audit: Audit = Audit()
    tables: TablesSection = TablesSection()
    online: Online = Online()
    digest: Digest = Digest()
    stream: Stream = Stream()
    prices: Prices = Prices()
    mlflow: MLflow = MLflow()

    @model_validator(mode="after")
    def _check_top_k(self) -> Config:
        if self.scoring.candidates == "all":
            if self.retrieval.mode not in ("exact", "auto"):
                raise ValueError(f"scoring.candidates = all searches nothing: set retrieval.mode = exact (found {self.retrieval.mode})")
        elif self.scoring.top_k > self.retrieval.n_candidates:
            raise ValueError(
                f"scoring.top_k = {self.scoring.top_k} is more than retrieval.n_candidates = {self.retrieval.n_candidates}: "
                "raise n_candidates or lower top_k"
            )
        return self

    def config_hash(self) -> str:
        """Hash the settings that change a night's rows (not where it runs or is logged) to 12 hex digits."""
        night = self.model_dump(
            include={"data": {"min_weight"}, "retrieval": True, "scoring": True, "rules": True, "tables": {"popular_items"}}, mode="json"
        )
        if self.retrieval.seen == "exclude":
            del night["retrieval"]["seen"]  # as releases without the setting: an upgrade alone makes no full night
        if self.scoring.engine == "auto":
            del night["scoring"]["engine"]  # likewise
        return hashlib.sha256(json.dumps(night, sort_keys=True).encode()).hexdigest()[:12]


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` (TOML), apply ``section.key=value`` overrides (value as TOML, else as text), and check all of it.

    Raises:
        ConfigError: unreadable file, unknown key (names the nearest), value out of range.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"config file {path} does not exist; pass --conf conf/local.toml or another TOML file") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"config file {path} is not readable TOML: {error}") from None
    for override in overrides:
        _apply_override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        origin = f"{path or 'defaults'}{' with --set' if overrides else ''}"
        raise ConfigError(f"{origin}: " + "; ".join(_explain_error(e) for e in error.errors())) from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise ConfigError(f"--set {override!r}: expected section.key=value, for example --set scoring.top_k=50")
    value: Any
    if key.startswith("spark.conf."):
        # Spark's own keys have dots, its values are text.
        parents, leaf, value = ["spark", "conf"], key.removeprefix("spark.conf."), text
    else:
        *parents, leaf = key.strip().split(".")
        value = _parse_toml_value(text)
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a section")
    node[leaf] = value


def _parse_toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


_SECRET_KEYS = ("mlflow.tracking_uri",)
"""Settings whose values may be secrets, and are not repeated in errors."""


def _explain_error(error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    name = ".".join(location)
    if error["type"] != "extra_forbidden":
        shown = "" if name in _SECRET_KEYS else f" (found {error['input']!r})"
        return f"{name}: {error['msg']}{shown}" if name else str(error["msg"])
    known_keys = _list_known_keys()
    near = difflib.get_close_matches(name, known_keys, n=1, cutoff=0.6)
    if not near:
        leaf_matches = [k for k in known_keys if k.rsplit(".", 1)[-1] == location[-1]]
        near = leaf_matches or difflib.get_close_matches(location[-1], [k.rsplit(".", 1)[-1] for k in known_keys], n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known_keys))}"
    return f"unknown key {name}; {hint}"


def _list_known_keys() -> list[str]:
    keys = list(Config.model_fields)
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += [f"{name}.{key}" for key in field.annotation.model_fields]
    return keys
