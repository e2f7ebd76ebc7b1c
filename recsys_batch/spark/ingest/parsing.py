"""Raw values to ids, numbers, times, flags and lists: one Column expression each, null where the text says none of these."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DateType,
    FractionalType,
    IntegralType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from recsys_batch.schemas import IdType

# Epoch numbers by magnitude: seconds reach the year 5138, milliseconds the same, and so on.
_SECONDS, _MILLIS, _MICROS, _NANOS = 1e11, 1e14, 1e17, 1e19
_OLDEST, _NEWEST = "1900-01-01", "2262-01-01"
_TRUE, _FALSE = ("true", "1", "yes", "y", "t"), ("false", "0", "no", "n", "f")
# How databases and pandas write a missing value into text.
_NOTHING = ("", "null", "NULL", "nan", "NaN", "None", r"\N")
# Casting alone takes Java's "5f" and "1.5d" for numbers, and "12:30" for a time of today.
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_DATED = r"^\d{4}[-/]\d{1,2}([-/ T]|$)"
_COMPACT_DATE = r"^(19|20)\d{6}$"


def is_blank(name: str) -> Column:
    """Whether the value is missing: null, NaN, only spaces, or a word that stands for null."""
    return F.col(name).isNull() | F.trim(F.col(name).cast("string")).isin(*_NOTHING)


def is_foreign_to_bigint(raw: DataFrame, name: str) -> Column:
    """Whether a value that is not missing needs STRING ids: everything but integers, and text like "7" (not "007" or "+7")."""
    kind = raw.schema[name].dataType
    if isinstance(kind, NumericType):
        return F.lit(False)
    if not isinstance(kind, StringType):
        return ~is_blank(name)
    return ~is_blank(name) & parse_id_column(raw, name, "BIGINT").isNull()


def parse_id_column(raw: DataFrame, name: str, id_type: IdType) -> Column:
    """The id in the warehouse's type, or null where it does not fit."""
    value, kind = F.col(name), raw.schema[name].dataType
    # A frame with missing ids often has them as doubles: 7.0 is the id 7, 7.5 is none.
    whole = F.when(value.cast("double") == F.floor(value.cast("double")), value.try_cast("bigint"))
    if id_type == "STRING":
        return F.coalesce(whole.cast("string"), value.cast("string")) if isinstance(kind, FractionalType) else value.cast("string")
    if isinstance(kind, StringType):
        return F.when(value.try_cast("bigint").cast("string") == value, value.try_cast("bigint"))
    return whole if isinstance(kind, NumericType) else value.cast("string").try_cast("bigint")


def parse_number(raw: DataFrame, name: str) -> Column:
    """FLOAT, or null where the value is no number; NaN and infinity stay what they are."""
    value = F.col(name)
    if isinstance(raw.schema[name].dataType, NumericType):
        return value.try_cast("float")
    text = F.trim(value.cast("string"))
    return F.when(text.rlike(_NUMBER), text.try_cast("float"))


def parse_timestamp(raw: DataFrame, name: str) -> Column:
    """UTC time of timestamps, dates, ISO text (also with slashes), yyyymmdd, and epoch seconds, milli-, micro- or nanoseconds.

    Epoch numbers are told apart by magnitude. Null where the value is none of these, or outside the years 1900 to 2261.
    """
    value, kind = F.col(name), raw.schema[name].dataType
    if isinstance(kind, TimestampType | TimestampNTZType | DateType):
        stamp = value.cast("timestamp")
    elif isinstance(kind, NumericType):
        text = value.cast("string") if isinstance(kind, IntegralType) else F.lit("")
        stamp = F.when(text.rlike(_COMPACT_DATE), _compact_date(text)).otherwise(_epoch(value.cast("double")))
    else:
        text = F.trim(value.cast("string"))
        day = F.when(text.rlike(_COMPACT_DATE), _compact_date(text))
        epoch = day.when(text.rlike(_NUMBER), _epoch(text.try_cast("double")))
        stamp = epoch.when(text.rlike(_DATED), F.translate(text, "/", "-").try_cast("timestamp"))
    return F.when((stamp >= F.lit(_OLDEST).cast("timestamp")) & (stamp < F.lit(_NEWEST).cast("timestamp")), stamp)


def parse_flag(raw: DataFrame, name: str) -> Column:
    """BOOLEAN of booleans and of true/false, yes/no, 1/0 in any case; null for anything else."""
    if isinstance(raw.schema[name].dataType, BooleanType):
        return F.col(name)
    text = F.lower(F.trim(F.col(name).cast("string")))
    return F.when(text.isin(*_TRUE), F.lit(True)).when(text.isin(*_FALSE), F.lit(False))


def parse_text_list(raw: DataFrame, name: str) -> Column:
    """ARRAY<STRING>: a list as it is, text split at | ; blanks leave no entry, null is an empty list."""
    value = F.col(name)
    if not isinstance(raw.schema[name].dataType, ArrayType):
        value = F.split(value.cast("string"), r"\|")
    trimmed = F.transform(value, lambda part: F.trim(part.cast("string")))
    return F.coalesce(F.filter(trimmed, lambda part: part.isNotNull() & (part != "")), F.array().cast("array<string>"))


def _compact_date(text: Column) -> Column:
    """20210305 as that day: read as seconds it would be a day in 1970, which nobody means."""
    return F.try_to_timestamp(text, F.lit("yyyyMMdd"))


def _epoch(number: Column) -> Column:
    magnitude = F.abs(number)
    seconds = F.when(magnitude < _SECONDS, number).when(magnitude < _MILLIS, number / 1e3)
    seconds = seconds.when(magnitude < _MICROS, number / 1e6).otherwise(number / 1e9)
    return F.when(magnitude < _NANOS, F.timestamp_micros(F.round(seconds * 1e6).cast("bigint")))
