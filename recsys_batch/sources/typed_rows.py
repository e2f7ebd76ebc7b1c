"""Raw rows to rows of interactions, items and users, each with the first reason why it cannot be used."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.schemas import STRING_MAP, TIMESTAMP, IdTypes
from recsys_batch.sources import values
from recsys_batch.sources.column_mapping import map_columns
from recsys_batch.sources.parquet_rows import plain
from recsys_batch.sources.raw_rows import RawRows
from recsys_batch.sources.source_format import KEY_OF_KIND, SourceFormat
from recsys_batch.sources.timestamps import parse_times, to_utc_dates
from recsys_batch.sources.values import is_missing, null_array, to_text
from recsys_batch.tables.tombstones import ERASED, Tombstones

REASON = "_reason"
FILE, POSITION, ROW = "_file", "_position", "_row"
"""Where a row is: the number of its file, its place there; and the row as JSON, where it is not read again from its file."""

UPDATED = "_updated"
MAX_FUTURE_DAYS = 1


@dataclass(frozen=True)
class ParseSettings:
    """Settings with which raw rows of one source become typed rows.

    Attributes:
        kind: interactions, items or users. clocks: our time column -> its clock, see ``timestamps``; a missing one is read value by value.
        newest: events after it are in the future; None: none is. tombstones: of erased users; None: nobody was erased.
    """

    kind: str
    how: SourceFormat
    ids: IdTypes
    clocks: Mapping[str, str] = field(default_factory=dict)
    newest: dt.datetime | None = None
    tombstones: Tombstones | None = None


def parse_rows(raw: RawRows, settings: ParseSettings) -> pa.Table:
    """Parse raw rows of any kind; the columns are those of ``typed_schema`` without file, position and row."""
    parse = {"interactions": _parse_interactions, "items": _parse_items, "users": _parse_users}[settings.kind]
    rows = parse(_OurColumns(raw, settings), settings)
    return mark_erased(rows, lambda refused: raw.take(refused).to_json(), settings.tombstones)


def mark_erased(rows: pa.Table, spell: Callable[[np.ndarray], pa.Array], tombstones: Tombstones | None) -> pa.Table:
    """Give the rows of erased users the reason ERASED, also rows that are refused and name one: these would go to ``rejected``.

    Args:
        spell: gives the raw text of the rows at some places. tombstones: None where nobody was erased.
    """
    if tombstones is None or "user_id" not in rows.column_names or rows.num_rows == 0:
        return rows
    erased = np.array(tombstones.matches(rows["user_id"].combine_chunks()), dtype=bool)
    refused = np.flatnonzero(np.asarray(rows[REASON].is_valid()) & ~erased)
    erased[refused] = np.asarray(tombstones.matches_rows(spell(refused)))
    reason = pc.if_else(pa.array(erased), pa.scalar(ERASED), rows[REASON].combine_chunks())
    return rows.set_column(rows.column_names.index(REASON), rows.schema.field(REASON), reason)


def first_reason(reasons: Sequence[tuple[pa.Array, str]]) -> pa.Array:
    """Select the first reason whose condition (bool [n], null is false) holds of each row; null where none does."""
    first = null_array(len(reasons[0][0]), pa.string())
    for condition, name in reversed(reasons):
        first = pc.if_else(pc.fill_null(condition, False), pa.scalar(name), first)
    return first


def typed_schema(kind: str, ids: IdTypes) -> pa.Schema:
    """Make the schema of a kind's typed rows."""
    user, item = pa.field("user_id", ids.user_arrow), pa.field("item_id", ids.item_arrow)
    fields = {
        "interactions": [
            user,
            item,
            pa.field("event_ts", TIMESTAMP),
            pa.field("event_type", pa.string()),
            pa.field("weight", pa.float32()),
            pa.field("event_date", pa.date32()),
            pa.field("request_id", pa.string()),
        ],
        "items": [
            item,
            pa.field("title", pa.string()),
            pa.field("categories", pa.list_(pa.string())),
            pa.field("is_available", pa.bool_()),
            pa.field("first_seen_ts", TIMESTAMP),
            pa.field("attributes", STRING_MAP),
            pa.field(UPDATED, TIMESTAMP),
        ],
        "users": [user, pa.field("segment", pa.string()), pa.field("attributes", STRING_MAP), pa.field(UPDATED, TIMESTAMP)],
    }[kind]
    return pa.schema([*fields, pa.field(REASON, pa.string())])


class _OurColumns:
    """Raw columns by our names, with what is missing in each."""

    def __init__(self, raw: RawRows, settings: ParseSettings) -> None:
        self._raw, self._settings = raw, settings
        self._names = map_columns(list(raw.columns), settings.kind, settings.how.columns)
        self._missing: dict[str, pa.Array] = {}
        self.n = len(raw)
        self.reasons: list[tuple[pa.Array, str]] = [(pc.is_valid(raw.malformed), "malformed_line")]

    def __contains__(self, ours: str) -> bool:
        return ours in self._names

    def __getitem__(self, ours: str) -> pa.Array:
        return plain(self._raw.columns[self._names[ours]])

    def missing(self, ours: str) -> pa.Array:
        """Mask the rows without a value; all where the file lacks the column."""
        if ours not in self._missing:
            absent = pa.array(np.ones(self.n, dtype=bool))
            self._missing[ours] = is_missing(self[ours], self._settings.how.null_values) if ours in self else absent
        return self._missing[ours]

    def ids(self) -> dict[str, pa.Array]:
        """Parse the ids of a kind; rows without them, or with others than the warehouse's type, get their reason."""
        types, how, parsed = {"user_id": self._settings.ids.user, "item_id": self._settings.ids.item}, self._settings.how, {}
        keys = KEY_OF_KIND[self._settings.kind]
        for name in keys:
            column = values.decode_bytes(self[name], how.binary_ids) if name in self else null_array(self.n, pa.string())
            parsed[name] = values.parse_id_column(column, types[name])
            self.reasons.append((self.missing(name), f"null_{name}"))
        self.reasons += [(pc.is_null(parsed[name]), f"bad_{name}") for name in keys]
        return parsed

    def times(self, ours: str, *, required: bool) -> pa.Array:
        """Parse a time column; null where the file lacks it."""
        if ours not in self:
            return null_array(self.n, TIMESTAMP)
        times = parse_times(self[ours], self._settings.clocks.get(ours))
        if required:
            self.reasons.append((self.missing(ours), f"null_{ours}"))
        self.reasons.append((pc.and_(pc.is_null(times), pc.invert(self.missing(ours))), f"bad_{ours}"))
        return times

    def text(self, ours: str) -> pa.Array:
        """Convert a column to text, null where it is missing."""
        return pc.if_else(self.missing(ours), None, to_text(self[ours])) if ours in self else null_array(self.n, pa.string())

    def attributes(self) -> pa.Array:
        """Collect the columns that are not ours into maps, without blanks and words for null."""
        others = [name for name in self._raw.columns if name not in self._names.values() and not self._holds(name)]
        if others == ["attributes"] and pa.types.is_map(self._raw.columns["attributes"].type):
            column = self._raw.columns["attributes"].cast(STRING_MAP)
            return pc.if_else(pc.is_null(column), pa.array([[]], STRING_MAP)[0], column)
        words = self._settings.how.null_values
        texts = [pc.utf8_trim_whitespace(to_text(plain(self._raw.columns[name]))) for name in others]
        present = [~np.asarray(pc.fill_null(is_missing(text, words), True)) for text in texts]
        mask = np.column_stack(present) if others else np.zeros((self.n, 0), dtype=bool)
        rows, columns = np.nonzero(mask)
        flat = pa.concat_arrays(texts) if texts else null_array(0, pa.string())
        offsets = pa.array(np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32))
        keys = pa.array(others, pa.string()).take(pa.array(columns))
        return pa.MapArray.from_arrays(offsets, keys, flat.take(pa.array(columns * self.n + rows)))

    def reason(self) -> pa.Array:
        """Select the first reason that holds of each row; null where none does."""
        return first_reason(self.reasons)

    def _holds(self, name: str) -> bool:
        """Whether a column that is not ours holds one that is, by a path."""
        return any(theirs.startswith(f"{name}.") for theirs in self._names.values())


def _parse_interactions(ours: _OurColumns, settings: ParseSettings) -> pa.Table:
    """Parse interactions: without event_ts every time is null, without weight every weight is 1; event_type defaults to "event"."""
    ids = ours.ids()
    event_ts = ours.times("event_ts", required=True)
    if settings.newest is not None and "event_ts" in ours:
        ours.reasons.append((pc.greater(event_ts, pa.scalar(settings.newest, TIMESTAMP)), "future_event_ts"))
    event_type = ours.text("event_type")
    if settings.how.weights:
        types, weights = list(settings.how.weights), values.parse_number(pa.array(list(settings.how.weights.values()), pa.float64()))
        weight = weights.take(pc.index_in(event_type, value_set=pa.array(types, pa.string())))
        ours.reasons += [(pc.is_null(weight), "unknown_event_type"), (pc.invert(pc.is_finite(weight)), "bad_weight")]
    elif "weight" in ours:
        weight = values.parse_number(ours["weight"])
        ours.reasons.append((pc.invert(pc.fill_null(pc.is_finite(weight), False)), "bad_weight"))
    else:
        weight = pa.repeat(pa.scalar(1.0, pa.float32()), ours.n)
    return pa.table(
        {
            **ids,
            "event_ts": event_ts,
            "event_type": pc.fill_null(event_type, "event"),
            "weight": weight,
            "event_date": to_utc_dates(event_ts),
            "request_id": ours.text("request_id"),
            REASON: ours.reason(),
        },
        schema=typed_schema(settings.kind, settings.ids),
    )


def _parse_items(ours: _OurColumns, settings: ParseSettings) -> pa.Table:
    """Parse items; what is not said of an item is null, no categories, available."""
    ids, available = ours.ids(), pa.array(np.ones(ours.n, dtype=bool))
    if "is_available" in ours:
        flags = values.parse_flag(ours["is_available"])
        ours.reasons.append((pc.and_(pc.is_null(flags), pc.invert(ours.missing("is_available"))), "bad_is_available"))
        available = pc.fill_null(flags, True)
    first_seen = ours.times("first_seen_ts", required=False)
    updated = ours.times("updated_ts", required=False)
    how, categories = settings.how, pa.array([[]] * ours.n, pa.list_(pa.string()))
    if "categories" in ours:
        categories = values.parse_text_lists(ours["categories"], how.category_separator, how.null_values)
    return pa.table(
        {
            **ids,
            "title": ours.text("title"),
            "categories": categories,
            "is_available": available,
            "first_seen_ts": first_seen,
            "attributes": ours.attributes(),
            UPDATED: updated,
            REASON: ours.reason(),
        },
        schema=typed_schema(settings.kind, settings.ids),
    )


def _parse_users(ours: _OurColumns, settings: ParseSettings) -> pa.Table:
    ids = ours.ids()
    updated = ours.times("updated_ts", required=False)
    columns = {**ids, "segment": ours.text("segment"), "attributes": ours.attributes(), UPDATED: updated, REASON: ours.reason()}
    return pa.table(columns, schema=typed_schema(settings.kind, settings.ids))
