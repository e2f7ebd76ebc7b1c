"""Survey of a source in one pass over all its files, before any row is parsed: columns, id types, clocks, what cannot be read."""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.errors import SourceError
from recsys_batch.schemas import IdType
from recsys_batch.sources import values
from recsys_batch.sources.column_mapping import map_columns
from recsys_batch.sources.parquet_rows import plain
from recsys_batch.sources.raw_rows import RawRows
from recsys_batch.sources.source_format import KEY_OF_KIND, TIMES_OF_KIND, SourceFormat
from recsys_batch.sources.timestamps import NAMES, TimeProfile, parse_time_format, profile_times

_MAX_TYPES = 200
_TIMES = {name for names in TIMES_OF_KIND.values() for name in names}


@dataclass
class Survey:
    """Facts of a source, or of a part of it; parts add up.

    Attributes:
        n_rows: rows, malformed lines included. n_present, n_string: id column -> present values, and those that need STRING.
        times: our time column -> its values. event_types: type -> rows, of the first types seen.
        files: (columns, types by our name) -> numbers of the files that have them.
    """

    n_rows: int = 0
    n_malformed: int = 0
    n_present: Counter[str] = field(default_factory=Counter)
    n_string: Counter[str] = field(default_factory=Counter)
    times: dict[str, TimeProfile] = field(default_factory=dict)
    event_types: Counter[str] = field(default_factory=Counter)
    files: dict[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], list[int]] = field(default_factory=dict)

    def add(self, other: "Survey") -> None:
        """Add the facts of another part."""
        self.n_rows += other.n_rows
        self.n_malformed += other.n_malformed
        self.n_present += other.n_present
        self.n_string += other.n_string
        for name, profile in other.times.items():
            self.times.setdefault(name, TimeProfile()).add(profile)
        self.event_types += other.event_types
        for key, numbers in other.files.items():
            self.files[key] = sorted({*self.files.get(key, []), *numbers})

    def to_json(self) -> dict[str, Any]:
        """Make plain values of it."""
        return {
            "n_rows": self.n_rows,
            "n_malformed": self.n_malformed,
            "n_present": dict(self.n_present),
            "n_string": dict(self.n_string),
            "times": {name: profile.to_json() for name, profile in self.times.items()},
            "event_types": dict(self.event_types),
            "files": [[list(columns), list(types), numbers] for (columns, types), numbers in self.files.items()],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Survey":
        """Read what ``to_json`` made."""
        files = {
            (tuple(columns), tuple((name, kind) for name, kind in types)): list(numbers) for columns, types, numbers in document["files"]
        }
        return cls(
            document["n_rows"],
            document["n_malformed"],
            Counter(document["n_present"]),
            Counter(document["n_string"]),
            {name: TimeProfile.from_json(profile) for name, profile in document["times"].items()},
            Counter(document["event_types"]),
            files,
        )

    @property
    def columns(self) -> list[str]:
        """Names of the columns that some file has, in the order of the files."""
        return list(dict.fromkeys(name for columns, _ in self.files for name in columns))

    def id_type(self, name: str) -> IdType | None:
        """Choose the type that an id column needs; None without a value."""
        return None if not self.n_present[name] else "STRING" if self.n_string[name] else "BIGINT"

    def choose_clocks(self, how: SourceFormat) -> dict[str, str]:
        """Choose the clock of each time column: the one that was set, else the one that most of its values are of."""
        chosen = parse_time_format(how.time_format)
        return {name: chosen or profile.choose_clock() for name, profile in self.times.items()}

    def span(self, name: str, clock: str) -> tuple[dt.datetime, dt.datetime] | None:
        """Compute the span of a time column by its clock; None where there is none, or it is not known before rows are parsed."""
        return self.times[name].span(clock) if name in self.times else None


def survey_rows(raw: RawRows, kind: str, how: SourceFormat) -> Survey:
    """Survey a batch of rows of one file. Raises SourceError where ids are bytes that cannot become text."""
    names = map_columns(list(raw.columns), kind, how.columns)
    survey = Survey(n_rows=len(raw), n_malformed=len(raw) - raw.malformed.null_count)
    for ours, theirs in names.items():
        column = plain(raw.columns[theirs])
        if ours in KEY_OF_KIND[kind]:
            try:
                column = values.decode_bytes(column, how.binary_ids)
            except ValueError as error:
                problem = "holds bytes that are no UTF-8" if isinstance(error, UnicodeDecodeError) else f"holds {error}"
                raise SourceError(f"column {theirs} {problem}") from None
            missing = values.is_missing(column, how.null_values)
            survey.n_present[ours] = len(column) - int(np.count_nonzero(np.asarray(missing)))
            survey.n_string[ours] = int(np.count_nonzero(np.asarray(values.needs_string_id(column, missing).fill_null(False))))
        elif ours in TIMES_OF_KIND[kind]:
            survey.times[ours] = profile_times(column, values.is_missing(column, how.null_values))
        elif ours == "event_type" and how.weights:
            counts = pc.value_counts(values.to_text(column).drop_null()).to_pylist()
            survey.event_types = Counter({entry["values"]: entry["counts"] for entry in counts[:_MAX_TYPES]})
    return survey


def resolve_types(survey: Survey, file_names: Mapping[int, str]) -> None:
    """Check that each column of ours can be read as one in all files. Raises SourceError with the file and both types."""
    first: dict[str, tuple[str, int]] = {}
    for (_, types), numbers in sorted(survey.files.items(), key=lambda entry: entry[1]):
        for ours, kind in types:
            if _family(kind) is None:
                continue
            earlier, number = first.setdefault(ours, (kind, numbers[0]))
            if not _is_compatible(ours, _family(earlier), _family(kind)):
                raise SourceError(
                    f"column for {ours} is {kind} in {file_names[numbers[0]]} and {earlier} in {file_names[number]}: "
                    "these cannot be read as one column, write the files again with one type or ingest them apart"
                )


def describe_clock(name: str, clock: str, survey: Survey) -> str:
    """Say by which clock a column is read, for the summary."""
    how = NAMES.get(clock, f"text of the format {clock}")
    cut = survey.times[name].n_cut
    return f"{name} is read as {how}" + (f"; {cut:,} of them had nanoseconds, which are cut to microseconds" if cut else "")


def _family(kind: str) -> str | None:
    if kind == "null":
        return None
    if kind.startswith(("int", "uint", "float", "double", "halffloat", "decimal")):
        return "number"
    if kind.startswith(("string", "large_string", "dictionary")):
        return "text"
    if kind.startswith(("timestamp", "date")):
        return "time"
    return kind.partition("<")[0].partition("[")[0]


def _is_compatible(ours: str, earlier: str | None, kind: str | None) -> bool:
    if earlier == kind or ours == "is_available":
        return True
    if ours in _TIMES:
        return False
    return {earlier, kind} in ({"number", "text"}, {"text", "list"})


def count_missing(survey: Survey, kind: str, how: SourceFormat, file_names: Mapping[int, str]) -> dict[str, list[str]]:
    """List the files that lack a column which others have, by our name."""
    found = [(map_columns(columns, kind, how.columns), numbers) for (columns, _), numbers in survey.files.items()]
    known = dict.fromkeys(name for names, _ in found for name in names)
    missing = {name: sorted(number for names, numbers in found if name not in names for number in numbers) for name in known}
    return {name: [file_names[number] for number in numbers] for name, numbers in missing.items() if numbers}


def column_types(kind: str, how: SourceFormat, schema: Mapping[str, pa.DataType]) -> tuple[tuple[str, str], ...]:
    """Name the types of our columns in a file."""
    names = map_columns(list(schema), kind, how.columns)
    return tuple((ours, str(schema[theirs])) for ours, theirs in names.items())


def merge_surveys(parts: Sequence[Survey]) -> Survey:
    """Add up the surveys of a source's parts."""
    whole = Survey()
    for part in parts:
        whole.add(part)
    return whole
