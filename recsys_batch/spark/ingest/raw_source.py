"""RawSource, which every format's reader returns for validation: our column names, raw values and the row as JSON."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.errors import SourceError

RAW_ROW = "_row"
CORRUPT = "_corrupt"
"""Text of a line with too few or too many fields; null otherwise."""

_DELIMITERS = {",": "','", ";": "';'", "\t": "$'\\t'", "|": "'|'"}
_MAX_SHOWN = 20


@dataclass(frozen=True)
class RawSource:
    """DataFrames of a source with our column names, as far as it has them, raw values, ``_row`` (JSON) and ``_corrupt``.

    Items and users have unmapped columns in ``attributes`` (MAP<STRING,STRING>). Interactions of feedback files also have
    request_id; exposures have one row per request and item.
    """

    interactions: DataFrame | None
    items: DataFrame | None = None
    users: DataFrame | None = None
    exposures: DataFrame | None = None


def add_raw_row(df: DataFrame) -> DataFrame:
    """Add ``_row``, the source row as JSON (for a malformed line its text as ``_line``), and ``_corrupt`` where it is missing."""
    df = df if CORRUPT in df.columns else df.withColumn(CORRUPT, F.lit(None).cast("string"))
    row = F.to_json(F.struct(*(quoted_column(name) for name in df.columns if name != CORRUPT)))
    line = F.to_json(F.struct(F.col(CORRUPT).alias("_line")))
    return df.withColumn(RAW_ROW, F.when(F.col(CORRUPT).isNotNull(), line).otherwise(row))


def build_attributes(values: Mapping[str, Column]) -> Column:
    """Build a MAP<STRING,STRING> of the values that are neither null nor blank."""
    entries = F.create_map(*(part for name, value in values.items() for part in (F.lit(name), F.trim(value.cast("string")))))
    return F.map_filter(entries, lambda _, value: value.isNotNull() & (value != ""))


def quoted_column(name: str) -> Column:
    """Quote a column name, so that dots and backticks in it are taken literally."""
    return F.col("`" + name.replace("`", "``") + "`")


def resolve_columns(
    df: DataFrame, path: str, known: Sequence[str], required: Sequence[str], mapping: Mapping[str, str] | None = None, option: str = ""
) -> dict[str, str]:
    """Map our column names to those of the source, for the columns that the source has.

    Args:
        known: our column names that can be mapped.
        required: our column names that must be present.
        mapping: our name -> the source's where they differ.
        option: command-line option of the mapping, for error texts.

    Raises:
        SourceError: a mapped or required column is missing, or the mapping has a key that is not in ``known``.
    """
    mapping = mapping or {}
    present = [name for name in df.columns if name not in (RAW_ROW, CORRUPT)]
    unknown = [ours for ours in mapping if ours not in known]
    if unknown:
        raise SourceError(f"{option} names {', '.join(unknown)}; what can be mapped is {', '.join(known)}")
    sources = {ours: mapping.get(ours, ours) for ours in known if ours in mapping or ours in present}
    missing = [theirs for theirs in sources.values() if theirs not in present] + [name for name in required if name not in sources]
    if not missing:
        return sources
    if len(present) == 1:
        delimiter = next((character for character in _DELIMITERS if character in present[0]), None)
        if delimiter is not None:
            raise SourceError(
                f"{path} was read as one column, {present[0]!r}: the delimiter looks wrong, pass --delimiter {_DELIMITERS[delimiter]}"
            )
    folded = {name.casefold(): name for name in present}
    close = difflib.get_close_matches(missing[0].casefold(), folded, n=1)
    has_numbers_only = all(re.fullmatch(r"[\d.:T -]+", name) for name in present)
    hint = f" Did you mean {folded[close[0]]}?" if close else " Is the first line a header?" if has_numbers_only else ""
    ours = next((name for name, theirs in sources.items() if theirs == missing[0]), missing[0])
    hint += f" Map yours with {option} {ours}=YOUR_COLUMN." if option else ""
    shown = ", ".join(present[:_MAX_SHOWN]) + (f" and {len(present) - _MAX_SHOWN} more" if len(present) > _MAX_SHOWN else "")
    raise SourceError(f"{path} has no column {', '.join(missing)}; it has {shown}.{hint}")
