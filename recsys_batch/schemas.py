"""The table contract: every table's columns, types, comments, partitioning and constraints, named once.

Written in Arrow types, as Arrow is what executors, readers and the online side share; the Spark DDL is derived from them.
IDs are BIGINT or STRING as the source has them, so a schema is complete only for an ``IdTypes``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import pyarrow as pa

SCHEMA_VERSION = 1

IdType = Literal["BIGINT", "STRING"]
ID_ARROW: Mapping[str, pa.DataType] = {"BIGINT": pa.int64(), "STRING": pa.string()}
TIMESTAMP = pa.timestamp("us", tz="UTC")
STRING_MAP = pa.map_(pa.string(), pa.string())

STATUSES = ("RUNNING", "AUDITED", "PUBLISHED", "FAILED", "ROLLED_BACK")
SOURCES = ("model", "popular")
ALL_SEGMENTS = "all"
"""The segment of users without one, and of the popular list that stands in where a segment has none."""


@dataclass(frozen=True)
class IdTypes:
    """Types of the two id columns, the same in every table of a warehouse."""

    user: IdType
    item: IdType

    @classmethod
    def from_schema(cls, schema: pa.Schema) -> "IdTypes":
        """Read the types off a table that has both columns."""
        user, item = ("BIGINT" if pa.types.is_integer(schema.field(name).type) else "STRING" for name in ("user_id", "item_id"))
        return cls(cast("IdType", user), cast("IdType", item))

    @property
    def user_arrow(self) -> pa.DataType:
        return ID_ARROW[self.user]

    @property
    def item_arrow(self) -> pa.DataType:
        return ID_ARROW[self.item]


@dataclass(frozen=True)
class Column:
    """A column; ``type`` is an Arrow type, or "user_id" / "item_id" / "item_ids" / "candidates" where it depends on the ids."""

    name: str
    type: pa.DataType | Literal["user_id", "item_id", "item_ids", "candidates"]
    comment: str
    nullable: bool = True

    def arrow(self, ids: IdTypes) -> pa.Field:
        candidate = pa.struct([pa.field("item_id", ids.item_arrow), pa.field("score", pa.float32())])
        by_ids = {"user_id": ids.user_arrow, "item_id": ids.item_arrow, "item_ids": pa.list_(ids.item_arrow)}
        by_ids["candidates"] = pa.list_(candidate)
        return pa.field(self.name, by_ids[self.type] if isinstance(self.type, str) else self.type, self.nullable)


@dataclass(frozen=True)
class TableSpec:
    """A table of the contract.

    Attributes:
        partition_by: Hive-style partition columns.
        cluster_by: liquid clustering columns (never together with partition_by).
        sort_by: order of rows inside a file, so that a lookup touches few files.
        checks: CHECK constraints, name -> SQL.
        checkpoint_interval: commits between two checkpoints of the log, for a table that a stream appends to; None is Delta's 10.
    """

    name: str
    comment: str
    columns: tuple[Column, ...]
    partition_by: tuple[str, ...] = ()
    cluster_by: tuple[str, ...] = ()
    sort_by: tuple[str, ...] = ()
    checks: Mapping[str, str] = field(default_factory=dict)
    checkpoint_interval: int | None = None

    def arrow_schema(self, ids: IdTypes) -> pa.Schema:
        return pa.schema([column.arrow(ids) for column in self.columns])

    @property
    def key(self) -> str | None:
        """The column whose least and greatest value each file of a night's table records."""
        names = [column.name for column in self.columns if column.name not in self.partition_by]
        return next((name for name in ("user_id", "item_id", "run_id") if name in names), None)

    def stats_columns(self, ids: IdTypes) -> tuple[str, ...]:
        """List the columns with statistics per file: of a night's tables the key, of others those that Spark keeps both bounds of.

        Only these may be declared: deltalake's Arrow dataset takes a statistic that is not there for "no row fits" (delta-rs issue 3173).
        No float is among them: Spark writes -0.0, or 0.0, for both bounds where a file has both, and readers order the two (decision 0251).
        """
        if "run_id" in (column.name for column in self.columns):
            return (self.key,) if self.key else ()
        fields = [field for field in self.arrow_schema(ids) if field.name not in self.partition_by]
        without = (pa.types.is_nested, pa.types.is_boolean, pa.types.is_floating)
        return tuple(field.name for field in fields if not any(is_one(field.type) for is_one in without))


_RUN_ID = Column("run_id", pa.string(), "the night that wrote this row; join to runs", nullable=False)


def _user_id(comment: str = "user, as the source names it") -> Column:
    return Column("user_id", "user_id", comment, nullable=False)


def _item_id(comment: str = "item, as the source names it") -> Column:
    return Column("item_id", "item_id", comment, nullable=False)


_INTERACTIONS = (
    _user_id(),
    _item_id(),
    Column("event_ts", TIMESTAMP, "when it happened, UTC; null in every row when the source has no time"),
    Column("event_type", pa.string(), "what happened: rating, view, purchase, ..."),
    Column("weight", pa.float32(), "strength of the signal in the source's unit; <= data.min_weight means seen but not liked"),
    Column("event_date", pa.date32(), "UTC date of event_ts"),
)

_TOPK = (
    _RUN_ID,
    Column("run_date", pa.date32(), "the night's date", nullable=False),
    _user_id(),
    Column("rank", pa.int32(), "1 is best", nullable=False),
    _item_id(),
    Column("score", pa.float32(), "ranker score: comparable within a user and a model version; descending in rank", nullable=False),
    Column("candidate_rank", pa.int32(), "position in candidates, from 1", nullable=False),
    Column("source", pa.string(), "model, or popular for users without history", nullable=False),
    Column("model_version", pa.string(), "registry version of the model"),
    Column("generated_at", TIMESTAMP, "when the night began, UTC"),
)
_TOPK_CHECKS = {
    "rank_from_one": "rank >= 1",
    "candidate_rank_from_one": "candidate_rank >= 1",
    "score_is_finite": "NOT isnan(score) AND abs(score) < 3.0e38",
    "source_known": f"source IN {SOURCES}",
}

_SPECS = (
    TableSpec(
        "interactions", "who did what to which item; append-only", _INTERACTIONS, cluster_by=("event_date",), checkpoint_interval=100
    ),
    TableSpec("holdout", "interactions held out at ingest for evaluation; no model or night reads them", _INTERACTIONS),
    TableSpec(
        "items",
        "the catalogue",
        (
            _item_id(),
            Column("title", pa.string(), "display name"),
            Column("categories", pa.list_(pa.string()), "genres, departments, ... in the source's words"),
            Column("is_available", pa.bool_(), "false: never recommended", nullable=False),
            Column("first_seen_ts", TIMESTAMP, "first interaction or first listing, UTC"),
            Column("attributes", STRING_MAP, "further properties of the item"),
        ),
    ),
    TableSpec(
        "users",
        "what is known of users beside their interactions; optional",
        (
            _user_id(),
            Column("segment", pa.string(), "group whose popular list a user without history gets"),
            Column("attributes", STRING_MAP, "further properties of the user"),
        ),
    ),
    TableSpec(
        "rejected",
        "source rows that could not be used, each with its reason; nothing is dropped silently",
        (
            Column("ingest_id", pa.string(), "the ingest that refused the row"),
            Column("source", pa.string(), "file or folder the row came from"),
            Column("kind", pa.string(), "interactions, items, users or exposures"),
            Column("reason", pa.string(), "first reason that applied, a stable name"),
            Column("row", pa.string(), "the raw row as JSON"),
            Column("rejected_at", TIMESTAMP, "when the ingest ran, UTC"),
        ),
    ),
    TableSpec(
        "exposures",
        "what the online side showed: one row per request and item; no event by itself",
        (
            Column("request_id", pa.string(), "the answer that showed the item; join to feedback", nullable=False),
            _user_id("whom it was shown to"),
            _item_id("what was shown"),
            Column("position", pa.int32(), "place in the answer, 1 is on top", nullable=False),
            Column("score", pa.float32(), "what the answer was ordered by; comparable within an answer"),
            Column("batch_score", pa.float32(), "score that the night gave the item, where it did"),
            Column("candidate_rank", pa.int32(), "position in candidates, or in the request's list, from 1; null where the item was none"),
            Column("propensity", pa.float32(), "probability that the place showed the item; null without exploration"),
            Column("ranker_position", pa.int32(), "place that the ranker gave the item; null without exploration"),
            Column("batch_position", pa.int32(), "place in the published list for this request; null if not in it, or without exploration"),
            Column("candidate_score", pa.float32(), "score that the request gave the item; null where it gave none"),
            Column("source", pa.string(), "ranker, batch, popular, retrieval or request: what ordered the answer"),
            Column("degraded", pa.string(), "why nothing better did; null where nothing was amiss"),
            Column("snapshot_id", pa.string(), "the snapshot that answered"),
            Column("model_version", pa.string(), "registry version of the model"),
            Column("shown_at", TIMESTAMP, "when the answer was sent, UTC", nullable=False),
            Column("shown_date", pa.date32(), "UTC date of shown_at", nullable=False),
            Column("context_ts", TIMESTAMP, "the time that the request's context gave, UTC"),
            Column("device", pa.string(), "the device that the request's context gave"),
            Column("session_item_ids", "item_ids", "items of the session so far, as the request's context gave them"),
            Column("attributes", STRING_MAP, "whatever else the request's context held, values as text or JSON"),
            Column("lists", pa.string(), "night or live: where the user's lists were from; null in older logs"),
            Column("candidates", pa.string(), "retrieved, or request where the caller brought the list; null in older logs"),
        ),
        partition_by=("shown_date",),
        sort_by=("request_id", "position"),
        checks={"position_from_one": "position >= 1"},
    ),
    TableSpec(
        "feedback",
        "which answer an interaction came from: the events of feedback that name their request; all of them are in interactions, too",
        (Column("request_id", pa.string(), "the answer that showed the item; join to exposures", nullable=False), *_INTERACTIONS),
    ),
    TableSpec(
        "sent_log",
        "what digests sent to whom; append-only, one commit per digest",
        (
            Column("digest_id", pa.string(), "the digest: date, segment, slots and shard, or what its sender called it", nullable=False),
            Column("run_id", pa.string(), "the night that it was made from; join to runs", nullable=False),
            _user_id("whom it was sent to"),
            Column("slot", pa.int32(), "place in the digest, from 1", nullable=False),
            _item_id("what was sent"),
            Column("sent_date", pa.date32(), "run date of the night", nullable=False),
        ),
        partition_by=("sent_date",),
        sort_by=("user_id", "slot"),
    ),
    TableSpec(
        "user_embeddings",
        "one vector per user with a positive interaction",
        (
            _RUN_ID,
            _user_id(),
            Column("embedding", pa.list_(pa.float32()), "user tower output; inner product with an item's is the retrieval score"),
            Column("n_events", pa.int32(), "distinct items that the user has a positive interaction with, up to the night"),
        ),
        partition_by=("run_id",),
    ),
    TableSpec(
        "item_embeddings",
        "one vector per item of the catalogue",
        (
            _RUN_ID,
            _item_id(),
            Column("embedding", pa.list_(pa.float32()), "item tower output"),
            Column("n_events", pa.int32(), "distinct users with a positive interaction with the item, up to the night"),
        ),
        partition_by=("run_id",),
    ),
    TableSpec(
        "candidates",
        "retrieved items per user, best first: available only, and unseen unless retrieval.seen lets them come again",
        (
            _RUN_ID,
            _user_id(),
            Column("items", "candidates", "best first; score is the retrieval score (popularity for users without history)"),
        ),
        partition_by=("run_id",),
    ),
    TableSpec(
        "shortfalls",
        "users that got fewer than n_candidates, and why",
        (
            _RUN_ID,
            _user_id(),
            Column("n_items", pa.int32(), "candidates that the user did get"),
            Column(
                "reason",
                pa.string(),
                "catalogue_exhausted: every other available item was already seen and may not come again; "
                "eligible_exhausted: every other that the segment's rule allows; rules: of the candidates the rules left so few",
            ),
        ),
        partition_by=("run_id",),
    ),
    TableSpec(
        "topk",
        "the precomputed recommendations: one row per user and rank",
        _TOPK,
        partition_by=("run_date", "run_id"),
        sort_by=("user_id", "rank"),
        checks=_TOPK_CHECKS,
    ),
    TableSpec(
        "topk_live",
        "lists of a published run's users that the stream refreshed since: of a user's rows those of the greatest batch_id hold",
        (
            *_TOPK,
            Column("batch_id", pa.int64(), "version of interactions whose events the list knows; greater is newer", nullable=False),
            Column("events_through", TIMESTAMP, "newest event of the user that the list knows, UTC; null where none has a time"),
        ),
        partition_by=("run_id",),
        sort_by=("user_id", "rank"),
        checks=_TOPK_CHECKS,
    ),
    TableSpec(
        "popular",
        "the most popular available items per segment: the fallback",
        (
            _RUN_ID,
            Column("segment", pa.string(), "users.segment; 'all' is everybody", nullable=False),
            Column("rank", pa.int32(), "1 is most popular", nullable=False),
            _item_id(),
            Column("score", pa.float32(), "number of users of the segment with a positive interaction", nullable=False),
        ),
        partition_by=("run_id",),
        checks={"rank_from_one": "rank >= 1", "score_not_negative": "score >= 0"},
    ),
    TableSpec(
        "runs",
        "manifest of nights; append-only: the newest PUBLISHED row by published_at is what readers see",
        (
            _RUN_ID,
            Column("run_date", pa.date32(), "the night's date", nullable=False),
            Column("attempt", pa.int32(), "which start of this run wrote the row, from 1", nullable=False),
            Column("status", pa.string(), "RUNNING, AUDITED, PUBLISHED, FAILED or ROLLED_BACK", nullable=False),
            Column("published_at", TIMESTAMP, "when it became visible, UTC; PUBLISHED rows only"),
            Column("table_versions", pa.map_(pa.string(), pa.int64()), "Delta version that each finished step committed"),
            Column("input_versions", pa.map_(pa.string(), pa.int64()), "Delta version of each input, pinned when the run began"),
            Column("model_version", pa.string(), "registry version of the model"),
            Column("code_version", pa.string(), "release of this package"),
            Column("config_hash", pa.string(), "hash of the settings that change rows"),
            Column("n_users", pa.int64(), "users with a list"),
            Column("n_rows", pa.int64(), "rows in topk"),
            Column("metrics", pa.map_(pa.string(), pa.float64()), "seconds and rows per step, measured recall, audit values"),
            Column("mlflow_run_id", pa.string(), "MLflow run with plots and driver metrics"),
            Column("schema_version", pa.int32(), "version of this contract", nullable=False),
        ),
        checks={"status_known": f"status IN {STATUSES}"},
    ),
)

TABLES: Mapping[str, TableSpec] = {spec.name: spec for spec in _SPECS}


def spark_type(arrow: pa.DataType) -> str:
    """Name an Arrow type of the contract in Spark SQL.

    Raises:
        TypeError: a type outside the contract.
    """
    if pa.types.is_list(arrow):
        return f"ARRAY<{spark_type(arrow.value_type)}>"
    if pa.types.is_map(arrow):
        return f"MAP<{spark_type(arrow.key_type)},{spark_type(arrow.item_type)}>"
    if pa.types.is_struct(arrow):
        return "STRUCT<" + ",".join(f"{f.name}:{spark_type(f.type)}" for f in arrow) + ">"
    names = {
        pa.int64(): "BIGINT",
        pa.int32(): "INT",
        pa.float32(): "FLOAT",
        pa.float64(): "DOUBLE",
        pa.string(): "STRING",
        pa.binary(): "BINARY",
        pa.bool_(): "BOOLEAN",
        pa.date32(): "DATE",
        TIMESTAMP: "TIMESTAMP",
    }
    if arrow not in names:
        raise TypeError(f"the table contract has no Arrow type {arrow}")
    return names[arrow]


def spark_ddl(schema: pa.Schema) -> str:
    """Write a schema as ``name TYPE, ...``, for mapInArrow and createDataFrame."""
    return ", ".join(f"`{f.name}` {spark_type(f.type)}" for f in schema)
