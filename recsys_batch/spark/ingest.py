"""Ingest: read, validate, and bring rows into the tables once, however often the same files are given."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any, cast

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from recsys_batch.config import Config
from recsys_batch.errors import SourceError
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.sources import RAW_ROW, IngestRequest, RawSource, read_source
from recsys_batch.spark.tables import Tables
from recsys_batch.spark.validate import EVENT_KEY, REASON, id_type, mark_repeated, typed_interactions, typed_items, typed_users

DECLARED = "recsys_batch.items_declared"
"""Property of the items table: "true" once an items file was ingested; interactions with other items are then rejected."""

PRESENT = "already_present"
MIN_POSITIVES_TO_HOLD_OUT = 5


@dataclass
class KindSummary:
    """Rows of one kind: read == accepted + held_out + already_present + the sum of rejected."""

    read: int = 0
    accepted: int = 0
    held_out: int = 0
    already_present: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass
class IngestSummary:
    """What an ingest did, by kind (interactions, items, users), and what it wants said aloud."""

    ids: IdTypes
    kinds: dict[str, KindSummary] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    first_event: dt.datetime | None = None
    last_event: dt.datetime | None = None


def ingest(spark: SparkSession, config: Config, request: IngestRequest) -> IngestSummary:
    """Bring the request's rows into interactions, holdout, items, users and rejected. The same call again changes nothing.

    Raises:
        SourceError: a file cannot be used at all.
    """
    return _Ingest(spark, config, request).run()


def read_interactions(spark: SparkSession, config: Config, request: IngestRequest) -> pa.Table:
    """The usable rows of a file in ingest's formats, not written anywhere: user_id, item_id, weight.

    Raises:
        SourceError: the file cannot be used, or no row of it can.
    """
    ids = Tables(spark, config).require_ids()
    raw = read_source(spark, request).interactions
    if raw is None:
        raise SourceError("there are no interactions to read")
    usable = typed_interactions(raw, ids).where(F.col(REASON).isNull()).select("user_id", "item_id", "weight").toArrow()
    if usable.num_rows == 0:
        raise SourceError(f"{request.source} has no usable row: ids are {ids.user} (user) and {ids.item} (item) in this warehouse")
    return usable


class _Ingest:
    """One run of ``ingest``: the steps share the tables, the id types and the summary."""

    def __init__(self, spark: SparkSession, config: Config, request: IngestRequest) -> None:
        self._spark, self._config, self._request = spark, config, request
        self._tables = Tables(spark, config)
        self._raw: RawSource = read_source(spark, request)
        self._ids = self._tables.ids() or self._detect_ids()
        self._summary = IngestSummary(self._ids)
        # The same request names the same rows, so that ingesting again replaces its rejected rows instead of adding them again.
        self._ingest_id = hashlib.sha256(json.dumps(asdict(request), sort_keys=True).encode()).hexdigest()[:16]
        self._rejected: list[DataFrame] = []
        self._new: set[str] = set()

    def run(self) -> IngestSummary:
        names = ("interactions", "items", "rejected", *(["users"] if self._raw.users is not None else []))
        self._new = {name for name in names if self._tables.ensure(name, self._ids)}
        events = None
        if self._raw.interactions is not None:
            events = typed_interactions(self._raw.interactions, self._ids).persist(StorageLevel.MEMORY_AND_DISK)
        if self._raw.items is not None:
            self._bring_items(self._raw.items, events)
        if self._raw.users is not None:
            self._bring("users", typed_users(self._raw.users, self._ids), "user_id", ["segment", "attributes"])
        if events is not None:
            self._bring_interactions(events)
        self._write_rejected()
        return self._summary

    def _detect_ids(self) -> IdTypes:
        """From the first file that has the column; interactions decide where there are any."""
        raw = self._raw
        users = next((df for df in (raw.interactions, raw.users) if df is not None), None)
        items = next((df for df in (raw.interactions, raw.items) if df is not None), None)
        return IdTypes(id_type(users, "user_id") if users is not None else "BIGINT", id_type(items, "item_id") if items is not None else "BIGINT")

    def _bring_items(self, raw: DataFrame, events: DataFrame | None) -> None:
        typed = typed_items(raw, self._ids)
        if events is not None:
            first = events.where(F.col(REASON).isNull()).groupBy("item_id").agg(F.min("event_ts").alias("_first"))
            typed = typed.join(first, "item_id", "left").withColumn("first_seen_ts", F.coalesce("first_seen_ts", "_first")).drop("_first")
        self._bring("items", typed, "item_id", ["title", "categories", "is_available", "attributes"])
        if self._tables.property("items", DECLARED) != "true":
            self._tables.set_property("items", DECLARED, "true")

    def _bring(self, name: str, typed: DataFrame, key: str, compared: list[str]) -> None:
        """Upsert the usable rows that differ from the table's in ``compared``; what the table knows of first_seen_ts stays."""
        columns = [column.name for column in TABLES[name].columns]
        if name not in self._new:
            old = self._tables.read(name)
            first = F.col("first_seen_ts") if "first_seen_ts" in columns else F.lit(None).cast("timestamp")
            typed = typed.join(old.select(key, _fingerprint(compared).alias("_print"), first.alias("_old_first")), key, "left")
            same = F.col(REASON).isNull() & F.col("_print").eqNullSafe(_fingerprint(compared))
            typed = typed.withColumn(REASON, F.when(same, F.lit(PRESENT)).otherwise(F.col(REASON)))
            if "first_seen_ts" in columns:
                typed = typed.withColumn("first_seen_ts", F.coalesce("_old_first", "first_seen_ts"))
        marked = typed.persist(StorageLevel.MEMORY_AND_DISK)
        summary = self._count(name, marked)
        usable = marked.where(F.col(REASON).isNull()).select(*columns)
        if summary.accepted and name in self._new:
            self._tables.append(name, usable.coalesce(1), self._metadata(name))
        elif summary.accepted:
            self._tables.upsert(name, usable, key, self._metadata(name))
        self._keep_rejected(name, marked)

    def _bring_interactions(self, events: DataFrame) -> None:
        there = cast("DataFrame", self._raw.interactions).columns
        if "event_ts" not in there:
            self._summary.notes.append(
                "event_ts is missing: the order of events is unknown, so validation and hold-out are per user at random instead of by time"
            )
        if "weight" not in there:
            self._summary.notes.append("weight is missing: every interaction weighs 1")
        typed = mark_repeated(events, EVENT_KEY, "duplicate")
        declared = self._tables.property("items", DECLARED) == "true"
        if declared:
            typed = self._reject_unknown_items(typed)
        typed = self._mark_present(typed)
        typed = _mark_holdout(typed, self._request.holdout, self._config.data.min_weight).persist(StorageLevel.MEMORY_AND_DISK)
        summary = self._count("interactions", typed)
        if summary.read == 0:
            raise SourceError(f"{self._request.source} has no rows: at least one interaction is expected")
        columns = [column.name for column in TABLES["interactions"].columns]
        usable = typed.where(F.col(REASON).isNull())
        if not declared:
            self._derive_items(usable)
        # The held-out rows first: a night that reads between the two commits sees too little, never the answer.
        if summary.held_out:
            self._tables.ensure("holdout", self._ids)
            self._tables.append("holdout", usable.where("_held_out").select(*columns), self._metadata("holdout"))
        if summary.accepted:
            accepted = usable.where("NOT _held_out").select(*columns)
            self._tables.append("interactions", _by_date(accepted, self._spark), self._metadata("interactions"))
        self._keep_rejected("interactions", typed)

    def _reject_unknown_items(self, typed: DataFrame) -> DataFrame:
        known = self._tables.read("items").select("item_id", F.lit(True).alias("_known"))
        unknown = F.col(REASON).isNull() & F.col("_known").isNull()
        marked = typed.join(F.broadcast(known), "item_id", "left")
        return marked.withColumn(REASON, F.when(unknown, F.lit("unknown_item")).otherwise(F.col(REASON))).drop("_known")

    def _mark_present(self, typed: DataFrame) -> DataFrame:
        if "interactions" in self._new:
            return typed
        names = [name for name in ("interactions", "holdout") if self._tables.exists(name)]
        there = reduce(DataFrame.unionByName, (self._tables.read(name).select(*EVENT_KEY) for name in names))
        there = there.distinct().select(*(F.col(name).alias(f"_{name}") for name in EVENT_KEY), F.lit(True).alias("_present"))
        same: Column = reduce(Column.__and__, (F.col(name).eqNullSafe(F.col(f"_{name}")) for name in EVENT_KEY))
        marked = typed.join(there, same, "left")
        present = F.col(REASON).isNull() & F.col("_present").isNotNull()
        columns = [name for name in typed.columns if name != REASON]
        return marked.select(*columns, F.when(present, F.lit(PRESENT)).otherwise(F.col(REASON)).alias(REASON))

    def _derive_items(self, usable: DataFrame) -> None:
        known = self._tables.read("items").select("item_id")
        new = usable.groupBy("item_id").agg(F.min("event_ts").alias("first_seen_ts")).join(known, "item_id", "left_anti")
        derived = new.select(
            "item_id",
            F.lit(None).cast("string").alias("title"),
            F.array().cast("array<string>").alias("categories"),
            F.lit(True).alias("is_available"),
            "first_seen_ts",
            F.create_map().cast("map<string,string>").alias("attributes"),
        ).persist()
        n_new = derived.count()
        if n_new:
            self._tables.append("items", derived, self._metadata("items"))
        self._summary.notes.append(f"no items file: the catalogue is derived from interactions ({n_new} new items)")

    def _count(self, kind: str, marked: DataFrame) -> KindSummary:
        """One pass over the rows: counts by verdict, and the span of events."""
        held = F.col("_held_out") if "_held_out" in marked.columns else F.lit(False)
        stamps = F.col("event_ts") if "event_ts" in marked.columns else F.lit(None).cast("timestamp")
        groups = marked.groupBy(REASON, held.alias("held")).agg(F.count(F.lit(1)).alias("n"), F.min(stamps).alias("low"), F.max(stamps).alias("high"))
        summary = KindSummary()
        for row in groups.collect():
            summary.read += row.n
            if row[REASON] is None:
                summary.held_out += row.n if row.held else 0
                summary.accepted += 0 if row.held else row.n
            elif row[REASON] == PRESENT:
                summary.already_present += row.n
            else:
                summary.rejected[row[REASON]] = row.n
            if kind == "interactions" and row[REASON] in (None, PRESENT) and row.low is not None:
                self._summary.first_event = min(filter(None, (self._summary.first_event, row.low)))
                self._summary.last_event = max(filter(None, (self._summary.last_event, row.high)))
        self._summary.kinds[kind] = summary
        return summary

    def _keep_rejected(self, kind: str, marked: DataFrame) -> None:
        if self._summary.kinds[kind].rejected:
            wrong = marked.where(F.col(REASON).isNotNull() & (F.col(REASON) != PRESENT))
            self._rejected.append(wrong.select(F.lit(kind).alias("kind"), F.col(REASON).alias("reason"), F.col(RAW_ROW).alias("row")))

    def _write_rejected(self) -> None:
        if not self._rejected:
            return
        rows = reduce(DataFrame.unionByName, self._rejected)
        source = self._request.source or self._request.items or self._request.users
        head = [F.lit(self._ingest_id).alias("ingest_id"), F.lit(source).alias("source")]
        stamped = rows.select(*head, "kind", "reason", "row", F.current_timestamp().alias("rejected_at"))
        self._tables.replace_slice("rejected", stamped, f"ingest_id = '{self._ingest_id}'", self._metadata("rejected"))

    def _metadata(self, table: str) -> Mapping[str, Any]:
        return {"ingest_id": self._ingest_id, "table": table}


def _mark_holdout(typed: DataFrame, share: float, min_weight: float) -> DataFrame:
    """Adds ``_held_out``: the newest ``share`` of each user's usable positives; by a hash of the item where there is no time."""
    if not share:
        return typed.withColumn("_held_out", F.lit(False))
    positive = F.col(REASON).isNull() & (F.col("weight") > min_weight)
    window = Window.partitionBy("user_id", positive)
    newest_first = window.orderBy(F.col("event_ts").desc_nulls_last(), F.xxhash64("item_id", F.lit(1)), "item_id")
    numbered = typed.withColumn("_n", F.count(F.lit(1)).over(window)).withColumn("_place", F.row_number().over(newest_first))
    held = positive & (F.col("_n") >= MIN_POSITIVES_TO_HOLD_OUT) & (F.col("_place") <= F.floor(F.col("_n") * share))
    return numbered.withColumn("_held_out", held).drop("_n", "_place")


def _by_date(accepted: DataFrame, spark: SparkSession) -> DataFrame:
    """Files of neighbouring dates, so that a reader of some days skips the others' files."""
    n = max(spark.sparkContext.defaultParallelism, 1)
    return accepted.repartitionByRange(n, "event_date", "user_id").sortWithinPartitions("event_date", "user_id")


def _fingerprint(columns: list[str]) -> Column:
    """A hash of the values; maps have no equality in SQL, their sorted entries have."""
    parts = [F.to_json(F.array_sort(F.map_entries(name))) if name == "attributes" else F.col(name) for name in columns]
    return F.xxhash64(*(F.coalesce(F.to_json(F.struct(part.alias("v"))), F.lit("")) for part in parts))


