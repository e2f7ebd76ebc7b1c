"""Run an ingest: read and validate a source, then write each of its rows once, however often the same files are ingested."""

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, cast

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from recsys_batch.config import Config
from recsys_batch.errors import SourceError
from recsys_batch.schemas import TABLES, IdType, IdTypes
from recsys_batch.spark.ingest import exposure_source, validation
from recsys_batch.spark.ingest.erased_users import mark_erased_users
from recsys_batch.spark.ingest.merge import add_first_seen, derive_items, events_in_span, merge_with_table, select_new_rejections
from recsys_batch.spark.ingest.raw_source import RAW_ROW, RawSource
from recsys_batch.spark.ingest.source_files import translate_spark_errors
from recsys_batch.spark.ingest.sources import IngestRequest, read_source
from recsys_batch.spark.ingest.summary import IngestSummary, KindSummary
from recsys_batch.spark.ingest.validation import ALREADY_PRESENT, EVENT_KEY, HELD_OUT, REASON, SourceProfile
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.tables.tombstones import ERASED, read_tombstones

ITEMS_DECLARED = "recsys_batch.items_declared"
"""Property of the items table: "true" once an items file was ingested; interactions with other items are then rejected."""

_ROWS_PER_FILE = 1_000_000


def run_ingest(spark: SparkSession, config: Config, request: IngestRequest) -> IngestSummary:
    """Ingest a request's rows into interactions, holdout, items, users, exposures, feedback and rejected; idempotent.

    Raises SourceError where a file cannot be used at all; no table was changed then.
    """
    raw = read_source(spark, request)
    profiles = {kind: _profile_rows(spark, df, path) for kind, (df, path) in _rows_by_kind(raw, request).items()}
    run = _IngestRun(spark, config, request, raw, profiles)
    try:
        return run.run()
    finally:
        run.release()


def read_interactions(spark: SparkSession, config: Config, request: IngestRequest) -> pa.Table:
    """Read the usable rows (user_id, item_id, weight) of a file in one of the ingest formats without writing any table.

    Raises SourceError where the file cannot be used or has no usable row.
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


def _rows_by_kind(raw: RawSource, request: IngestRequest) -> dict[str, tuple[DataFrame, str]]:
    """Map each kind of the request to its rows and their path."""
    pairs = {
        "interactions": (raw.interactions, request.source),
        "items": (raw.items, request.items),
        "users": (raw.users, request.users),
        "exposures": (raw.exposures, request.source),
    }
    return {kind: (df, str(path or request.source)) for kind, (df, path) in pairs.items() if df is not None}


def _profile_rows(spark: SparkSession, df: DataFrame, path: str) -> SourceProfile:
    with translate_spark_errors(spark, path):
        profile = validation.profile_source(df, "shown_at" if "shown_at" in df.columns else "event_ts")
    if profile.n_rows == 0:
        raise SourceError(f"{path} has no rows: expected at least one below the header")
    return profile


class _IngestRun:
    """Carries out one call of ``run_ingest``; its steps share the tables, the id types and the summary."""

    def __init__(
        self, spark: SparkSession, config: Config, request: IngestRequest, raw: RawSource, profiles: Mapping[str, SourceProfile]
    ) -> None:
        self._spark, self._config, self._request, self._profiles = spark, config, request, profiles
        self._sources = _rows_by_kind(raw, request)
        self._tables = WarehouseTables(spark, config)
        users, items = ("interactions", "users", "exposures"), ("interactions", "items", "exposures")
        self._ids = IdTypes(self._id_type("user_id", users), self._id_type("item_id", items))
        self._now = dt.datetime.now(dt.UTC)
        self._summary = IngestSummary(self._ids, f"{self._now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}")
        self._validated: dict[str, DataFrame] = {}
        self._table_snapshots: dict[str, DataFrame | None] = {}
        self._were_items_declared = self._tables.exists("items") and self._tables.property("items", ITEMS_DECLARED) == "true"
        self._are_items_declared = "items" in self._sources or self._were_items_declared

    def run(self) -> IngestSummary:
        """Validate every kind, then write, rejected rows last: an ingest that dies at any point is simply run again."""
        for kind, read in (("items", validation.parse_items), ("users", validation.parse_users)):
            if kind in self._sources:
                typed = read(self._sources[kind][0], self._ids)
                self._record_verdicts(kind, merge_with_table(typed, self._read_snapshot(kind), set(self._sources[kind][0].columns)))
        if "interactions" in self._sources:
            self._record_verdicts("interactions", self._validate_interactions())
        if "exposures" in self._sources:
            self._record_verdicts("exposures", self._validate_exposures())
        self._write_items()
        if self._summary.kinds.get("users", KindSummary()).accepted:
            self._upsert("users", self._usable_rows("users"))
        if "interactions" in self._sources:
            self._write_interactions()
            self._note_missing_columns()
        self._write_exposures_and_feedback()
        self._write_rejected()
        return self._summary

    def release(self) -> None:
        """Unpersist the validated rows."""
        for df in self._validated.values():
            df.unpersist()

    def _id_type(self, name: str, tables: tuple[str, ...]) -> IdType:
        """Choose an id type: that of the tables, else the one that the files need; interactions come first."""
        for table in tables:
            if self._tables.exists(table):
                return "STRING" if dict(self._tables.read(table).dtypes)[name] == "string" else "BIGINT"
        needed = [getattr(self._profiles[kind], name) for kind in tables if kind in self._profiles]
        return next((id_type for id_type in needed if id_type is not None), "BIGINT")

    def _read_snapshot(self, name: str) -> DataFrame | None:
        """Read a table at the version of this run's first read, so that derived rows stay the same while the run writes."""
        if name not in self._table_snapshots:
            exists = self._tables.exists(name)
            self._table_snapshots[name] = self._tables.read(name, self._tables.version(name)) if exists else None
        return self._table_snapshots[name]

    def _validate_interactions(self) -> DataFrame:
        raw, profile = self._sources["interactions"][0], self._profiles["interactions"]
        typed = validation.parse_interactions(raw, self._ids)
        snapshots = [self._read_snapshot(name) for name in ("interactions", "holdout")]
        tables = [table.where(events_in_span(profile)).select(*EVENT_KEY) for table in snapshots if table is not None]
        typed = validation.mark_duplicates(typed, reduce(DataFrame.unionByName, tables) if tables else None)
        if self._are_items_declared:
            item_rows = [self._usable_rows("items", ALREADY_PRESENT)] if "items" in self._sources else []
            item_rows += [table for table in [self._read_snapshot("items")] if table is not None]
            known = reduce(DataFrame.unionByName, (items.select("item_id") for items in item_rows)).distinct()
            typed = validation.mark_unknown_items(typed, known)
        return validation.mark_holdout(typed, self._request.holdout, self._config.data.min_weight)

    def _validate_exposures(self) -> DataFrame:
        raw, existing = self._sources["exposures"][0], self._read_snapshot("exposures")
        known = None if existing is None else existing.where(exposure_source.exposures_in_span(self._profiles["exposures"]))
        return validation.mark_duplicates(exposure_source.parse_exposures(raw, self._ids), known, exposure_source.EXPOSURE_KEY)

    def _record_verdicts(self, kind: str, validated: DataFrame) -> None:
        """Persist validated rows and count them in one pass."""
        validated = mark_erased_users(validated, read_tombstones(self._config.paths.warehouse))
        validated = validated if HELD_OUT in validated.columns else validated.withColumn(HELD_OUT, F.lit(False))
        self._validated[kind] = validated.persist(StorageLevel.MEMORY_AND_DISK)
        summary = self._summary.count_rows(kind, self._validated[kind])
        if not (summary.accepted + summary.held_out + summary.already_present):
            self._summary.notes.append(f"no row of {self._sources[kind][1]} could be used: its {kind} were all rejected")

    def _usable_rows(self, kind: str, *reasons: str) -> DataFrame:
        """Select the usable rows of a kind, and rows whose reason is among ``reasons``."""
        usable = F.col(REASON).isNull()
        return self._validated[kind].where(usable | F.col(REASON).isin(*reasons) if reasons else usable)

    def _write_items(self) -> None:
        events = self._usable_rows("interactions") if "interactions" in self._sources else None
        if "items" in self._sources:
            if self._summary.kinds["items"].accepted:
                self._upsert("items", add_first_seen(self._usable_rows("items"), events))
            if not self._were_items_declared and self._tables.exists("items"):
                self._tables.set_property("items", ITEMS_DECLARED, "true")
        elif events is not None:
            derive = not self._are_items_declared
            derived = derive_items(events, self._read_snapshot("items"), derive=derive).persist()
            n_derived = derived.count()
            if n_derived:
                self._upsert("items", derived)
            if derive:
                self._summary.notes.append(f"no items file: the catalogue is derived from interactions ({n_derived} new items)")
            derived.unpersist()

    def _write_interactions(self) -> None:
        summary, usable = self._summary.kinds["interactions"], self._usable_rows("interactions")
        accepted = usable.where(~F.col(HELD_OUT))
        # Held-out rows first: a night that reads between the two commits lacks events, but never trains on held-out ones.
        for name, n_rows, rows in (("holdout", summary.held_out, usable.where(HELD_OUT)), ("interactions", summary.accepted, accepted)):
            self._append_sorted(name, rows.select(*_columns(name)), n_rows, ("event_date", "user_id"))
        if summary.accepted:
            counts = accepted.agg(F.count_distinct("user_id"), F.count_distinct("item_id")).head()
            self._summary.n_users, self._summary.n_items = cast("Any", counts)

    def _write_exposures_and_feedback(self) -> None:
        outputs: list[tuple[str, DataFrame, tuple[str, ...]]] = []
        if "exposures" in self._sources:
            outputs.append(("exposures", self._usable_rows("exposures"), ("shown_date", *TABLES["exposures"].sort_by)))
        if "interactions" in self._sources and "request_id" in self._validated["interactions"].columns:
            feedback = exposure_source.select_new_feedback(self._validated["interactions"], self._read_snapshot("feedback"))
            outputs.append(("feedback", feedback, ("event_date", "request_id")))
        for name, rows, order in outputs:
            rows = rows.select(*_columns(name)).persist()
            self._append_sorted(name, rows, rows.count(), order)
            rows.unpersist()

    def _append_sorted(self, name: str, rows: DataFrame, n_rows: int, order: Sequence[str]) -> None:
        """Append rows in files by ``order``, so that a reader of some days skips other files; one file where rows are few."""
        if n_rows:
            self._tables.ensure(name, self._ids)
            n_files = -(-n_rows // _ROWS_PER_FILE)
            partitions = rows.repartitionByRange(n_files, *order) if n_files > 1 else rows.coalesce(1)
            self._tables.append(name, partitions.sortWithinPartitions(*order), self._metadata(name))

    def _note_missing_columns(self) -> None:
        source_columns, notes = self._sources["interactions"][0].columns, self._summary.notes
        if "event_ts" not in source_columns:
            notes.append(
                "event_ts is missing: the order of events is unknown, so validation and hold-out are per user at random instead of by time"
            )
        if "weight" not in source_columns:
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
        is_rejected = F.col(REASON).isNotNull() & ~F.col(REASON).isin(ALREADY_PRESENT, ERASED)
        sources = {kind: self._sources[kind][1] for kind in kinds}
        columns = (F.col(REASON).alias("reason"), F.col(RAW_ROW).alias("row"))
        rejected = (
            self._validated[kind].where(is_rejected).select(F.lit(source).alias("source"), F.lit(kind).alias("kind"), *columns)
            for kind, source in sources.items()
        )
        rows = reduce(DataFrame.unionByName, rejected)
        if not created:
            rows = select_new_rejections(rows, self._tables.read("rejected").where(F.col("source").isin(*sources.values())))
        stamps = {"ingest_id": F.lit(self._summary.ingest_id), "rejected_at": F.lit(self._now)}
        rows = rows.withColumns(stamps).select(*_columns("rejected")).persist()
        if not rows.isEmpty():
            self._tables.append("rejected", rows, self._metadata("rejected"))
        rows.unpersist()

    def _metadata(self, table: str) -> Mapping[str, Any]:
        return {"ingest_id": self._summary.ingest_id, "table": table}


def _columns(table: str) -> list[str]:
    return [column.name for column in TABLES[table].columns]
