"""One column has one clock: that of its values together, or the one that its reader names."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest

from recsys_batch.errors import SourceError
from recsys_batch.sources import timestamps
from recsys_batch.sources.source_format import DEFAULT_NULL_VALUES
from recsys_batch.sources.timestamps import TimeProfile, parse_times, profile_times
from recsys_batch.sources.values import is_missing

DAY = dt.datetime(2021, 3, 5, tzinfo=dt.UTC)
NOON = DAY.replace(hour=12)

TIMES = {
    "1614945600": NOON,
    "1614945600000": NOON,
    "1614945600000000": NOON,
    "1614945600000000000": NOON,
    "1614945600.5": NOON + dt.timedelta(milliseconds=500),
    "1.6149456e9": NOON,
    "2021-03-05T12:00:00Z": NOON,
    "2021-03-05T14:00:00+02:00": NOON,
    "2021-03-05T07:30:00-0430": NOON,
    " 2021-03-05 12:00:00 ": NOON,
    "2021-03-05T12:00:00.123456": NOON + dt.timedelta(microseconds=123456),
    "2021-03-05T12:00:00.123456789Z": NOON + dt.timedelta(microseconds=123456),
    "2021/03/05 12:00": NOON,
    "2021-3-5": DAY,
    "20210305": DAY,
    "0": dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
    "2020-02-29": dt.datetime(2020, 2, 29, tzinfo=dt.UTC),
    "1900-02-29": None,
    "2021-02-30": None,
    "2021-03-05 24:00": None,
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


def test_times_that_come_one_by_one_are_iso_dates_and_epochs_of_any_unit() -> None:
    assert dict(zip(TIMES, parse_times(pa.array(TIMES, pa.string()), None).to_pylist(), strict=True)) == TIMES


def clock_of(values: Any, kind: pa.DataType | None = None) -> str:
    column = pa.array(values, kind)
    return profile_times(column, is_missing(column, DEFAULT_NULL_VALUES)).choose_clock()


@pytest.mark.parametrize(
    ("values", "clock"),
    [
        (["19990105", "18999995", "5"], "s"),
        (["20210305", "20210306", "20211399", "99991231"], "yyyymmdd"),
        ([20210305, 20210306], "yyyymmdd"),
        ([0, 5, 26_000_000], "s"),
        (["0", "0"], "s"),
        (["887000000000", "1614945600000"], "ms"),
        (["1614945600", "1614945600", "9999999999999"], "s"),
        ([1614945600000000], "us"),
        (["2021-03-05", "2021-03-06", "1614945600"], "text"),
        (["2021-03-05", "1614945600", "1614945601"], "s"),
        (["no", "time"], "text"),
        ([None, ""], "text"),
    ],
)
def test_a_column_has_the_clock_of_most_of_its_values(values: list[Any], clock: str) -> None:
    assert clock_of(values) == clock


def test_relative_seconds_are_never_days() -> None:
    column = pa.array(["19990105", "18999995", "20000"])
    found = parse_times(column, clock_of(column))
    assert [time.timestamp() for time in found.to_pylist()] == [19990105, 18999995, 20000]


def test_a_value_of_another_clock_is_no_time() -> None:
    assert parse_times(pa.array(["2021-03-05", "1614945600"]), "text").to_pylist() == [DAY, None]
    assert parse_times(pa.array(["2021-03-05", "1614945600", "1614945600000"]), "s").to_pylist() == [None, NOON, None]
    assert parse_times(pa.array(["20210305", "20211305"]), "yyyymmdd").to_pylist() == [DAY, None]


def test_profiles_of_parts_add_up_and_know_their_span() -> None:
    parts = [pa.array(["2021-03-05", "bad"]), pa.array(["2021-03-07", None])]
    whole = TimeProfile()
    for part in parts:
        whole.add(TimeProfile.from_json(profile_times(part, is_missing(part, ())).to_json()))
    assert (whole.counts["text"], whole.counts["other"]) == (2, 1)
    assert whole.span("text") == (DAY, DAY + dt.timedelta(days=2))
    days = profile_times(pa.array([20210305, 20210307]), pa.array([False, False]))
    assert days.span("yyyymmdd") == (DAY, DAY + dt.timedelta(days=2))
    assert whole.span("%d.%m.%Y") is None


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([NOON, None], pa.timestamp("us", tz="UTC")), [NOON, None]),
        (pa.array([NOON.replace(tzinfo=None)], pa.timestamp("ms")), [NOON]),
        (pa.array([NOON.replace(tzinfo=None)], pa.timestamp("s")), [NOON]),
        (pa.array([DAY.date()]), [DAY]),
        (pa.array([DAY.date()], pa.date64()), [DAY]),
        (pa.array([1_614_945_600_123_456_789], pa.timestamp("ns")), [NOON + dt.timedelta(microseconds=123456)]),
        (pa.array([-(2**63), 2**62], pa.timestamp("s")), [None, None]),
        (pa.array(["x"]), [None]),
        (pa.array([[1]]), [None]),
    ],
)
def test_typed_times_are_read_as_they_are(column: pa.Array, expected: list[Any]) -> None:
    assert parse_times(column, "typed").to_pylist() == expected


def test_cut_nanoseconds_are_counted_and_integers_of_them_exact() -> None:
    column = pa.array([1_614_945_600_123_456_789, 1_614_945_600_123_456_000, None], pa.timestamp("ns"))
    assert profile_times(column, is_missing(column, ())).n_cut == 1
    found = parse_times(column.cast(pa.int64()), "ns").to_pylist()
    assert [time and time.microsecond for time in found] == [123456, 123456, None]


FORMATS = {
    "%m/%d/%Y %I:%M %p": ("12/24/2023 10:00 PM", dt.datetime(2023, 12, 24, 22, tzinfo=dt.UTC)),
    "%d.%m.%Y": ("24.12.2023", dt.datetime(2023, 12, 24, tzinfo=dt.UTC)),
    "%Y%m%d%H%M%S": ("20231224101500", dt.datetime(2023, 12, 24, 10, 15, tzinfo=dt.UTC)),
    "%a %b %d %H:%M:%S %z %Y": ("Sun Dec 24 11:37:35 -0800 2023", dt.datetime(2023, 12, 24, 19, 37, 35, tzinfo=dt.UTC)),
    "%m %d, %Y": ("12 24, 2023", dt.datetime(2023, 12, 24, tzinfo=dt.UTC)),
    "%Y-%m-%d %H:%M:%S.%f": ("2023-12-24 10:15:00.25", dt.datetime(2023, 12, 24, 10, 15, 0, 250000, tzinfo=dt.UTC)),
}


@pytest.mark.parametrize(("time_format", "example"), FORMATS.items())
def test_other_spellings_are_read_by_their_format(time_format: str, example: tuple[str, dt.datetime]) -> None:
    text, time = example
    assert parse_times(pa.array([text, f" {text} ", "31.02.2023", None]), time_format).to_pylist() == [time, time, None, None]
    assert timestamps.parse_time_format(time_format) == time_format


def test_an_epoch_can_be_named() -> None:
    assert timestamps.parse_time_format("epoch:relative") == "s"
    assert timestamps.parse_time_format("epoch:ms") == "ms"
    assert parse_times(pa.array(["20210305"]), timestamps.parse_time_format("epoch:s")).to_pylist()[0].year == 1970
    assert timestamps.parse_time_format(None) is None
    with pytest.raises(SourceError, match="epoch:relative, or a format such as"):
        timestamps.parse_time_format("iso")
