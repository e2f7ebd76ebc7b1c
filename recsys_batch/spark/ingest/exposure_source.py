"""The online side's logs as rows: what was shown, one row per request and item, and the feedback that answers it. Transforms, but for
``read_exposure_files``."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.errors import SourceError
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.ingest import parsing
from recsys_batch.spark.ingest.hadoop_files import SourceFile, list_files
from recsys_batch.spark.ingest.raw_source import CORRUPT, RAW_ROW, RawSource, with_raw_row
from recsys_batch.spark.ingest.spark_errors import translate_spark_errors
from recsys_batch.spark.ingest.validation import HELD_OUT, PRESENT, REASON, SourceProfile, first_reason

EXPOSURE_KEY = ("request_id", "user_id", "item_id")
"""A request shows an item once. The user is one of them: callers may choose request ids, and two may choose the same."""

_FEEDBACK_KEY = ("request_id", "user_id", "item_id", "event_ts", "event_type")
_ITEM_COLUMNS = ("item_id", "position", "score", "batch_score", "candidate_rank")


def read_exposure_files(spark: SparkSession, source: str) -> RawSource:
    """Whole files of a folder, by how their names begin; drafts are hidden.

    Raises:
        SourceError: the folder is missing, or holds no file of these.
    """
    files = list_files(spark, source)
    exposures, feedback = (_read(spark, source, files, kind) for kind in (EXPOSURES, FEEDBACK))
    if exposures is None and feedback is None:
        raise SourceError(
            f"{source} holds no {EXPOSURES}-*.parquet and no {FEEDBACK}-*.parquet, but {files[0].short}: is it the log's folder?"
        )
    return RawSource(
        interactions=None if feedback is None else with_raw_row(feedback),
        exposures=None if exposures is None else with_raw_row(_by_item(exposures)),
    )


def parse_exposures(raw: DataFrame, ids: IdTypes) -> DataFrame:
    """Columns of exposures with ``_row`` and ``_reason``; repeated rows are not looked for yet."""
    score, shown_at = parsing.parse_number(raw, "score"), parsing.parse_timestamp(raw, "shown_at")
    reasons = [
        (F.col(CORRUPT).isNotNull(), "malformed_line"),
        (parsing.is_blank("request_id"), "null_request_id"),
        (parsing.is_blank("user_id"), "null_user_id"),
        (parsing.is_blank("item_id"), "null_item_id"),
        (parsing.parse_id_column(raw, "user_id", ids.user).isNull(), "bad_user_id"),
        (parsing.parse_id_column(raw, "item_id", ids.item).isNull(), "bad_item_id"),
        (F.col("shown_at").isNull(), "null_shown_at"),
        (shown_at.isNull(), "bad_shown_at"),
        (F.coalesce(F.col("position") < 1, F.lit(True)), "bad_position"),
        (F.isnan(score) | (F.abs(score) == float("inf")), "bad_score"),
    ]
    session = F.col("session_item_ids").cast("array<string>" if ids.item == "STRING" else "array<bigint>")
    replaced = {
        "user_id": parsing.parse_id_column(raw, "user_id", ids.user),
        "item_id": parsing.parse_id_column(raw, "item_id", ids.item),
        "shown_at": shown_at,
        "shown_date": F.to_date(shown_at),
        "session_item_ids": session,
    }
    columns = [replaced.get(column.name, F.col(column.name)).alias(column.name) for column in TABLES["exposures"].columns]
    return raw.select(*columns, RAW_ROW, first_reason(reasons).alias(REASON))


def exposures_in_span(seen: SourceProfile) -> Column:
    """The part of the table that rows of these dates can be in; a request that is repeated at midnight is on two of them."""
    if seen.first_date is None:
        return F.lit(False)
    return F.col("shown_date").between(F.date_sub(F.lit(seen.first_date), 1), F.date_add(F.lit(seen.last_date), 1))


def select_new_feedback(judged: DataFrame, there: DataFrame | None) -> DataFrame:
    """Columns of feedback, for the usable events that name their request and that the table does not have.

    Events that interactions has already are among them: an ingest may have died before it came to this table.

    Args:
        judged: interactions with request_id and verdicts.
        there: the table; None where there is none yet.
    """
    usable = (F.col(REASON).isNull() | (F.col(REASON) == PRESENT)) & ~F.col(HELD_OUT)
    rows = judged.where(usable & ~parsing.is_blank("request_id")).select(*(column.name for column in TABLES["feedback"].columns))
    return rows if there is None else rows.join(there.select(*_FEEDBACK_KEY), list(_FEEDBACK_KEY), "left_anti")


def _read(spark: SparkSession, source: str, files: list[SourceFile], kind: str) -> DataFrame | None:
    mine = [file for file in files if file.short.startswith(f"{kind}-") and file.short.endswith(".parquet")]
    if not mine:
        return None
    nested = any(file.nested for file in mine)
    with translate_spark_errors(spark, source):
        return spark.read.options(recursiveFileLookup=nested, pathGlobFilter=f"{kind}-*.parquet").parquet(source)


def _by_item(exposures: DataFrame) -> DataFrame:
    """A request that showed nothing gives no row."""
    shown = exposures.withColumn("_item", F.explode("items")).drop("items")
    return shown.select("*", *(F.col(f"_item.{name}").alias(name) for name in _ITEM_COLUMNS)).drop("_item")
