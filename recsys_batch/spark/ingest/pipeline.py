"""Run an ingest: read and validate sources, then write each of their rows once, however often the same files are ingested."""

import datetime as dt
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from recsys_batch.config import Config
from recsys_batch.errors import SourceError
from recsys_batch.schemas import TABLES, IdType, IdTypes
from recsys_batch.sources import verdicts
from recsys_batch.sources.typed_rows import FILE, MAX_FUTURE_DAYS, POSITION, REASON, ROW, ParseSettings
from recsys_batch.sources.verdicts import ALREADY_PRESENT, EVENT_KEY, NOT_KEPT
from recsys_batch.spark.executors.source_tasks import located_schema
from recsys_batch.spark.ingest import exposure_source, notes, validation
from recsys_batch.spark.ingest.holdout import HELD_OUT, choose_split, mark_holdout
from recsys_batch.spark.ingest.merge import add_first_seen, derive_items, events_in_span, merge_with_table, select_new_rejections
from recsys_batch.spark.ingest.opened_source import OpenedSource
from recsys_batch.spark.ingest.rejections import HARMLESS, HARMLESS_IN_LOGS, check_rejected_share, spell_rejected
from recsys_batch.spark.ingest.source_files import translate_spark_errors
from recsys_batch.spark.ingest.sources import IngestRequest, OpenedSources, open_sources
from recsys_batch.spark.ingest.summary import IngestSummary, KindSummary
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.tables.tombstones import read_tombstones

ITEMS_DECLARED = "recsys_batch.items_declared"
"""Property of the items table: "true" once an items file was ingested; interactions with other items are then rejected."""

_ROWS_PER_FILE = 1_000_000
_ROWS_PER_SHUFFLE_TASK = 500_000
_BYTES_PER_ROW = 8  # at least, of a table's Parquet
_UNKNOWN_ROWS = 4_000_000  # taken for exposures, which are not counted beforehand
_TABLES_OF_KIND = {"interactions": ("interactions", "holdout", "items"), "items": ("items",), "users": ("users",)}


def run_ingest(spark: SparkSession, config: Config, request: IngestRequest) -> IngestSummary:
    """Ingest a request's rows into interactions, holdout, items, users, exposures, feedback and rejected; idempotent.

    Raises SourceError where a file cannot be used at all, or too many of its rows cannot; no table was changed then.
    """
    opened = open_sources(spark, request)
    with _sized_for(spark, _bound_rows(spark, config, opened)):
        run = _IngestRun(spark, config, request, opened)
        try:
            return run.run()
        finally:
            run.release()


def read_interactions(spark: SparkSession, config: Config, request: IngestRequest) -> pa.Table:
    """Read the usable rows (user_id, item_id, weight) of files in one of the ingest formats without writing any table.

    Raises SourceError where a file cannot be used or there is no usable row.
    """
    ids = WarehouseTables(spark, config).require_ids()
    sources = open_sources(spark, request).by_kind.get("interactions")
    if not sources:
        raise SourceError("there are no interactions to read")
    with translate_spark_errors(spark, sources[0].path):
        parsed = (source.parse(ParseSettings("interactions", source.how, ids, source.clocks)) for source in sources)
        typed = reduce(DataFrame.unionByName, parsed)
        usable = typed.where(F.col(REASON).isNull()).select("user_id", "item_id", "weight").toArrow()
    if usable.num_rows == 0:
        raise SourceError(f"{sources[0].path} has no usable row: ids are {ids.user} (user) and {ids.item} (item) in this warehouse")
    return usable


def _bound_rows(spark: SparkSession, config: Config, opened: OpenedSources) -> int:
    """Bound the rows that meet in an ingest: those of the sources, and those of the tables that they are held against."""
    tables = WarehouseTables(spark, config)
    n_rows = sum(source.survey.n_rows for sources in opened.by_kind.values() for source in sources)
    names = {name for kind in opened.by_kind for name in _TABLES_OF_KIND[kind]} | ({"exposures"} if opened.exposures is not None else set())
    n_bytes = sum(tables.n_bytes(name) for name in names if tables.exists(name))
    return n_rows + n_bytes // _BYTES_PER_ROW + (0 if opened.exposures is None else _UNKNOWN_ROWS)


@contextmanager
def _sized_for(spark: SparkSession, n_rows: int) -> Iterator[None]:
    """Set the session up for some number of rows.

    Spark's 200 shuffle partitions make a small ingest wait for tasks that do nothing, and to plan its few tasks again while it runs
    takes longer than they do.
    """
    n_tasks = -(-n_rows // _ROWS_PER_SHUFFLE_TASK)
    settings = {"spark.sql.shuffle.partitions": str(max(n_tasks, 1 if n_tasks <= 1 else spark.sparkContext.defaultParallelism))}
    if n_tasks <= 1:
        # Rows of the driver go to tasks as Arrow, not one by one in a plan.
        settings |= {"spark.sql.adaptive.enabled": "false", "spark.sql.execution.arrow.localRelationThreshold": "1MB"}
    before = {name: spark.conf.get(name, None) for name in settings}
    for name, value in settings.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, earlier in before.items():
            spark.conf.unset(name) if earlier is None else spark.conf.set(name, earlier)


class _IngestRun:
    """Carries out one call of ``run_ingest``; its steps share the tables, the id types and the summary."""

    def __init__(self, spark: SparkSession, config: Config, request: IngestRequest, opened: OpenedSources) -> None:
        self._spark, self._config, self._request = spark, config, request
        self._sources, self._exposures, self._log_notes = opened.by_kind, opened.exposures, opened.notes
        self._tables = WarehouseTables(spark, config)
        self._ids = IdTypes(self._id_type("user_id", ("interactions", "users")), self._id_type("item_id", ("interactions", "items")))
        self._now, self._tombstones = dt.datetime.now(dt.UTC), read_tombstones(config.paths.warehouse)
        self._summary = IngestSummary(self._ids, f"{self._now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}")
        self._validated: dict[str, DataFrame] = {}
        self._table_snapshots: dict[str, DataFrame | None] = {}
        self._were_items_declared = self._tables.exists("items") and self._tables.property("items", ITEMS_DECLARED) == "true"
        self._are_items_declared = "items" in self._sources or self._were_items_declared

    def run(self) -> IngestSummary:
        """Validate every kind, then write, rejected rows last: an ingest that dies at any point is simply run again."""
        for kind, key in (("items", "item_id"), ("users", "user_id")):
            if kind in self._sources:
                typed = self._mark_repeated_keys(kind, key)
                columns = {ours for source in self._sources[kind] for ours in notes.list_our_columns(source)}
                self._record_verdicts(kind, merge_with_table(typed, self._read_snapshot(kind), columns))
        if "interactions" in self._sources:
            self._record_verdicts("interactions", self._validate_interactions())
        if self._exposures is not None:
            self._record_verdicts("exposures", self._validate_exposures(self._exposures))
        self._summary.notes += [*self._log_notes, *notes.describe_sources(self._sources, self._ids)]
        self._write_items()
        if self._summary.kinds.get("users", KindSummary()).accepted:
            self._upsert("users", self._usable_rows("users"))
        if "interactions" in self._sources:
            self._write_interactions()
        self._write_exposures_and_feedback()
        self._write_rejected()
        self._summary.notes += notes.describe_outcome(self._summary, self._request, self._sources)
        if self._request.holdout and not self._tables.exists("holdout"):
            self._summary.notes.append(notes.NOTHING_HELD_OUT)
        return self._summary

    def release(self) -> None:
        """Unpersist the validated rows."""
        for df in self._validated.values():
            df.unpersist()

    def _id_type(self, name: str, tables: tuple[str, ...]) -> IdType:
        """Choose an id type: that of the tables, else the one that the files need; interactions come first."""
        for table in (*tables, "exposures"):
            if self._tables.exists(table):
                return "STRING" if dict(self._tables.read(table).dtypes)[name] == "string" else "BIGINT"
        for kind in tables:
            needed = {source.survey.id_type(name) for source in self._sources.get(kind, ())} - {None}
            if needed:
                return "STRING" if "STRING" in needed else "BIGINT"
        return "BIGINT" if self._exposures is None else exposure_source.choose_id_type(self._exposures, name)

    def _read_snapshot(self, name: str) -> DataFrame | None:
        """Read a table at the version of this run's first read, so that derived rows stay the same while the run writes."""
        if name not in self._table_snapshots:
            exists = self._tables.exists(name)
            self._table_snapshots[name] = self._tables.read(name, self._tables.version(name)) if exists else None
        return self._table_snapshots[name]

    def _validate_interactions(self) -> DataFrame:
        data, typed = self._config.data, self._mark_duplicates()
        if self._are_items_declared:
            item_rows = [self._usable_rows("items", ALREADY_PRESENT)] if "items" in self._sources else []
            item_rows += [table for table in [self._read_snapshot("items")] if table is not None]
            known = reduce(DataFrame.unionByName, (items.select("item_id") for items in item_rows)).distinct()
            typed = validation.mark_unknown_items(typed, known)
        if not self._request.holdout:
            return mark_holdout(typed, None, data.min_weight, data.session_gap)
        typed = typed.persist(StorageLevel.MEMORY_AND_DISK)
        self._validated["interactions before the split"] = typed
        split = choose_split(typed, self._request.holdout, self._request.split, data.min_weight, data.session_gap)
        self._summary.notes.append(split.describe())
        return mark_holdout(typed, split, data.min_weight, data.session_gap)

    def _mark_repeated_keys(self, kind: str, key: str) -> DataFrame:
        """Parse a kind's rows, and mark those of a key of which another says the newest."""
        sources, settings = self._sources[kind], self._parse_settings(kind)
        if all(source.is_small for source in sources):
            rows = pa.concat_tables(map(OpenedSource.parse_on_driver, sources, settings)).combine_chunks()
            return self._spark.createDataFrame(verdicts.mark_repeated_keys(rows, key)).coalesce(1)
        typed = reduce(DataFrame.unionByName, map(OpenedSource.parse, sources, settings))
        return validation.mark_repeated_keys_in_source(typed, key, located_schema(kind, self._ids))

    def _mark_duplicates(self) -> DataFrame:
        """Parse interactions, and mark those that repeat others or are in the tables."""
        sources, settings = self._sources["interactions"], self._parse_settings("interactions")
        snapshots = [table for name in ("interactions", "holdout") if (table := self._read_snapshot(name)) is not None]
        if not snapshots and all(source.is_small for source in sources):
            rows = pa.concat_tables(map(OpenedSource.parse_on_driver, sources, settings)).combine_chunks()
            return self._spark.createDataFrame(verdicts.mark_duplicates(rows)).coalesce(1)
        is_near = reduce(lambda one, other: one | other, map(_may_be_present, sources))
        tables = [table.where(is_near).select(*EVENT_KEY) for table in snapshots]
        typed = reduce(DataFrame.unionByName, map(OpenedSource.parse, sources, settings))
        existing = reduce(DataFrame.unionByName, tables) if tables else None
        return validation.mark_duplicates_in_source(typed, existing, located_schema("interactions", self._ids))

    def _parse_settings(self, kind: str) -> list[ParseSettings]:
        """Make the settings of each source of a kind."""
        newest = self._now + dt.timedelta(days=MAX_FUTURE_DAYS) if kind == "interactions" else None
        return [ParseSettings(kind, source.how, self._ids, source.clocks, newest, self._tombstones) for source in self._sources[kind]]

    def _validate_exposures(self, exposures: DataFrame) -> DataFrame:
        existing = self._read_snapshot("exposures")
        known = None if existing is None else existing.where(exposure_source.exposures_in_span(exposures))
        typed = exposure_source.parse_exposures(exposures, self._ids, self._tombstones)
        schema = exposure_source.parsed_exposure_schema(self._ids)
        return validation.mark_duplicates_in_source(typed, known, schema, exposure_source.EXPOSURE_KEY)

    def _record_verdicts(self, kind: str, validated: DataFrame) -> None:
        """Persist validated rows, count them in one pass, and refuse a kind of which too many rows were rejected."""
        validated = validated if HELD_OUT in validated.columns else validated.withColumn(HELD_OUT, F.lit(False))
        self._validated[kind] = validated.persist(StorageLevel.MEMORY_AND_DISK)
        sources = self._sources.get(kind, [])
        with translate_spark_errors(self._spark, sources[0].path if sources else str(self._request.sources[0])):
            examples = self._summary.count_rows(kind, self._validated[kind])
        if sources:
            harmless = HARMLESS_IN_LOGS if self._request.format.kind == "exposures" else HARMLESS
            check_rejected_share(kind, self._summary.kinds[kind], examples, sources, self._request.max_rejected_share, harmless)

    def _usable_rows(self, kind: str, *reasons: str) -> DataFrame:
        """Select the usable rows of a kind, and rows whose reason is among ``reasons``."""
        usable = F.col(REASON).isNull()
        return self._validated[kind].where(usable | F.col(REASON).isin(*reasons) if reasons else usable)

    def _write_items(self) -> None:
        events = self._usable_rows("interactions") if "interactions" in self._sources else None
        if "items" in self._sources:
            known = self._usable_rows("items", ALREADY_PRESENT).select(F.explode("categories").alias("category"))
            self._summary.n_categories = known.distinct().count()
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
            self._summary.n_users, self._summary.n_items = (accepted.select(key).distinct().count() for key in ("user_id", "item_id"))

    def _write_exposures_and_feedback(self) -> None:
        if self._exposures is not None:
            order = ("shown_date", *TABLES["exposures"].sort_by)
            self._append_counted("exposures", self._usable_rows("exposures"), order)
        if self._request.format.kind == "exposures" and "interactions" in self._sources:
            feedback = exposure_source.select_new_feedback(self._validated["interactions"], self._read_snapshot("feedback"))
            self._append_counted("feedback", feedback, ("event_date", "request_id"))

    def _append_counted(self, name: str, rows: DataFrame, order: Sequence[str]) -> None:
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

    def _upsert(self, name: str, rows: DataFrame) -> None:
        rows = rows.select(*_columns(name))
        if self._tables.ensure(name, self._ids):
            self._tables.append(name, rows, self._metadata(name))
        else:
            self._tables.upsert(name, rows, _columns(name)[0], self._metadata(name))

    def _write_rejected(self) -> None:
        """Append the rejected rows that no earlier ingest of the same source recorded."""
        created = self._tables.ensure("rejected", self._ids)
        parts: list[DataFrame] = []
        for kind, summary in self._summary.kinds.items():
            n_rejected = sum(n for reason, n in summary.rejected.items() if reason not in NOT_KEPT)
            if n_rejected:
                is_rejected = F.col(REASON).isNotNull() & ~F.col(REASON).isin(*NOT_KEPT)
                rows = self._validated[kind].where(is_rejected).select(FILE, POSITION, REASON, ROW)
                named = spell_rejected(rows, n_rejected, self._sources[kind]) if kind in self._sources else self._of_exposures(rows)
                parts.append(named.select("source", F.lit(kind).alias("kind"), F.col(REASON).alias("reason"), F.col(ROW).alias("row")))
        if not parts:
            return
        rows = reduce(DataFrame.unionByName, parts)
        if not created:
            paths = [row[0] for row in rows.select("source").distinct().collect()]
            recorded = self._tables.read("rejected").where(F.col("source").isin(paths))
            rows = select_new_rejections(rows, recorded)
        stamps = {"ingest_id": F.lit(self._summary.ingest_id), "rejected_at": F.lit(self._now)}
        rows = rows.withColumns(stamps).select(*_columns("rejected")).persist()
        if not rows.isEmpty():
            self._tables.append("rejected", rows, self._metadata("rejected"))
        rows.unpersist()

    def _of_exposures(self, rows: DataFrame) -> DataFrame:
        return rows.withColumn("source", F.lit(self._request.sources[0]))

    def _metadata(self, table: str) -> Mapping[str, Any]:
        return {"ingest_id": self._summary.ingest_id, "table": table}


def _may_be_present(source: OpenedSource) -> Column:
    """Build the filter of a table's events that may equal some of a source; any may where its dates are not known yet."""
    clock = source.clocks.get("event_ts")
    if clock is None:
        return events_in_span(None)
    span = source.survey.span("event_ts", clock)
    return F.lit(True) if span is None else events_in_span((span[0].date(), span[1].date()))


def _columns(table: str) -> list[str]:
    return [column.name for column in TABLES[table].columns]
