"""Raw columns to UTC timestamps by one clock per column, which is decided from all values of a source or set by its reader.

A column of numbers is dates as 20210305, or counts of one unit since 1970; a guess value by value would read 19990105 as a day and
18999995 as seconds.
"""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.errors import SourceError
from recsys_batch.schemas import TIMESTAMP
from recsys_batch.sources.values import is_number, is_text, parse_decimals

UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0.001}
"""Unit of an epoch number -> its microseconds."""

# Least magnitude of a number that is taken for the unit; each unit reaches the year 5138.
_LEAST = {"ms": 1e11, "us": 1e14, "ns": 1e17, "none": 1e19}
_OLDEST, _NEWEST = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in (1900, 2262))
_OLDEST_US, _NEWEST_US = (int(time.timestamp()) * 1_000_000 for time in (_OLDEST, _NEWEST))
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_COMPACT = (19_000_101, 20_991_231)
_NEVER = (99_991_231, 99_999_999)  # "no end" in columns of days
_ISO = (
    r"^(?P<year>\d{4})[-/](?P<month>\d{1,2})[-/](?P<day>\d{1,2})"
    r"(?:[T ]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"\s*(?P<zone>Z|z|UTC|[+-]\d{2}(?::?\d{2})?)?$"
)
NAMES = {
    "typed": "timestamps",
    "text": "dates in text",
    "yyyymmdd": "dates as yyyymmdd",
    "s": "seconds since 1970",
    "ms": "milliseconds since 1970",
    "us": "microseconds since 1970",
    "ns": "nanoseconds since 1970",
}
"""Clock -> what the summary calls it."""


@dataclass
class TimeProfile:
    """Values of a time column by the clock that each could be read by; profiles of parts of a source add up.

    Attributes:
        counts: clock (see NAMES, or "other") -> values; "zero" counts zeros, which any unit reads alike.
        n_compact: numbers that are days as yyyymmdd; n_near: those that are one, or may be one misspelt. Both count as "s", too.
        bounds: clock -> least and greatest value in microseconds, of numbers the number itself.
        n_cut: nanosecond timestamps that lose digits in microseconds.
    """

    counts: Counter[str] = field(default_factory=Counter)
    n_compact: int = 0
    n_near: int = 0
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    n_cut: int = 0

    def add(self, other: "TimeProfile") -> None:
        """Add the profile of another part."""
        self.counts += other.counts
        self.n_compact += other.n_compact
        self.n_near += other.n_near
        self.n_cut += other.n_cut
        for clock, (low, high) in other.bounds.items():
            least, greatest = self.bounds.get(clock, (low, high))
            self.bounds[clock] = (min(least, low), max(greatest, high))

    def to_json(self) -> dict[str, Any]:
        """Make plain values of it."""
        return {
            "counts": dict(self.counts),
            "n_compact": self.n_compact,
            "n_near": self.n_near,
            "bounds": self.bounds,
            "n_cut": self.n_cut,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "TimeProfile":
        """Read what ``to_json`` made."""
        bounds = {clock: (low, high) for clock, (low, high) in document["bounds"].items()}
        return cls(Counter(document["counts"]), document["n_compact"], document["n_near"], bounds, document["n_cut"])

    def choose_clock(self) -> str:
        """Choose the clock that most values are of: yyyymmdd where no number is far from a day, and most are one."""
        numbers = {clock: n for clock, n in self.counts.items() if clock in UNITS}
        n_numbers = sum(numbers.values())
        if n_numbers and self.n_near == n_numbers and 2 * self.n_compact >= n_numbers:
            numbers = {"yyyymmdd": n_numbers}
        elif self.counts["zero"] and not numbers:
            numbers = {"s": self.counts["zero"]}
        clocks = {clock: self.counts[clock] for clock in ("typed", "text") if self.counts[clock]} | numbers
        return max(clocks, key=lambda clock: clocks[clock], default="text")

    def span(self, clock: str) -> tuple[dt.datetime, dt.datetime] | None:
        """Compute the first and last usable time that ``clock`` reads; None where it reads none, or in a format of strptime."""
        if clock == "yyyymmdd":
            bounds = [self.bounds["s"]] if "s" in self.bounds else []
            times = [_day_us(np.array(pair)) for pair in bounds]
        elif clock in UNITS:
            times = [np.array(pair) * UNITS[clock] for name, pair in self.bounds.items() if name in UNITS]
        else:
            times = [np.array(pair) for name, pair in self.bounds.items() if name == clock]
        if not times:
            return None
        low, high = (float(np.clip(choose([pair[i] for pair in times]), _OLDEST_US, _NEWEST_US)) for i, choose in enumerate((min, max)))
        return _EPOCH + dt.timedelta(microseconds=low), _EPOCH + dt.timedelta(microseconds=high)


def parse_time_format(time_format: str | None) -> str | None:
    """Read ``--time-format``: the clock of an epoch, a format of strptime as it is, None where the values decide.

    Raises SourceError where it is neither.
    """
    if time_format is None or "%" in time_format:
        return time_format
    unit = time_format.removeprefix("epoch:")
    if time_format.startswith("epoch:") and unit in (*UNITS, "relative"):
        # Seconds from an unknown beginning keep their distances as seconds since 1970.
        return "s" if unit == "relative" else unit
    raise SourceError(
        f"--time-format {time_format!r}: expected epoch:s, epoch:ms, epoch:us, epoch:ns, epoch:relative, or a format such as '%d.%m.%Y'"
    )


def profile_times(column: pa.Array, missing: pa.Array) -> TimeProfile:
    """Profile the present values of a time column."""
    profile, kind = TimeProfile(), column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        times = _typed_us(column)
        profile.counts["typed"] = len(column) - times.null_count
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            profile.n_cut = int(np.count_nonzero(np.asarray(column.drop_null().cast(pa.int64())) % 1000))
        _add_bounds(profile, "typed", np.asarray(times.drop_null(), dtype=np.float64))
        return profile
    numbers = _numbers(column)
    is_numeric = np.asarray(numbers.is_valid())
    values = np.asarray(numbers.fill_null(0.0), dtype=np.float64)
    values = values[is_numeric & np.isfinite(values) & ~np.asarray(missing)]
    for clock, chosen in _by_magnitude(values).items():
        profile.counts[clock] += int(chosen.sum())
        if clock in UNITS:
            _add_bounds(profile, clock, values[chosen])
    profile.n_compact = int(np.count_nonzero(_is_day(values)))
    is_near = (values >= _COMPACT[0]) & (values <= _COMPACT[1]) | np.isin(values, _NEVER)
    profile.n_near = int(np.count_nonzero(is_near))
    if is_text(kind):
        times = _iso_us(column)
        profile.counts["text"] = len(times) - times.null_count
        profile.counts["other"] = len(column) - int(np.asarray(missing).sum()) - sum(profile.counts.values())
        _add_bounds(profile, "text", np.asarray(times.drop_null(), dtype=np.float64))
    profile.counts = +profile.counts
    return profile


def parse_times(column: pa.Array, clock: str | None) -> pa.Array:
    """Parse a time column as TIMESTAMP in UTC; null where ``clock`` cannot read a value, or outside the years 1900 to 2261.

    Args:
        clock: of ``NAMES``, or a format of strptime; None: value by value, for messages that come one at a time.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = _typed_us(column)
    elif clock is not None and "%" in clock:
        micros = _formatted_us(column, clock) if is_text(kind) else pa.nulls(len(column), pa.int64())
    elif clock == "ns" and pa.types.is_integer(kind):
        micros = _typed_us(column.cast(pa.int64(), safe=False).cast(pa.timestamp("ns")))
    elif clock in UNITS:
        micros = _scaled_us(_numbers(column), clock)
    elif clock == "yyyymmdd":
        micros = _compact_us(_numbers(column))
    elif clock is not None:
        micros = _iso_us(column) if is_text(kind) else pa.nulls(len(column), pa.int64())
    else:
        numbers = _numbers(column)
        micros = pc.coalesce(_compact_us(numbers), _scaled_us(numbers, None))
        micros = pc.coalesce(micros, _iso_us(column)) if is_text(kind) else micros
    in_range = pc.and_(pc.greater_equal(micros, _OLDEST_US), pc.less(micros, _NEWEST_US))
    return pc.if_else(in_range, micros, None).cast(TIMESTAMP)


def to_utc_dates(times: pa.Array) -> pa.Array:
    """Convert UTC timestamps to their dates."""
    return times.cast(pa.timestamp("us")).cast(pa.date32(), safe=False)


def _typed_us(column: pa.Array) -> pa.Array:
    """Convert timestamps and dates to microseconds since 1970; nanoseconds are cut, times without a zone are UTC."""
    kind = column.type
    if pa.types.is_date(kind):
        days = column.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
        return pc.multiply(days, 86_400_000_000)
    numbers = column.cast(pa.timestamp(kind.unit)).cast(pa.int64()) if kind.tz is None else column.cast(pa.int64())
    if kind.unit == "ns":
        return pa.array(np.asarray(numbers.fill_null(0)) // 1000, mask=~np.asarray(numbers.is_valid()))
    # A value that microseconds do not hold is in no year that is read.
    unit = int(UNITS[kind.unit])
    in_range = pc.and_(pc.greater(numbers, _OLDEST_US // unit - 1), pc.less(numbers, _NEWEST_US // unit + 1))
    return pc.multiply(pc.if_else(in_range, numbers, None), unit)


def _numbers(column: pa.Array) -> pa.Array:
    """Read the numbers of a column as float64, which holds microseconds exactly; null for what is none."""
    if is_text(column.type):
        return parse_decimals(column)
    return column.cast(pa.float64(), safe=False) if is_number(column.type) else pa.nulls(len(column), pa.float64())


def _by_magnitude(values: np.ndarray) -> dict[str, np.ndarray]:
    """Mask the values of each unit by their magnitude; zeros are of none."""
    magnitude = np.abs(values)
    edges = [0.0, *_LEAST.values()]
    masks = {unit: (magnitude >= low) & (magnitude < high) for unit, low, high in zip(UNITS, edges, edges[1:], strict=False)}
    masks["s"] &= magnitude > 0
    return {**masks, "zero": magnitude == 0, "other": magnitude >= edges[-1]}


def _scaled_us(numbers: pa.Array, clock: str | None) -> pa.Array:
    """Convert epoch numbers of one unit to microseconds, or each by its magnitude."""
    values = np.asarray(numbers.fill_null(np.nan), dtype=np.float64)
    if clock is not None:
        micros = values * UNITS[clock]
    else:
        micros = np.full(len(values), np.nan)
        for unit, chosen in _by_magnitude(np.nan_to_num(values, nan=np.inf)).items():
            micros[chosen] = values[chosen] * UNITS.get(unit, 1.0 if unit == "zero" else np.nan)
    usable = np.isfinite(micros) & (np.abs(micros) < 2.0**62)
    return pa.array(np.round(np.where(usable, micros, 0)).astype(np.int64), mask=~usable)


def _is_day(values: np.ndarray) -> np.ndarray:
    """Test which numbers are a day that exists, as yyyymmdd."""
    in_range = (values >= _COMPACT[0]) & (values <= _COMPACT[1]) & (values == np.floor(values))
    whole = np.where(in_range, values, _COMPACT[0]).astype(np.int64)
    return np.asarray(in_range & _exists(whole // 10_000, whole // 100 % 100, whole % 100))


def _exists(year: np.ndarray, month: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Test which days exist in the calendar."""
    lengths = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
    is_leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    longest = lengths[np.clip(month, 0, 12)] + ((month == 2) & is_leap)
    return np.asarray((year >= 1) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= longest))


def _days_since_epoch(year: np.ndarray, month: np.ndarray, day: np.ndarray) -> np.ndarray:
    months = (year - 1970) * 12 + month - 1
    return np.asarray(months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) + day - 1)


def _day_us(values: np.ndarray) -> np.ndarray:
    whole = values.astype(np.int64)
    return np.asarray(_days_since_epoch(whole // 10_000, whole // 100 % 100, whole % 100) * 86_400_000_000)


def _compact_us(numbers: pa.Array) -> pa.Array:
    """Convert days as yyyymmdd to microseconds; null for a number that is no day."""
    values = np.asarray(numbers.fill_null(0.0), dtype=np.float64)
    usable = _is_day(values)
    return pa.array(_day_us(np.where(usable, values, _COMPACT[0])), mask=~usable)


def _iso_us(column: pa.Array) -> pa.Array:
    """Convert ISO 8601 text (also with slashes, blanks, one-digit months and hours) to microseconds; null for anything else."""
    parts = pc.extract_regex(pc.utf8_trim_whitespace(column), _ISO)
    is_iso = np.asarray(parts.is_valid())
    year, month, day, hour, minute, second = (
        _integers(pc.struct_field(parts, name)) for name in ("year", "month", "day", "hour", "minute", "second")
    )
    fraction = pc.utf8_slice_codeunits(pc.utf8_rpad(pc.fill_null(pc.struct_field(parts, "fraction"), ""), 6, "0"), 0, 6)
    zone = pc.fill_null(pc.struct_field(parts, "zone"), "")
    sign = np.where(np.asarray(pc.starts_with(zone, "-")), -1, 1)
    zone_digits = pc.utf8_rpad(pc.replace_substring_regex(zone, r"[^0-9]", ""), 4, "0")
    offset = sign * (_integers(pc.utf8_slice_codeunits(zone_digits, 0, 2)) * 60 + _integers(pc.utf8_slice_codeunits(zone_digits, 2, 4)))
    usable = is_iso & _exists(year, month, day) & (hour < 24) & (minute < 60) & (second < 60)
    days = _days_since_epoch(np.where(usable, year, 1970), np.where(usable, month, 1), np.where(usable, day, 1))
    seconds = days * 86_400 + hour * 3600 + (minute - offset) * 60 + second
    return pa.array(seconds * 1_000_000 + _integers(fraction), mask=~usable)


def _integers(column: pa.Array) -> np.ndarray:
    filled = pc.if_else(pc.equal(pc.fill_null(column, ""), ""), "0", column)
    return np.asarray(filled.cast(pa.int64()))


def _formatted_us(column: pa.Array, time_format: str) -> pa.Array:
    """Convert text in a format of strptime to microseconds. Arrow's own strptime takes 31.02. for 3 March, and knows no fractions."""
    encoded = pc.utf8_trim_whitespace(column).dictionary_encode()
    micros = pa.array([_strptime_us(text, time_format) for text in encoded.dictionary.to_pylist()], pa.int64())
    return micros.take(encoded.indices)


def _strptime_us(text: str, time_format: str) -> int | None:
    try:
        time = dt.datetime.strptime(text, time_format)
    except (ValueError, OverflowError):
        return None
    time = time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time
    return (time - _EPOCH) // dt.timedelta(microseconds=1)


def _add_bounds(profile: TimeProfile, clock: str, values: Sequence[float] | np.ndarray) -> None:
    if len(values):
        profile.bounds[clock] = (float(np.min(values)), float(np.max(values)))
