"""Verdicts that need other rows: which of equal rows stays, what a table has already, which file says the newest of an item."""

import datetime as dt
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.schemas import TIMESTAMP
from recsys_batch.sources.typed_rows import FILE, POSITION, REASON, UPDATED
from recsys_batch.spark.ingest import validation
from recsys_batch.spark.ingest.validation import ALREADY_PRESENT

DAY = dt.datetime(2021, 3, 5, tzinfo=dt.UTC)


def frame(spark: SparkSession, **columns: Any) -> DataFrame:
    return spark.createDataFrame(pa.table(columns))


def _events(spark: SparkSession, rows: list[tuple[Any, ...]]) -> DataFrame:
    """user_id, item_id, weight, day (or None) per row."""
    columns = {
        "user_id": pa.array([row[0] for row in rows]),
        "item_id": pa.array([row[1] for row in rows]),
        "weight": pa.array([float(row[2]) for row in rows], pa.float32()),
        "event_ts": pa.array([row[3] and DAY + dt.timedelta(days=row[3]) for row in rows], pa.timestamp("us", tz="UTC")),
        "event_type": pa.array(["buy"] * len(rows)),
        FILE: pa.array([0] * len(rows), pa.int32()),
        POSITION: pa.array(range(len(rows))),
        REASON: pa.array([row[4] if len(row) > 4 else None for row in rows], pa.string()),
    }
    return frame(spark, **columns)


def test_which_of_equal_rows_stays_does_not_depend_on_their_order(spark: SparkSession) -> None:
    df = _events(spark, [("u", "i", 1, 1)] * 5 + [("u", "i", -1, 1), ("u", "i", 1, 1, "bad_weight"), ("u", "i", 1, 1, "bad_weight")])
    verdicts = []
    for shuffled in (df, df.orderBy(F.desc(POSITION)), df.repartition(3, POSITION)):
        marked = validation.mark_duplicates(shuffled, None).toArrow()
        verdicts.append(dict(zip(marked[POSITION].to_pylist(), marked[REASON].to_pylist(), strict=True)))
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert verdicts[0][0] is None, "the first stays"
    assert sorted(map(str, verdicts[0].values())) == ["None"] * 2 + ["bad_weight"] * 2 + ["duplicate"] * 4
    assert verdicts[0][5] is None, "a return is not a repetition of its purchase"


def test_rows_that_the_table_has_are_present_and_only_they(spark: SparkSession) -> None:
    df = _events(spark, [("u", "i", 1, 1), ("u", "i", 1, 1), ("u", "i", 1, None), ("v", "i", 1, 1), ("u", "i", 1, 2)])
    there = _events(spark, [("u", "i", 1, 1), ("u", "i", 1, None), ("w", "i", 1, 1)])
    marked = validation.mark_duplicates(df, there).select("user_id", "event_ts", REASON).toArrow().to_pylist()
    found = sorted((row["user_id"], str(row["event_ts"])[8:10], str(row[REASON])) for row in marked)
    assert found == [
        ("u", "", ALREADY_PRESENT),
        ("u", "06", ALREADY_PRESENT),
        ("u", "06", "duplicate"),
        ("u", "07", "None"),
        ("v", "06", "None"),
    ]


def _items(spark: SparkSession, rows: list[tuple[str, int, int, int | None]]) -> dict[tuple[int, int], str | None]:
    """Verdicts by (file, position) of rows of (item_id, file, position, updated on day or None)."""
    columns = {
        "item_id": pa.array([row[0] for row in rows]),
        FILE: pa.array([row[1] for row in rows], pa.int32()),
        POSITION: pa.array([row[2] for row in rows]),
        UPDATED: pa.array([None if row[3] is None else DAY + dt.timedelta(days=row[3]) for row in rows], TIMESTAMP),
        REASON: pa.nulls(len(rows), pa.string()),
    }
    marked = validation.mark_repeated_keys(frame(spark, **columns), "item_id").toArrow()
    return dict(zip(zip(marked[FILE].to_pylist(), marked[POSITION].to_pylist(), strict=True), marked[REASON].to_pylist(), strict=True))


def test_the_later_file_says_what_holds_of_an_item(spark: SparkSession) -> None:
    found = _items(spark, [("a", 0, 0, None), ("a", 1, 0, None), ("a", 1, 5, None), ("b", 0, 1, None)])
    assert found == {(0, 0): "superseded", (1, 0): "duplicate_item_id", (1, 5): None, (0, 1): None}


def test_a_newer_update_wins_over_a_later_file(spark: SparkSession) -> None:
    found = _items(spark, [("a", 0, 0, 3), ("a", 1, 0, 2), ("a", 2, 0, None), ("b", 1, 1, 1), ("b", 1, 2, 0)])
    assert found == {(0, 0): None, (1, 0): "superseded", (2, 0): "superseded", (1, 1): None, (1, 2): "superseded"}
