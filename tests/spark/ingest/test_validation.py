"""Raw values to typed rows with verdicts: what counts as an id, a time, a weight; which row of equal ones stays; who is held out."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.schemas import IdTypes
from recsys_batch.spark.ingest import parsing, validation
from recsys_batch.spark.ingest.raw_source import CORRUPT, RAW_ROW, add_raw_row
from recsys_batch.spark.ingest.validation import ALREADY_PRESENT, HELD_OUT, REASON

BIGINTS, STRINGS = IdTypes("BIGINT", "BIGINT"), IdTypes("STRING", "STRING")
DAY = dt.datetime(2021, 3, 5, tzinfo=dt.UTC)
NOON = DAY.replace(hour=12)


def frame(spark: SparkSession, **columns: Any) -> DataFrame:
    return spark.createDataFrame(pa.table(columns))


def column_of(df: DataFrame, column: Any) -> list[Any]:
    """The column's values in the order of ``n``."""
    found = df.select("n", column.alias("v")).orderBy("n").toArrow()["v"]
    return found.to_pylist()


TIMES = {
    "1614945600": NOON,
    "1614945600000": NOON,
    "1614945600000000": NOON,
    "1614945600000000000": NOON,
    "1614945600.5": NOON + dt.timedelta(milliseconds=500),
    "1.6149456e9": NOON,
    "2021-03-05T12:00:00Z": NOON,
    "2021-03-05T14:00:00+02:00": NOON,
    " 2021-03-05 12:00:00 ": NOON,
    "2021-03-05T12:00:00.123456": NOON + dt.timedelta(microseconds=123456),
    "2021/03/05 12:00": NOON,
    "2021-03-05": DAY,
    "20210305": DAY,
    "0": dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
    "20211305": None,
    "2021-02-30": None,
    "05.03.2021": None,
    "12:30": None,
    "now": None,
    "NaN": None,
    "Infinity": None,
    "5f": None,
    "-99999999999999999999": None,
    "9223372036854775807": None,
    "": None,
    None: None,
}


def test_times_in_text_are_iso_dates_and_epochs_of_any_unit(spark: SparkSession) -> None:
    df = frame(spark, n=list(range(len(TIMES))), t=pa.array(TIMES, pa.string()))
    assert dict(zip(TIMES, column_of(df, parsing.parse_timestamp(df, "t")), strict=True)) == TIMES


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1614945600, 1614945600000, 20210305, None], pa.int64()), [NOON, NOON, DAY, None]),
        (pa.array([1614945600.0, float("nan"), float("inf")]), [NOON, None, None]),
        (pa.array([NOON, None], pa.timestamp("us", tz="UTC")), [NOON, None]),
        (pa.array([NOON.replace(tzinfo=None)], pa.timestamp("us")), [NOON]),
        (pa.array([DAY.date()]), [DAY]),
    ],
    ids=["integers", "doubles", "timestamps", "timestamps without zone", "dates"],
)
def test_times_of_typed_columns(spark: SparkSession, column: pa.Array, expected: list[Any]) -> None:
    df = frame(spark, n=list(range(len(column))), t=column)
    assert column_of(df, parsing.parse_timestamp(df, "t")) == expected


TEXT_IDS = {"7": 7, "-7": -7, "0": 0, "9223372036854775807": 2**63 - 1}
FOREIGN_IDS = ("007", "+7", "7.5", "A7", "9223372036854775808", "١٢")
MISSING_IDS = ("", "  ", "null", "NaN", None)


def test_text_ids_are_bigint_only_if_every_one_is_a_plain_integer(spark: SparkSession) -> None:
    ids = [*TEXT_IDS, *FOREIGN_IDS, *MISSING_IDS]
    df = frame(spark, n=list(range(len(ids))), user_id=pa.array(ids, pa.string()))
    assert column_of(df, parsing.parse_id_column(df, "user_id", "BIGINT"))[: len(TEXT_IDS)] == list(TEXT_IDS.values())
    foreign = column_of(df, parsing.needs_string_id(df, "user_id"))
    assert foreign == [False] * len(TEXT_IDS) + [True] * len(FOREIGN_IDS) + [False] * len(MISSING_IDS)
    assert column_of(df, parsing.is_blank("user_id"))[-len(MISSING_IDS) :] == [True] * len(MISSING_IDS)
    assert column_of(df, parsing.parse_id_column(df, "user_id", "STRING"))[: len(ids) - len(MISSING_IDS)] == ids[: -len(MISSING_IDS)]


def test_ids_in_doubles_and_decimals_are_those_without_a_fraction(spark: SparkSession) -> None:
    df = frame(spark, n=[0, 1, 2, 3], d=[7.0, 7.5, float("nan"), 1e300], c=[Decimal("7.0"), Decimal("7.5"), None, Decimal("8.0")])
    assert column_of(df, parsing.parse_id_column(df, "d", "BIGINT")) == [7, None, None, None]
    assert column_of(df, parsing.parse_id_column(df, "d", "STRING"))[0] == "7"
    assert column_of(df, parsing.parse_id_column(df, "c", "BIGINT")) == [7, None, None, 8]


def test_flags_lists_and_numbers_say_null_to_what_they_are_not(spark: SparkSession) -> None:
    text = ["YES", "0", "maybe", "1.5", "-2e1", "1,5", "0x1f", " a | b||", None]
    df = frame(spark, n=list(range(len(text))), t=pa.array(text))
    assert column_of(df, parsing.parse_flag(df, "t")) == [True, False, *[None] * 7]
    assert column_of(df, parsing.parse_number(df, "t")) == [None, 0.0, None, 1.5, -20.0, None, None, None, None]
    assert column_of(df, parsing.parse_text_list(df, "t"))[-2:] == [["a", "b"], []]


def test_the_first_reason_that_holds_is_given(spark: SparkSession) -> None:
    rows = [
        ("u", "i", "2021-03-05", "1", None, None),
        ("u", "i", "2021-03-05", "-1", None, None),
        ("", "i", "x", "NaN", None, "null_user_id"),
        ("u", None, "x", "1", None, "null_item_id"),
        ("u", "i", None, "x", None, "null_event_ts"),
        ("u", "i", "x", "x", None, "bad_event_ts"),
        ("u", "i", "2021-03-05", "NaN", None, "bad_weight"),
        ("u", "i", "2021-03-05", "inf", None, "bad_weight"),
        ("u", "i", "2021-03-05", "1e99", None, "bad_weight"),
        ("u", "i", "2021-03-05", None, None, "bad_weight"),
        ("u", "i", None, None, "u;i", "malformed_line"),
    ]
    names = ("user_id", "item_id", "event_ts", "weight", CORRUPT)
    columns = {name: pa.array([row[place] for row in rows], pa.string()) for place, name in enumerate(names)}
    typed = validation.parse_interactions(add_raw_row(frame(spark, **columns)), STRINGS).toArrow()
    found = sorted(zip(typed[REASON].to_pylist(), typed["event_type"].to_pylist(), strict=True), key=str)
    assert found == sorted(((row[-1], "event") for row in rows), key=str)
    wrong = validation.parse_interactions(add_raw_row(frame(spark, user_id=["7", "x"], item_id=["x", "7"])), BIGINTS).toArrow()
    assert sorted(wrong[REASON].to_pylist()) == ["bad_item_id", "bad_user_id"]


def test_a_survey_finds_rows_id_types_and_dates_in_one_pass(spark: SparkSession) -> None:
    raw = add_raw_row(frame(spark, user_id=["1", "", "3"], item_id=["1", "x", None], event_ts=["2021-03-05", "2021-03-07", "no"]))
    found = validation.profile_source(raw)
    assert (found.n_rows, found.user_id, found.item_id) == (3, "BIGINT", "STRING")
    assert (found.first_date, found.last_date) == (dt.date(2021, 3, 5), dt.date(2021, 3, 7))


def _events(spark: SparkSession, rows: list[tuple[Any, ...]]) -> DataFrame:
    """user_id, item_id, weight, day (or None) per row."""
    columns = {
        "user_id": pa.array([row[0] for row in rows]),
        "item_id": pa.array([row[1] for row in rows]),
        "weight": pa.array([float(row[2]) for row in rows], pa.float32()),
        "event_ts": pa.array([row[3] and DAY + dt.timedelta(days=row[3]) for row in rows], pa.timestamp("us", tz="UTC")),
        "event_type": pa.array(["buy"] * len(rows)),
        RAW_ROW: pa.array([f"row {n}" for n in range(len(rows))]),
        REASON: pa.array([row[4] if len(row) > 4 else None for row in rows], pa.string()),
    }
    return frame(spark, **columns)


def test_which_of_equal_rows_stays_does_not_depend_on_their_order(spark: SparkSession) -> None:
    df = _events(spark, [("u", "i", 1, 1)] * 5 + [("u", "i", -1, 1), ("u", "i", 1, 1, "bad_weight"), ("u", "i", 1, 1, "bad_weight")])
    verdicts = []
    for shuffled in (df, df.orderBy(F.desc(RAW_ROW)), df.repartition(3, RAW_ROW)):
        marked = validation.mark_duplicates(shuffled, None).toArrow()
        verdicts.append(dict(zip(marked[RAW_ROW].to_pylist(), marked[REASON].to_pylist(), strict=True)))
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert sorted(map(str, verdicts[0].values())) == ["None"] * 2 + ["bad_weight"] * 2 + ["duplicate"] * 4
    assert verdicts[0]["row 5"] is None, "a return is not a repetition of its purchase"


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


def _held_out(df: DataFrame, share: float) -> set[tuple[Any, ...]]:
    rows = validation.mark_holdout(df, share, 0.0).where(HELD_OUT).select("user_id", "item_id").collect()
    return {tuple(row) for row in rows}


def test_the_newest_positives_are_held_out_never_returns_or_bad_rows(spark: SparkSession) -> None:
    rows = [("five", f"i{day}", 1, day) for day in range(5)] + [("four", f"i{day}", 1, day) for day in range(4)]
    rows += [("five", "returned", -1, 9), ("five", "bad", 1, 9, "bad_weight"), ("four", "returned", -1, 9)]
    df = _events(spark, rows)
    assert _held_out(df, 0.2) == {("five", "i4")}
    assert _held_out(df, 0.4) == {("five", "i4"), ("five", "i3")}
    assert _held_out(df, 0.1) == set()
    assert _held_out(df, 0.0) == set()


def test_rows_already_present_count_for_the_holdout_so_that_a_resumed_ingest_holds_out_the_same(spark: SparkSession) -> None:
    rows = [("u", f"i{day}", 1, day) for day in range(10)]
    resumed = [(*row, ALREADY_PRESENT) if row[3] >= 8 else row for row in rows]
    assert _held_out(_events(spark, resumed), 0.2) == _held_out(_events(spark, rows), 0.2) == {("u", "i8"), ("u", "i9")}


def test_a_share_of_100_events_is_what_it_says(spark: SparkSession) -> None:
    df = _events(spark, [("u", f"i{n:03d}", 1, n) for n in range(100)])
    assert len(_held_out(df, 0.29)) == 29


def test_one_item_row_stays_per_id_and_what_it_says_is_checked(spark: SparkSession) -> None:
    raw = add_raw_row(
        frame(
            spark,
            item_id=["1", "1", "2", "3", "x", None],
            is_available=["yes", "yes", "perhaps", None, "1", "1"],
            categories=["a|b", "a|b", "c", None, "", ""],
            first_seen_ts=["2021-03-05", "2021-03-05", None, "long ago", None, None],
        )
    )
    typed = validation.parse_items(raw, BIGINTS).toArrow().to_pylist()
    reasons = sorted(str(row[REASON]) for row in typed)
    assert reasons == ["None", "bad_first_seen_ts", "bad_is_available", "bad_item_id", "duplicate_item_id", "null_item_id"]
    good = next(row for row in typed if row[REASON] is None)
    assert (good["item_id"], good["categories"], good["is_available"], good["first_seen_ts"]) == (1, ["a", "b"], True, DAY)
