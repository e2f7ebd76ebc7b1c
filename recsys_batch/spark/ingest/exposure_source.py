"""Exposure logs and feedback of the online server as rows, one per request and item. Only ``read_exposure_files`` reads."""

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.errors import SourceError
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.ingest import parsing
from recsys_batch.spark.ingest.raw_source import RAW_ROW, RawSource, add_raw_row
from recsys_batch.spark.ingest.source_files import SourceFile, list_files, translate_spark_errors
from recsys_batch.spark.ingest.validation import ALREADY_PRESENT, HELD_OUT, REASON, SourceProfile, coalesce_reasons, key_reasons

EXPOSURE_KEY = ("request_id", "user_id", "item_id")
"""A request shows an item once. The key includes the user, as callers choose request ids and two may choose the same one."""

_FEEDBACK_KEY = ("request_id", "user_id", "item_id", "event_ts", "event_type")
_ITEM_COLUMNS = ("item_id", "position", "score", "batch_score", "candidate_rank", "propensity", "ranker_position", "batch_position")
_LATER_COLUMNS = {"propensity": "float", "ranker_position": "int", "batch_position": "int", "lists": "string"}
"""Columns that the files of older releases lack."""


def read_exposure_files(spark: SparkSession, source: str) -> RawSource:
    """Read the complete exposure and feedback files of a folder, by the beginning of their names.

    Raises SourceError where the folder is missing or holds none of these files.
    """
    files = list_files(spark, source)
    exposures, feedback = (_read_kind(spark, source, files, kind) for kind in (EXPOSURES, FEEDBACK))
    if exposures is None and feedback is None:
        raise SourceError(
            f"{source} holds no {EXPOSURES}-*.parquet and no {FEEDBACK}-*.parquet, but {files[0].base_name}: is it the log's folder?"
        )
    return RawSource(
        interactions=None if feedback is None else add_raw_row(feedback),
        exposures=None if exposures is None else add_raw_row(_explode_items(exposures)),
    )


def parse_exposures(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Parse exposures into the table's columns with ``_row`` and ``_reason``; duplicates are marked later."""
    score, shown_at = parsing.parse_number(raw, "score"), parsing.parse_timestamp(raw, "shown_at")
    malformed, *bad_ids = key_reasons(raw, user_id=ids.user, item_id=ids.item)
    reasons = [
        malformed,
        (parsing.is_blank("request_id"), "null_request_id"),
        *bad_ids,
        (F.col("shown_at").isNull(), "null_shown_at"),
        (shown_at.isNull(), "bad_shown_at"),
        (F.coalesce(F.col("position") < 1, F.lit(True)), "bad_position"),
        (F.isnan(score) | (F.abs(score) == float("inf")), "bad_score"),
    ]
    parsed = {
        "user_id": parsing.parse_id_column(raw, "user_id", ids.user),
        "item_id": parsing.parse_id_column(raw, "item_id", ids.item),
        "shown_at": shown_at,
        "shown_date": F.to_date(shown_at),
        "session_item_ids": F.col("session_item_ids").cast(f"array<{ids.item}>"),
    }
    columns = [parsed.get(column.name, F.col(column.name)).alias(column.name) for column in TABLES["exposures"].columns]
    return raw.select(*columns, RAW_ROW, coalesce_reasons(reasons).alias(REASON))


def exposures_in_span(profile: SourceProfile) -> Column:
    """Build the filter of exposures that may equal rows of the profiled dates; a request repeated at midnight is on two dates."""
    if profile.first_date is None:
        return F.lit(False)
    return F.col("shown_date").between(F.date_sub(F.lit(profile.first_date), 1), F.date_add(F.lit(profile.last_date), 1))


def select_new_feedback(validated: DataFrame, existing: DataFrame | None) -> DataFrame:
    """Select the usable events that name their request and that the feedback table lacks, with its columns.

    Events that the interactions table has already are included: an ingest may have died before it wrote feedback.

    Args:
        validated: interactions with request_id, ``_reason`` and ``_held_out``. existing: the feedback table; None where there is none yet.
    """
    usable = (F.col(REASON).isNull() | (F.col(REASON) == ALREADY_PRESENT)) & ~F.col(HELD_OUT)
    rows = validated.where(usable & ~parsing.is_blank("request_id")).select(*(column.name for column in TABLES["feedback"].columns))
    return rows if existing is None else rows.join(existing.select(*_FEEDBACK_KEY), list(_FEEDBACK_KEY), "left_anti")


def _read_kind(spark: SparkSession, source: str, files: list[SourceFile], kind: str) -> DataFrame | None:
    kind_files = [file for file in files if file.base_name.startswith(f"{kind}-") and file.base_name.endswith(".parquet")]
    if not kind_files:
        return None
    nested = any(file.nested for file in kind_files)
    with translate_spark_errors(spark, source):
        # By the columns of all files: older releases logged fewer.
        return spark.read.options(recursiveFileLookup=nested, pathGlobFilter=f"{kind}-*.parquet", mergeSchema=True).parquet(source)


def _explode_items(exposures: DataFrame) -> DataFrame:
    """Explode requests into one row per shown item; a request without items gives no row, what an older release did not log is null."""
    exploded = exposures.withColumn("_item", F.explode("items")).drop("items")
    logged = exploded.select("_item.*").columns
    items = [(F.col(f"_item.{name}") if name in logged else F.lit(None).cast(_LATER_COLUMNS[name])).alias(name) for name in _ITEM_COLUMNS]
    others = [] if "lists" in exposures.columns else [F.lit(None).cast(_LATER_COLUMNS["lists"]).alias("lists")]
    return exploded.select("*", *items, *others).drop("_item")
