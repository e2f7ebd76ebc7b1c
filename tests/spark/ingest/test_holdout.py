"""Who is held out: the future of one time, whole sessions, and the same rows again when an ingest is repeated."""

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from recsys_batch.schemas import TIMESTAMP
from recsys_batch.sources.typed_rows import FILE, POSITION, REASON
from recsys_batch.sources.verdicts import ALREADY_PRESENT
from recsys_batch.spark.ingest import holdout
from recsys_batch.spark.ingest.holdout import HELD_OUT, HoldoutSplit, choose_split, mark_holdout

START = dt.datetime(2021, 3, 5, tzinfo=dt.UTC)
GAP = 30.0
DAY = 24 * 60


def _events(spark: SparkSession, rows: list[tuple[Any, ...]]) -> DataFrame:
    """user_id, item_id, weight, minute (or None), reason per row."""
    columns = {
        "user_id": pa.array([row[0] for row in rows]),
        "item_id": pa.array([row[1] for row in rows]),
        "weight": pa.array([float(row[2]) for row in rows], pa.float32()),
        "event_ts": pa.array([None if row[3] is None else START + dt.timedelta(minutes=row[3]) for row in rows], TIMESTAMP),
        "event_type": pa.array(["buy"] * len(rows)),
        FILE: pa.array([0] * len(rows), pa.int32()),
        POSITION: pa.array(range(len(rows))),
        REASON: pa.array([row[4] if len(row) > 4 else None for row in rows], pa.string()),
    }
    return spark.createDataFrame(pa.table(columns))


def _held_out(df: DataFrame, split: HoldoutSplit | None) -> set[tuple[Any, ...]]:
    rows = mark_holdout(df, split, 0.0, GAP)
    assert rows.count() == df.count()
    return {tuple(row) for row in rows.where(HELD_OUT).select("user_id", "item_id").collect()}


def test_by_time_everything_after_it_is_held_out_but_never_part_of_a_session(spark: SparkSession) -> None:
    rows = [("a", "old", 1, 0), ("a", "basket 1", 1, 50), ("a", "basket 2", 1, 70), ("a", "new", 1, 200), ("a", "back", -1, 201)]
    rows += [("b", "same time", 1, 60), ("b", "same time too", 1, 60), ("c", "only new", 1, 100), ("c", "bad", 1, 100, "bad_weight")]
    after = START + dt.timedelta(minutes=60)
    found = _held_out(_events(spark, rows), HoldoutSplit("time", 0.5, after))
    assert found == {("a", "new"), ("a", "back"), ("c", "only new")}
    assert _held_out(_events(spark, rows), None) == set()


def test_the_time_is_chosen_for_the_share_and_users_must_be_on_both_sides(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"u{n % 10}", f"i{n}", 1, n * 60) for n in range(100)]
    df = _events(spark, rows)
    monkeypatch.setattr(holdout, "MIN_USERS_ON_BOTH_SIDES", 10)
    split = choose_split(df, 0.2, "auto", 0.0, GAP)
    assert (split.kind, split.after) == ("time", START + dt.timedelta(minutes=79 * 60))
    assert len(_held_out(df, split)) == 20
    assert "2021-03-08" in split.describe()
    monkeypatch.setattr(holdout, "MIN_USERS_ON_BOTH_SIDES", 11)
    assert choose_split(df, 0.2, "auto", 0.0, GAP).kind == "user"
    assert choose_split(df, 0.2, "time", 0.0, GAP).kind == "time"
    assert choose_split(_events(spark, [("u", "i", 1, None)]), 0.2, "auto", 0.0, GAP).kind == "random"
    assert choose_split(df, 0.2, "random", 0.0, GAP).kind == "random"


def test_by_user_the_newest_sessions_are_held_out_whole(spark: SparkSession) -> None:
    rows = [("ten", f"i{day}", 1, day * DAY) for day in range(10)] + [("four", f"i{day}", 1, day * DAY) for day in range(4)]
    rows += [("basket", f"i{n}", 1, DAY * (n >= 5) + n) for n in range(10)]
    rows += [("one session", f"i{n}", 1, n) for n in range(10)]
    rows += [("ten", "returned", -1, 20 * DAY), ("ten", "bad", 1, 20 * DAY, "bad_weight")]
    df = _events(spark, rows)
    basket = {("basket", f"i{n}") for n in range(5, 10)}
    assert _held_out(df, HoldoutSplit("user", 0.2)) == {("ten", "i9"), ("ten", "i8")} | basket
    assert _held_out(df, HoldoutSplit("user", 0.05)) == {("ten", "i9")} | basket


def test_at_random_a_share_of_each_user_is_held_out(spark: SparkSession) -> None:
    rows = [(user, f"i{n:03d}", 1, None) for user in "abcdefgh" for n in range(100)] + [("few", f"i{n}", 1, None) for n in range(4)]
    found = _held_out(_events(spark, rows), HoldoutSplit("random", 0.29))
    assert len(found) == 8 * 29
    assert len({item for _, item in found}) > 50, "other items for other users"


@pytest.mark.parametrize("split", [HoldoutSplit("time", 0.2, START + dt.timedelta(days=7, hours=1)), HoldoutSplit("user", 0.2)])
def test_rows_already_present_count_so_that_a_resumed_ingest_holds_out_the_same(spark: SparkSession, split: HoldoutSplit) -> None:
    rows = [("u", f"i{day}", 1, day * DAY) for day in range(10)]
    resumed = [(*row, ALREADY_PRESENT) if row[3] >= 8 * DAY else row for row in rows]
    assert _held_out(_events(spark, resumed), split) == _held_out(_events(spark, rows), split) == {("u", "i8"), ("u", "i9")}
