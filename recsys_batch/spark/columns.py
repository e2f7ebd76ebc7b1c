"""Which of a file's columns are ours: by mapping, else by name; and a helpful answer where they are not there."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys_batch.errors import SourceError

_DELIMITERS = {",": "','", ";": "';'", "\t": "$'\\t'", "|": "'|'"}
_SHOWN = 20


@dataclass(frozen=True)
class Wanted:
    """The columns of one kind of row.

    Attributes:
        kind: interactions, items or users.
        option: the command-line option that maps its columns.
        known: every column that may be mapped.
        required: those without which the file cannot be used.
    """

    kind: str
    option: str
    known: tuple[str, ...]
    required: tuple[str, ...]

    def resolve(self, there: Sequence[str], path: str, mapping: Mapping[str, str], delimiter: str | None) -> dict[str, str]:
        """Our name -> the source's, for the columns that are there.

        Args:
            there: the file's columns.
            delimiter: of a CSV file, to recognise that it was the wrong one.

        Raises:
            SourceError: a mapped or required column is missing, or the mapping has a name that is none of ours.
        """
        foreign = [ours for ours in mapping if ours not in self.known]
        if foreign:
            near = _nearest(foreign[0], self.known)
            hint = f" (did you mean {near}?)" if near else ""
            raise SourceError(f"{self.option} names {', '.join(foreign)}{hint}; what can be mapped is {', '.join(self.known)}")
        sources = {ours: mapping.get(ours, ours) for ours in self.known if ours in mapping or ours in there}
        missing = {ours: theirs for ours, theirs in sources.items() if theirs not in there}
        missing |= {ours: ours for ours in self.required if ours not in sources}
        if missing:
            raise SourceError(_other_delimiter(there, path, delimiter) or self._missing(there, path, missing))
        return sources

    def _missing(self, there: Sequence[str], path: str, missing: Mapping[str, str]) -> str:
        near = {ours: _nearest(theirs, there) or _nearest(ours, there) for ours, theirs in missing.items()}
        meant = ",".join(f"{ours}={theirs}" for ours, theirs in near.items() if theirs)
        hint = f"did you mean {self.option} {meant}?" if meant else f"map yours with {self.option} {next(iter(missing))}=YOUR_COLUMN"
        shown = ", ".join(there[:_SHOWN]) + (f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else "")
        return f"{path} has no column {', '.join(missing.values())}; it has {shown}; {hint}"


def _nearest(name: str, among: Sequence[str]) -> str | None:
    """The most similar name, letter case and underscores aside: userId is user_id."""
    plain = {other.lower().replace("_", "").replace(" ", ""): other for other in reversed(among)}
    found = difflib.get_close_matches(name.lower().replace("_", ""), plain, n=1)
    return plain[found[0]] if found else None


def _other_delimiter(there: Sequence[str], path: str, delimiter: str | None) -> str | None:
    if delimiter is None or len(there) != 1:
        return None
    other = next((sign for sign in _DELIMITERS if sign != delimiter and sign in there[0]), None)
    if other is None:
        return None
    return f"{path} was read with delimiter {delimiter!r} and has one column, {there[0]!r}: pass --delimiter {_DELIMITERS[other]}"
