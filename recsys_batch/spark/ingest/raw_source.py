"""A source as it came: our column names, raw values, the row itself as JSON; what every format's reader gives to the validation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.errors import SourceError

RAW_ROW = "_row"
CORRUPT = "_corrupt"
"""Holds the text of a line with too few or too many fields; null everywhere else."""

_DELIMITERS = {",": "','", ";": "';'", "\t": "$'\\t'", "|": "'|'"}
_SHOWN_COLUMNS = 20


@dataclass(frozen=True)
class RawSource:
    """DataFrames with our column names (those that the source has), raw values, ``_row`` (JSON) and ``_corrupt``.

    Items and users carry unmapped columns, where there are any, in ``attributes`` (MAP<STRING,STRING>). Interactions of feedback
    files have request_id besides, and exposures are one row per request and item.
    """

    interactions: DataFrame | None
    items: DataFrame | None = None
    users: DataFrame | None = None
    exposures: DataFrame | None = None


def with_raw_row(df: DataFrame) -> DataFrame:
    """Adds ``_row``, the row as it came as JSON (of a malformed line all of it, as ``_line``), and ``_corrupt`` where it is missing."""
    df = df if CORRUPT in df.columns else df.withColumn(CORRUPT, F.lit(None).cast("string"))
    row = F.to_json(F.struct(*(column_named(name) for name in df.columns if name != CORRUPT)))
    line = F.to_json(F.struct(F.col(CORRUPT).alias("_line")))
    return df.withColumn(RAW_ROW, F.when(F.col(CORRUPT).isNotNull(), line).otherwise(row))


def attributes_of(values: Mapping[str, Column]) -> Column:
    """MAP<STRING,STRING> of the values that are neither null nor blank."""
    entries = F.create_map(*(part for name, value in values.items() for part in (F.lit(name), F.trim(value.cast("string")))))
    return F.map_filter(entries, lambda _, value: value.isNotNull() & (value != ""))


def column_named(name: str) -> Column:
    """The column of exactly this name, dots and backticks included."""
    return F.col("`" + name.replace("`", "``") + "`")


def resolve_columns(
    df: DataFrame,
    path: str,
    known: Sequence[str],
    required: Sequence[str],
    mapping: Mapping[str, str] | None = None,
    option: str = "",
) -> dict[str, str]:
    """Our name -> the source's, for the columns that are there.

    Args:
        mapping: our name -> the source's where they differ.
        option: the command line's option that the mapping comes from.

    Raises:
        SourceError: a mapped or required column is missing, or the mapping has a name that is none of ours.
    """
    mapping = mapping or {}
    there = [name for name in df.columns if name not in (RAW_ROW, CORRUPT)]
    foreign = [ours for ours in mapping if ours not in known]
    if foreign:
        raise SourceError(f"{option} names {', '.join(foreign)}; what can be mapped is {', '.join(known)}")
    sources = {ours: mapping.get(ours, ours) for ours in known if ours in mapping or ours in there}
    missing = [theirs for theirs in sources.values() if theirs not in there] + [name for name in required if name not in sources]
    if not missing:
        return sources
    if len(there) == 1:
        other = next((sign for sign in _DELIMITERS if sign in there[0]), None)
        if other is not None:
            raise SourceError(
                f"{path} was read as one column, {there[0]!r}: the delimiter looks wrong, pass --delimiter {_DELIMITERS[other]}"
            )
    folded = {name.casefold(): name for name in there}
    near = difflib.get_close_matches(missing[0].casefold(), folded, n=1)
    hint = f" Did you mean {folded[near[0]]}?" if near else " Is the first line a header?" if all(map(_is_number, there)) else ""
    ours = next((name for name, theirs in sources.items() if theirs == missing[0]), missing[0])
    hint += f" Map yours with {option} {ours}=YOUR_COLUMN." if option else ""
    shown = ", ".join(there[:_SHOWN_COLUMNS]) + (f" and {len(there) - _SHOWN_COLUMNS} more" if len(there) > _SHOWN_COLUMNS else "")
    raise SourceError(f"{path} has no column {', '.join(missing)}; it has {shown}.{hint}")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[\d.:T -]+", text) is not None
