"""Ingest: read, validate, and bring rows into the tables once, however often the same files are given."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, cast

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from recsys_batch.config import Config
from recsys_batch.errors import SourceError
from recsys_batch.schemas import TABLES, IdType, IdTypes
from recsys_batch.spark.ingest import exposure_source, validation
from recsys_batch.spark.ingest.merge import add_first_seen, derive_items, events_in_span, merge_with_table, select_new_rejections
from recsys_batch.spark.ingest.raw_source import RAW_ROW, RawSource
from recsys_batch.spark.ingest.sources import IngestRequest, read_source
from recsys_batch.spark.ingest.spark_errors import translate_spark_errors
from recsys_batch.spark.ingest.summary import IngestSummary, KindSummary
from recsys_batch.spark.ingest.validation import EVENT_KEY, HELD_OUT, PRESENT, REASON, SourceProfile
from recsys_batch.spark.tables import WarehouseTables

DECLARED = "recsys_batch.items_declared"
"""Property of the items table: "true" once an items file was ingested; interactions with other items are then rejected."""

_ROWS_PER_FILE = 1_000_000


def run_ingest(spark: SparkSession, config: Config, request: IngestRequest) -> IngestSummary:
    """Bring the request's rows into interactions, holdout, items, users, exposures, feedback and rejected. The same call again changes
    nothing.

    Raises:
        SourceError: a file cannot be used at all; then no table was touched.
    """
    raw = read_source(spark, request)
    surveys = {kind: _surveyed(spark, df, path) for kind, (df, path) in _by_kind(raw, request).items()}
    run = _Ingest(spark, config, request, raw, surveys)
    try:
        return run.run()
    finally:
        run.release()


def read_interactions(spark: SparkSession, config: Config, request: IngestRequest) -> pa.Table:
    """The usable rows of a file in ingest's formats, not written anywhere: user_id, item_id, weight.

    Raises:
        SourceError: the file cannot be used, or no row of it can.
    """
    ids = WarehouseTables(spark, config).require_ids()
    raw = read_source(spark, request).interactions
    if raw is None:
        raise SourceError("there are no interactions to read")
    with translate_spark_errors(spark, str(request.source)):
        typed = validation.parse_interactions(raw, ids)
        usable = typed.where(F.col(REASON).isNull()).select("user_id", "item_id", "weight").toArrow()
    if usable.num_rows == 0:
        raise SourceError(f"{request.source} has no usable row: ids are {ids.user} (user) and {ids.item} (item) in this warehouse")
    return usable


def _by_kind(raw: RawSource, request: IngestRequest) -> dict[str, tuple[DataFrame, str]]:
    """Kind -> rows and the path they come from, for the kinds that the request has."""
    pairs = {
        "interactions": (raw.interactions, request.source),
        "items": (raw.items, request.items),
        "users": (raw.users, request.users),
        "exposures": (raw.exposures, request.source),
    }
    return {kind: (df, str(path or request.source)) for kind, (df, path) in pairs.items() if df is not None}


def _surveyed(spark: SparkSession, df: DataFrame, path: str) -> SourceProfile:
    with translate_spark_errors(spark, path):
        found = validation.profile_source(df, "shown_at" if "shown_at" in df.columns else "event_ts")
    if found.n_rows == 0:
        raise SourceError(f"{path} has no rows: expected at least one below the header")
    return found


class _Ingest:
    """One run of ``ingest``: the steps share the tables, the id types and the summary."""

    def __init__(
        self, spark: SparkSession, config: Config, request: IngestRequest, raw: RawSource, surveys: Mapping[str, SourceProfile]
    ) -> None:
        self._spark, self._config, self._request, self._surveys = spark, config, request, surveys
        self._sources = _by_kind(raw, request)
        self._tables = WarehouseTables(spark, config)
        users, items = ("interactions", "users", "exposures"), ("interactions", "items", "exposures")
        self._ids = IdTypes(self._id_type("user_id", users), self._id_type("item_id", items))
        self._now = dt.datetime.now(dt.UTC)
        self._summary = IngestSummary(self._ids, f"{self._now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}")
        self._verdicts: dict[str, DataFrame] = {}
        self._pinned: dict[str, DataFrame | None] = {}
        self._was_declared = self._tables.exists("items") and self._tables.property("items", DECLARED) == "true"

    def run(self) -> IngestSummary:
        """Verdicts first, then the writes, interactions last but for rejected: an ingest that dies anywhere is simply run again."""
        for kind, read in (("items", validation.parse_items), ("users", validation.parse_users)):
            if kind in self._sources:
                typed = read(self._sources[kind][0], self._ids)
                self._judge(kind, merge_with_table(typed, self._read(kind), set(self._sources[kind][0].columns)))
        if "interactions" in self._sources:
            self._judge("interactions", self._judged_interactions())
        if "exposures" in self._sources:
            self._judge("exposures", self._judged_exposures())
        self._write_items()
        if self._summary.kinds.get("users", KindSummary()).accepted:
            self._upsert("users", self._rows("users"))
        if "interactions" in self._sources:
            self._write_interactions()
            self._say_what_is_missing()
        self._write_logged()
        self._write_rejected()
        return self._summary

    def release(self) -> None:
        """Free what was kept in memory."""
        for df in self._verdicts.values():
            df.unpersist()

    def _id_type(self, name: str, tables: tuple[str, ...]) -> IdType:
        """The type that the tables have, else the one that the files need; interactions decide where there are any."""
        for table in tables:
            if self._tables.exists(table):
                return "STRING" if dict(self._tables.read(table).dtypes)[name] == "string" else "BIGINT"
        needed = [getattr(self._surveys[kind], name) for kind in tables if kind in self._surveys]
        return next((found for found in needed if found is not None), "BIGINT")

    def _read(self, name: str) -> DataFrame | None:
        """The table as it was when this run first looked, so that what is derived from it stays the same while the run writes."""
        if name not in self._pinned:
            there = self._tables.exists(name)
            self._pinned[name] = self._tables.read(name, self._tables.version(name)) if there else None
        return self._pinned[name]

    def _judged_interactions(self) -> DataFrame:
        raw, seen = self._sources["interactions"][0], self._surveys["interactions"]
        typed = validation.parse_interactions(raw, self._ids)
        tables = [
            table.where(events_in_span(seen)).select(*EVENT_KEY)
            for table in map(self._read, ("interactions", "holdout"))
            if table is not None
        ]
        typed = validation.mark_duplicates(typed, reduce(DataFrame.unionByName, tables) if tables else None)
        if self._declared():
            lists = [self._rows("items", PRESENT)] if "items" in self._sources else []
            lists += [table for table in [self._read("items")] if table is not None]
            known = reduce(DataFrame.unionByName, (items.select("item_id") for items in lists)).distinct()
            typed = validation.mark_unknown_items(typed, known)
        return validation.mark_holdout(typed, self._request.holdout, self._config.data.min_weight)

    def _judged_exposures(self) -> DataFrame:
        raw, there = self._sources["exposures"][0], self._read("exposures")
        known = None if there is None else there.where(exposure_source.exposures_in_span(self._surveys["exposures"]))
        return validation.mark_duplicates(exposure_source.parse_exposures(raw, self._ids), known, exposure_source.EXPOSURE_KEY)

    def _declared(self) -> bool:
        return "items" in self._sources or self._was_declared

    def _judge(self, kind: str, marked: DataFrame) -> None:
        """Keep the verdicts, and count them in one pass."""
        marked = marked if HELD_OUT in marked.columns else marked.withColumn(HELD_OUT, F.lit(False))
        self._verdicts[kind] = marked.persist(StorageLevel.MEMORY_AND_DISK)
        summary = self._summary.count(kind, self._verdicts[kind])
        if not (summary.accepted + summary.held_out + summary.already_present):
            self._summary.notes.append(f"no row of {self._sources[kind][1]} could be used: its {kind} were all rejected")

    def _rows(self, kind: str, *further: str) -> DataFrame:
        """Usable rows of a kind, and those whose reason is among ``further``."""
        usable = F.col(REASON).isNull()
        return self._verdicts[kind].where(usable | F.col(REASON).isin(*further) if further else usable)

    def _write_items(self) -> None:
        events = self._rows("interactions") if "interactions" in self._sources else None
        if "items" in self._sources:
            if self._summary.kinds["items"].accepted:
                self._upsert("items", add_first_seen(self._rows("items"), events))
            if not self._was_declared and self._tables.exists("items"):
                self._tables.set_property("items", DECLARED, "true")
        elif events is not None:
            derive = not self._declared()
            listed = derive_items(events, self._read("items"), derive=derive).persist()
            n_listed = listed.count()
            if n_listed:
                self._upsert("items", listed)
            if derive:
                self._summary.notes.append(f"no items file: the catalogue is derived from interactions ({n_listed} new items)")
            listed.unpersist()

    def _write_interactions(self) -> None:
        summary, usable = self._summary.kinds["interactions"], self._rows("interactions")
        # The held-out rows first: a night that reads between the two commits sees too little, never the answer.
        for name, n_rows, part in (
            ("holdout", summary.held_out, usable.where(HELD_OUT)),
            ("interactions", summary.accepted, usable.where(~F.col(HELD_OUT))),
        ):
            if n_rows:
                self._tables.ensure(name, self._ids)
                self._tables.append(name, _ordered(part.select(*_columns(name)), n_rows, ("event_date", "user_id")), self._metadata(name))
        if summary.accepted:
            accepted = usable.where(~F.col(HELD_OUT))
            found = accepted.agg(F.count_distinct("user_id"), F.count_distinct("item_id")).head()
            self._summary.n_users, self._summary.n_items = cast("Any", found)

    def _write_logged(self) -> None:
        """What was shown, and which feedback answers it."""
        parts: list[tuple[str, DataFrame, tuple[str, ...]]] = []
        if "exposures" in self._sources:
            parts.append(("exposures", self._rows("exposures"), ("shown_date", *TABLES["exposures"].sort_by)))
        if "interactions" in self._sources and "request_id" in self._verdicts["interactions"].columns:
            answers = exposure_source.select_new_feedback(self._verdicts["interactions"], self._read("feedback"))
            parts.append(("feedback", answers, ("event_date", "request_id")))
        for name, rows, order in parts:
            rows = rows.select(*_columns(name)).persist()
            n_rows = rows.count()
            if n_rows:
                self._tables.ensure(name, self._ids)
                self._tables.append(name, _ordered(rows, n_rows, order), self._metadata(name))
            rows.unpersist()

    def _say_what_is_missing(self) -> None:
        there, notes = self._sources["interactions"][0].columns, self._summary.notes
        if "event_ts" not in there:
            notes.append(
                "event_ts is missing: the order of events is unknown, so validation and hold-out are per user at random instead of by time"
            )
        if "weight" not in there:
            notes.append("weight is missing: every interaction weighs 1")
        if self._request.holdout and not self._tables.exists("holdout"):
            notes.append(
                f"nothing was held out: no user has {validation.MIN_POSITIVES_TO_HOLD_OUT} positive interactions or more, "
                "or the rows were ingested before without a hold-out and stay where they are"
            )

    def _upsert(self, name: str, rows: DataFrame) -> None:
        rows = rows.select(*_columns(name))
        if self._tables.ensure(name, self._ids):
            self._tables.append(name, rows, self._metadata(name))
        else:
            self._tables.upsert(name, rows, _columns(name)[0], self._metadata(name))

    def _write_rejected(self) -> None:
        """Append the rejected rows that no earlier ingest of the same source recorded."""
        created = self._tables.ensure("rejected", self._ids)
        kinds = [kind for kind, summary in self._summary.kinds.items() if summary.rejected]
        if not kinds:
            return
        bad = F.col(REASON).isNotNull() & (F.col(REASON) != PRESENT)
        rows = reduce(DataFrame.unionByName, (self._verdicts[kind].where(bad).select(*self._as_rejected(kind)) for kind in kinds))
        if not created:
            sources = [self._sources[kind][1] for kind in kinds]
            rows = select_new_rejections(rows, self._tables.read("rejected").where(F.col("source").isin(sources)))
        stamps = {"ingest_id": F.lit(self._summary.ingest_id), "rejected_at": F.lit(self._now)}
        rows = rows.withColumns(stamps).select(*_columns("rejected")).persist()
        if not rows.isEmpty():
            self._tables.append("rejected", rows, self._metadata("rejected"))
        rows.unpersist()

    def _as_rejected(self, kind: str) -> list[Column]:
        named = {"source": F.lit(self._sources[kind][1]), "kind": F.lit(kind), "reason": F.col(REASON), "row": F.col(RAW_ROW)}
        return [column.alias(name) for name, column in named.items()]

    def _metadata(self, table: str) -> Mapping[str, Any]:
        return {"ingest_id": self._summary.ingest_id, "table": table}


def _columns(table: str) -> list[str]:
    return [column.name for column in TABLES[table].columns]


def _ordered(rows: DataFrame, n_rows: int, order: Sequence[str]) -> DataFrame:
    """Files of neighbouring rows, so that a reader of some days skips the others' files; one file where there is little."""
    n_files = -(-n_rows // _ROWS_PER_FILE)
    parts = rows.repartitionByRange(n_files, *order) if n_files > 1 else rows.coalesce(1)
    return parts.sortWithinPartitions(*order)
