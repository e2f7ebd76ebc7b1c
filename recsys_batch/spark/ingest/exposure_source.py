"""Exposure logs and feedback of the online server as rows, one per request and item. Only ``read_exposure_files`` reads."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.errors import SourceError
from recsys_batch.schemas import TABLES, IdType, IdTypes, spark_ddl
from recsys_batch.sources import values
from recsys_batch.sources.source_format import DEFAULT_NULL_VALUES
from recsys_batch.sources.timestamps import parse_times, to_utc_dates
from recsys_batch.sources.typed_rows import FILE, POSITION, REASON, ROW, first_reason, mark_erased
from recsys_batch.sources.verdicts import ALREADY_PRESENT
from recsys_batch.spark.executors.source_tasks import TEXT_SCHEMA
from recsys_batch.spark.ingest.holdout import HELD_OUT
from recsys_batch.spark.ingest.segment_source import open_segments
from recsys_batch.spark.ingest.source_files import list_files, translate_spark_errors
from recsys_batch.tables.list_columns import flatten_lists, list_column, mask_ragged
from recsys_batch.tables.tombstones import Tombstones

EXPOSURE_KEY = ("request_id", "user_id", "item_id")
"""A request shows an item once. The key includes the user, as callers choose request ids and two may choose the same one."""

_FEEDBACK_KEY = ("request_id", "user_id", "item_id", "event_ts", "event_type")
_ITEM_COLUMNS = (
    *("item_id", "position", "score", "batch_score", "candidate_rank"),
    *("propensity", "ranker_position", "batch_position", "candidate_score"),
)
_REASON_OF_FLOAT = {"score": "bad_score", "batch_score": "bad_score", "candidate_score": "bad_score", "propensity": "bad_propensity"}
"""Why a row is refused that has an infinite value in such a column. NaN says that there is none, but a score there has to be."""
_LATER_ITEM_COLUMNS = {"propensity": "float", "ranker_position": "int", "batch_position": "int", "candidate_score": "float"}
_LATER_COLUMNS = ("lists", "candidates")
"""Columns that the files of older releases lack."""


@dataclass(frozen=True)
class LoggedRows:
    """Rows of a log's folder; None for a kind without files.

    Attributes:
        feedback: a row per event. exposures: a row per request and item. notes: sentences about files that are torn.
    """

    feedback: DataFrame | None
    exposures: DataFrame | None
    notes: list[str]


def read_exposure_files(spark: SparkSession, source: str) -> LoggedRows:
    """Read the segments of a log's folder, and the whole Parquet files of older releases, by the beginning of their names.

    Raises SourceError where the folder is missing or holds none of these files.
    """
    files = list_files(spark, source)
    segments = [opened for kind in (EXPOSURES, FEEDBACK) if (opened := open_segments(spark, source, files, kind)) is not None]
    parts = {kind: [one.read() for one in segments if one.kind == kind] for kind in (EXPOSURES, FEEDBACK)}
    for kind, frames in parts.items():
        if any(file.name.startswith(f"{kind}-") and file.name.endswith(".parquet") for file in files):
            frames.insert(0, _read_parquet(spark, source, kind))
    if not any(parts.values()):
        kinds = f"no {EXPOSURES}-* and no {FEEDBACK}-* file of a log"
        raise SourceError(f"{source} holds {kinds}, but {files[0].name}: is it the log's folder?")
    exposures = [_explode_items(frame) for frame in parts[EXPOSURES]]
    return LoggedRows(_union(parts[FEEDBACK]), _union(exposures), [note for one in segments for note in one.describe_torn()])


def choose_id_type(exposures: DataFrame, name: str) -> IdType:
    """Choose the type of an id where no table decides: BIGINT where every one is an integer."""
    if dict(exposures.dtypes)[name] != "string":
        return "BIGINT"
    return "BIGINT" if exposures.where(F.col(name).isNotNull() & F.expr(f"try_cast({name} AS BIGINT)").isNull()).isEmpty() else "STRING"


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


def _read_parquet(spark: SparkSession, source: str, kind: str) -> DataFrame:
    with translate_spark_errors(spark, source):
        # By the columns of all files: older releases logged fewer.
        return spark.read.options(recursiveFileLookup=True, pathGlobFilter=f"{kind}-*.parquet", mergeSchema=True).parquet(source)


def _union(frames: list[DataFrame]) -> DataFrame | None:
    """Append rows of segments, whose ids are text, to those of Parquet files; None where there are neither."""
    if len(frames) < 2:
        return frames[0] if frames else None
    parquet, segments = frames
    types = dict(segments.dtypes)
    return parquet.select(*(F.col(name).cast(types[name]).alias(name) for name in segments.columns)).unionByName(segments)


def _explode_items(exposures: DataFrame) -> DataFrame:
    """Explode requests into one row per shown item; a request without items gives no row, what an older release did not log is null."""
    exploded = exposures.withColumn("_item", F.explode("items")).drop("items")
    logged = exploded.select("_item.*").columns
    items = [
        (F.col(f"_item.{name}") if name in logged else F.lit(None).cast(_LATER_ITEM_COLUMNS[name])).alias(name) for name in _ITEM_COLUMNS
    ]
    others = [F.lit(None).cast("string").alias(name) for name in _LATER_COLUMNS if name not in exposures.columns]
    return exploded.select("*", *items, *others).drop("_item")


def _parse_batch(batch: pa.RecordBatch, ids: IdTypes, schema: pa.Schema) -> pa.Table:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    missing = {name: values.is_missing(columns[name], DEFAULT_NULL_VALUES) for name in ("request_id", "user_id", "item_id", "shown_at")}
    parsed = {name: values.parse_id_column(columns[name], kind) for name, kind in (("user_id", ids.user), ("item_id", ids.item))}
    shown_at = parse_times(columns["shown_at"], None)
    numbers = {name: values.parse_number(columns[name]) for name in _REASON_OF_FLOAT}
    numbers |= {name: pc.if_else(pc.is_nan(column), None, column) for name, column in numbers.items() if name != "score"}
    sessions = columns["session_item_ids"]
    session, offsets = flatten_lists(sessions)
    session = values.parse_id_column(session, ids.item)
    is_item = np.asarray(pc.is_valid(session))
    parsed |= {
        **numbers,
        "shown_at": shown_at,
        "shown_date": to_utc_dates(shown_at),
        "session_item_ids": pc.if_else(pc.is_null(sessions), None, list_column(session.drop_null(), mask_ragged(offsets, is_item))),
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
        *((pc.invert(pc.fill_null(pc.is_finite(numbers[name]), True)), reason) for name, reason in _REASON_OF_FLOAT.items()),
    ]
    rows = {**columns, **parsed, REASON: first_reason(reasons), FILE: pa.array(np.zeros(len(batch), dtype=np.int32))}
    return pa.table({field.name: rows[field.name].cast(field.type) for field in schema}, schema=schema)
