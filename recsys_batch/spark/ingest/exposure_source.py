"""Exposure logs and feedback of the online server as rows, one per request and item. Only ``read_exposure_files`` reads."""

import datetime as dt
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.errors import SourceError
from recsys_batch.schemas import TABLES, IdTypes, spark_ddl
from recsys_batch.sources import values
from recsys_batch.sources.file_tasks import SourceFile
from recsys_batch.sources.source_format import DEFAULT_NULL_VALUES
from recsys_batch.sources.timestamps import parse_times, to_utc_dates
from recsys_batch.sources.typed_rows import FILE, POSITION, REASON, ROW, first_reason, mark_erased
from recsys_batch.sources.verdicts import ALREADY_PRESENT
from recsys_batch.spark.executors.source_tasks import TEXT_SCHEMA
from recsys_batch.spark.ingest.holdout import HELD_OUT
from recsys_batch.spark.ingest.source_files import list_files, translate_spark_errors
from recsys_batch.tables.list_columns import flatten_lists, list_column
from recsys_batch.tables.tombstones import Tombstones

EXPOSURE_KEY = ("request_id", "user_id", "item_id")
"""A request shows an item once. The key includes the user, as callers choose request ids and two may choose the same one."""

_FEEDBACK_KEY = ("request_id", "user_id", "item_id", "event_ts", "event_type")
_ITEM_COLUMNS = ("item_id", "position", "score", "batch_score", "candidate_rank", "propensity", "ranker_position", "batch_position")
_LATER_COLUMNS = {"propensity": "float", "ranker_position": "int", "batch_position": "int", "lists": "string"}
"""Columns that the files of older releases lack."""


def read_exposure_files(spark: SparkSession, source: str) -> tuple[DataFrame | None, DataFrame | None]:
    """Read the complete feedback and exposure files of a folder, by the beginning of their names; None for a kind without files.

    Raises SourceError where the folder is missing or holds none of these files.
    """
    files = list_files(spark, source)
    exposures, feedback = (_read_kind(spark, source, files, kind) for kind in (EXPOSURES, FEEDBACK))
    if exposures is None and feedback is None:
        raise SourceError(
            f"{source} holds no {EXPOSURES}-*.parquet and no {FEEDBACK}-*.parquet, but {files[0].name}: is it the log's folder?"
        )
    return feedback, None if exposures is None else _explode_items(exposures)


def parse_exposures(raw: DataFrame, ids: IdTypes, tombstones: Tombstones | None = None) -> DataFrame:
    """Parse exposures into the table's columns with ``_row`` and ``_reason``; duplicates are marked later."""
    schema = parsed_exposure_schema(ids)
    spelt = raw.withColumns({ROW: F.to_json(F.struct(*raw.columns)), POSITION: F.monotonically_increasing_id()})

    def parse(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows, texts = _parse_batch(batch, ids, schema), batch[ROW]
            yield from mark_erased(rows, texts.take, tombstones).to_batches()

    return spelt.mapInArrow(parse, spark_ddl(schema))


def parsed_exposure_schema(ids: IdTypes) -> pa.Schema:
    """Make the schema of parsed exposures."""
    fields = [*TABLES["exposures"].arrow_schema(ids), pa.field(REASON, pa.string()), *TEXT_SCHEMA]
    # Of a table's rows only the key is known.
    return pa.schema([field.with_nullable(True) for field in fields])


def exposures_in_span(raw: DataFrame) -> Column:
    """Build the filter of exposures that may equal raw ones; a request repeated at midnight is on two dates."""
    first, last = cast("Any", raw.agg(F.min("shown_at"), F.max("shown_at")).head())
    if first is None:
        return F.lit(False)
    day = dt.timedelta(days=1)
    return F.col("shown_date").between(F.lit(first.date() - day), F.lit(last.date() + day))


def select_new_feedback(validated: DataFrame, existing: DataFrame | None) -> DataFrame:
    """Select the usable events that name their request and that the feedback table lacks, with its columns.

    Events that the interactions table has already are included: an ingest may have died before it wrote feedback.

    Args:
        validated: interactions with request_id, ``_reason`` and ``_held_out``. existing: the feedback table; None where there is none yet.
    """
    usable = (F.col(REASON).isNull() | (F.col(REASON) == ALREADY_PRESENT)) & ~F.col(HELD_OUT)
    rows = validated.where(usable & F.col("request_id").isNotNull()).select(*(column.name for column in TABLES["feedback"].columns))
    return rows if existing is None else rows.join(existing.select(*_FEEDBACK_KEY), list(_FEEDBACK_KEY), "left_anti")


def _read_kind(spark: SparkSession, source: str, files: list[SourceFile], kind: str) -> DataFrame | None:
    names = [file.location for file in files if file.name.startswith(f"{kind}-") and file.name.endswith(".parquet")]
    if not names:
        return None
    with translate_spark_errors(spark, source):
        # By the columns of all files: older releases logged fewer.
        return spark.read.options(recursiveFileLookup=True, pathGlobFilter=f"{kind}-*.parquet", mergeSchema=True).parquet(source)


def _explode_items(exposures: DataFrame) -> DataFrame:
    """Explode requests into one row per shown item; a request without items gives no row, what an older release did not log is null."""
    exploded = exposures.withColumn("_item", F.explode("items")).drop("items")
    logged = exploded.select("_item.*").columns
    items = [(F.col(f"_item.{name}") if name in logged else F.lit(None).cast(_LATER_COLUMNS[name])).alias(name) for name in _ITEM_COLUMNS]
    others = [] if "lists" in exposures.columns else [F.lit(None).cast(_LATER_COLUMNS["lists"]).alias("lists")]
    return exploded.select("*", *items, *others).drop("_item")


def _parse_batch(batch: pa.RecordBatch, ids: IdTypes, schema: pa.Schema) -> pa.Table:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    missing = {name: values.is_missing(columns[name], DEFAULT_NULL_VALUES) for name in ("request_id", "user_id", "item_id", "shown_at")}
    parsed = {name: values.parse_id_column(columns[name], kind) for name, kind in (("user_id", ids.user), ("item_id", ids.item))}
    shown_at, score = parse_times(columns["shown_at"], None), values.parse_number(columns["score"])
    sessions = columns["session_item_ids"]
    session, offsets = flatten_lists(sessions)
    parsed |= {
        "shown_at": shown_at,
        "shown_date": to_utc_dates(shown_at),
        "session_item_ids": pc.if_else(pc.is_null(sessions), None, list_column(values.parse_id_column(session, ids.item), offsets)),
    }
    reasons = [
        (missing["request_id"], "null_request_id"),
        (missing["user_id"], "null_user_id"),
        (missing["item_id"], "null_item_id"),
        (pc.is_null(parsed["user_id"]), "bad_user_id"),
        (pc.is_null(parsed["item_id"]), "bad_item_id"),
        (missing["shown_at"], "null_shown_at"),
        (pc.is_null(shown_at), "bad_shown_at"),
        (pc.fill_null(pc.less(columns["position"], 1), True), "bad_position"),
        (pc.and_(pc.is_valid(score), pc.invert(pc.fill_null(pc.is_finite(score), True))), "bad_score"),
    ]
    rows = {**columns, **parsed, REASON: first_reason(reasons), FILE: pa.array(np.zeros(len(batch), dtype=np.int32))}
    return pa.table({field.name: rows[field.name].cast(field.type) for field in schema}, schema=schema)
