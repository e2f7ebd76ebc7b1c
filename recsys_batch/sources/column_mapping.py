"""Which columns of a source are ours: by their names, or as its reader maps them."""

import difflib
import re
from collections.abc import Mapping, Sequence

from recsys_batch.errors import SourceError
from recsys_batch.sources.source_format import COLUMNS_OF_KIND, KEY_OF_KIND, describe_columns

_DELIMITERS = {",": "','", ";": "';'", "\t": "$'\\t'", "|": "'|'"}


def map_columns(present: Sequence[str], kind: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Map our column names to those of a file, for the columns that it has."""
    pairs = ((ours, columns.get(ours, ours)) for ours in COLUMNS_OF_KIND[kind])
    return {ours: theirs for ours, theirs in pairs if theirs in present}


def check_columns(present: Sequence[str], path: str, kind: str, columns: Mapping[str, str], option: str) -> None:
    """Check that a source has the columns that are mapped and required.

    Args:
        present: names of the columns that some file of the source has. option: command-line option of the mapping, for error texts.

    Raises:
        SourceError: a mapped or required column is missing, or the mapping has a name that is none of ours.
    """
    known = COLUMNS_OF_KIND[kind]
    unknown = [ours for ours in columns if ours not in known]
    if unknown:
        raise SourceError(f"{option} names {', '.join(unknown)}; what can be mapped is {', '.join(known)}")
    wanted = {ours: columns.get(ours, ours) for ours in known if ours in columns or ours in present}
    missing = [theirs for theirs in wanted.values() if theirs not in present] + [name for name in KEY_OF_KIND[kind] if name not in wanted]
    if missing:
        raise SourceError(f"{path} {_describe_missing(missing, wanted, present, option)}")


def _describe_missing(missing: Sequence[str], wanted: Mapping[str, str], present: Sequence[str], option: str) -> str:
    if len(present) == 1:
        delimiter = next((character for character in _DELIMITERS if character in present[0]), None)
        if delimiter is not None:
            return f"was read as one column, {present[0]!r}: the delimiter looks wrong, pass --delimiter {_DELIMITERS[delimiter]}"
    folded = {name.casefold(): name for name in present}
    close = difflib.get_close_matches(missing[0].casefold(), folded, n=1)
    header_hint = " Is the first line a header? --header none says no."
    has_numbers_only = all(re.fullmatch(r"[\d.:T -]+", name) for name in present)
    hint = f" Did you mean {folded[close[0]]}?" if close else header_hint if has_numbers_only else ""
    ours = next((name for name, theirs in wanted.items() if theirs == missing[0]), missing[0])
    hint += f" Map yours with {option} {ours}=YOUR_COLUMN." if option else ""
    return f"has no column {', '.join(missing)}; it has {describe_columns(present)}.{hint}"
