"""Parse raw values into ids, numbers, timestamps, flags and lists: Column expressions, null where a value cannot be parsed."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from recsys_batch.schemas import IdType

# Upper bounds of epoch numbers by unit; in each unit they reach the year 5138.
_MAX_SECONDS, _MAX_MILLIS, _MAX_MICROS, _MAX_NANOS = 1e11, 1e14, 1e17, 1e19
_OLDEST, _NEWEST = "1900-01-01", "2262-01-01"
_TRUE, _FALSE = ("true", "1", "yes", "y", "t"), ("false", "0", "no", "n", "f")
# Spellings of a missing value in text, by databases and pandas.
_NULL_WORDS = ("", "null", "NULL", "nan", "NaN", "None", r"\N")
# A cast alone accepts Java's "5f" and "1.5d" as numbers, and "12:30" as a time of today.
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_DATE_PREFIX = r"^\d{4}[-/]\d{1,2}([-/ T]|$)"
_COMPACT_DATE = r"^(19|20)\d{6}$"


def is_blank(name: str) -> Column:
    """Test whether a value is missing: null, NaN, only spaces, or a word for null."""
    return F.col(name).isNull() | F.trim(F.col(name).cast("string")).isin(*_NULL_WORDS)


def needs_string_id(raw: DataFrame, name: str) -> Column:
    """Test whether a present value needs STRING ids: everything but integers and text like "7" (not "007" or "+7")."""
    kind = raw.schema[name].dataType
    if isinstance(kind, T.NumericType):
        return F.lit(False)
    if not isinstance(kind, T.StringType):
        return ~is_blank(name)
    return ~is_blank(name) & parse_id_column(raw, name, "BIGINT").isNull()


def parse_id_column(raw: DataFrame, name: str, id_type: IdType) -> Column:
    """Parse an id into the warehouse's type; null where it does not fit."""
    value, kind = F.col(name), raw.schema[name].dataType
    # Data frames with missing ids often store ids as doubles: 7.0 is the id 7, 7.5 is no id.
    whole = F.when(value.cast("double") == F.floor(value.cast("double")), value.try_cast("bigint"))
    if id_type == "STRING":
        return F.coalesce(whole.cast("string"), value.cast("string")) if isinstance(kind, T.FractionalType) else value.cast("string")
    if isinstance(kind, T.StringType):
        return F.when(value.try_cast("bigint").cast("string") == value, value.try_cast("bigint"))
    return whole if isinstance(kind, T.NumericType) else value.cast("string").try_cast("bigint")


def parse_number(raw: DataFrame, name: str) -> Column:
    """Parse a FLOAT; null where the value is no number. NaN and infinity are kept."""
    value = F.col(name)
    if isinstance(raw.schema[name].dataType, T.NumericType):
        return value.try_cast("float")
    text = F.trim(value.cast("string"))
    return F.when(text.rlike(_NUMBER), text.try_cast("float"))


def parse_timestamp(raw: DataFrame, name: str) -> Column:
    """Parse a UTC timestamp from timestamps, dates, ISO text (also with slashes), yyyymmdd and epoch numbers.

    Epoch seconds, milli-, micro- and nanoseconds differ by magnitude. Null where a value is none of these, or outside the years
    1900 to 2261.
    """
    value, kind = F.col(name), raw.schema[name].dataType
    if isinstance(kind, T.TimestampType | T.TimestampNTZType | T.DateType):
        timestamp = value.cast("timestamp")
    elif isinstance(kind, T.NumericType):
        text = value.cast("string") if isinstance(kind, T.IntegralType) else F.lit("")
        timestamp = F.when(text.rlike(_COMPACT_DATE), _compact_date(text)).otherwise(_epoch(value.cast("double")))
    else:
        text = F.trim(value.cast("string"))
        day = F.when(text.rlike(_COMPACT_DATE), _compact_date(text))
        timestamp = day.when(text.rlike(_NUMBER), _epoch(text.try_cast("double")))
        timestamp = timestamp.when(text.rlike(_DATE_PREFIX), F.translate(text, "/", "-").try_cast("timestamp"))
    return F.when((timestamp >= F.lit(_OLDEST).cast("timestamp")) & (timestamp < F.lit(_NEWEST).cast("timestamp")), timestamp)


def parse_flag(raw: DataFrame, name: str) -> Column:
    """Parse a BOOLEAN from booleans and from true/false, yes/no, 1/0 in any case; null for anything else."""
    if isinstance(raw.schema[name].dataType, T.BooleanType):
        return F.col(name)
    text = F.lower(F.trim(F.col(name).cast("string")))
    return F.when(text.isin(*_TRUE), F.lit(True)).when(text.isin(*_FALSE), F.lit(False))


def parse_text_list(raw: DataFrame, name: str) -> Column:
    """Parse an ARRAY<STRING>: lists stay, text is split at |, blanks are dropped, null becomes an empty list."""
    value = F.col(name)
    if not isinstance(raw.schema[name].dataType, T.ArrayType):
        value = F.split(value.cast("string"), r"\|")
    trimmed = F.transform(value, lambda part: F.trim(part.cast("string")))
    return F.coalesce(F.filter(trimmed, lambda part: part.isNotNull() & (part != "")), F.array().cast("array<string>"))


def _compact_date(text: Column) -> Column:
    """Parse 20210305 as that day and not as epoch seconds, which would be a day in 1970."""
    return F.try_to_timestamp(text, F.lit("yyyyMMdd"))


def _epoch(number: Column) -> Column:
    magnitude = F.abs(number)
    seconds = F.when(magnitude < _MAX_SECONDS, number).when(magnitude < _MAX_MILLIS, number / 1e3)
    seconds = seconds.when(magnitude < _MAX_MICROS, number / 1e6).otherwise(number / 1e9)
    return F.when(magnitude < _MAX_NANOS, F.timestamp_micros(F.round(seconds * 1e6).cast("bigint")))
