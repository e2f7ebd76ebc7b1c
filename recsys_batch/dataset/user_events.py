"""What is known of users, brought together once a night by ranges of user_id: the passes of all steps read it by file.

Events are moved once; every pass over users is then a task per range, which reads its users' rows without a shuffle of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.schemas import STRING_MAP, Column, TableSpec
from recsys_batch.tables.list_columns import list_column
from recsys_batch.tables.user_ranges import UserRange, UserSortedFiles, group_boundaries

_USER = Column("user_id", "user_id", "user, as the source names it", nullable=False)

EVENTS = TableSpec(
    "events",
    "interactions in order of user_id",
    (
        _USER,
        Column("item_id", "item_id", "item, as the source names it", nullable=False),
        Column("event_us", pa.int64(), "microseconds since 1970, UTC; null where the source has no time"),
        Column("weight", pa.float32(), "as in interactions"),
        Column("before", pa.bool_(), "whether the night that this one goes on from knew it", nullable=False),
    ),
)
USERS = TableSpec(
    "people",
    "users in order of user_id",
    (
        _USER,
        Column("segment", pa.string(), "as in users"),
        Column("attributes", STRING_MAP, "as in users"),
        Column("in_users", pa.bool_(), "false for who has left the table since", nullable=False),
        Column("segment_before", pa.string(), "in the night that this one goes on from"),
    ),
)
VECTORS = TableSpec(
    "vectors",
    "embeddings that were registered, in order of user_id",
    (_USER, Column("embedding", pa.list_(pa.float32()), "as registered", nullable=False)),
)


@dataclass(frozen=True)
class UserEvents:
    """Rows of everybody, or of the users whom an incremental night computes again.

    Attributes:
        bounds: ranges of about equal work, for a pass over everybody.
        people: None where there is no users table; vectors: None unless embeddings were brought.
    """

    bounds: Sequence[UserRange]
    events: UserSortedFiles
    people: UserSortedFiles | None
    vectors: UserSortedFiles | None

    def positives(self, bounds: UserRange, min_weight: float) -> pa.Table:
        """user_id, item_id, event_us, weight, before: events that count as taken."""
        events = self.events.between(bounds)
        return events.filter(pc.greater(events["weight"], min_weight)).combine_chunks()

    def seen(self, bounds: UserRange) -> pa.Table:
        """user_id, item_id of every event."""
        return self.events.between(bounds, ["user_id", "item_id"])

    def profiles(self, bounds: UserRange) -> pa.Table:
        """user_id, segment, attributes of who is in users."""
        if self.people is None:
            kinds = [self.events.where.schema.field("user_id"), *(USERS.columns[place].arrow(self.events.where.ids) for place in (1, 2))]
            return pa.schema(kinds).empty_table()
        people = self.people.between(bounds)
        return people.filter(people["in_users"]).select(["user_id", "segment", "attributes"]).combine_chunks()

    def known_users(
        self, embeddings: UserSortedFiles, bounds: UserRange, n_rows: int, among: pa.Array | None = None
    ) -> Iterator[pa.RecordBatch]:
        """user_id, embedding or null, seen (item_ids or null), segment or null: whoever has an embedding, an event or a row in users.

        Args:
            embeddings: rows of user_embeddings.
            among: only these users; who has an embedding may not have been gathered.
        """
        seen, profiles, vectors = self.seen(bounds), self.profiles(bounds), embeddings.between(bounds, ["user_id", "embedding"])
        owners, starts = group_boundaries(seen["user_id"].combine_chunks())
        found = [vectors["user_id"], profiles["user_id"], pa.chunked_array([owners])]
        users = pa.chunked_array([chunk for column in found for chunk in column.chunks], owners.type).unique().sort()
        if among is not None:
            users = users.filter(pc.is_in(users, value_set=among))
        lengths = np.zeros(len(users), dtype=np.int64)
        place = np.asarray(pc.fill_null(pc.index_in(owners, value_set=users), -1))
        lengths[place[place >= 0]] = np.diff(starts)[place >= 0]
        items = list_column(seen["item_id"].combine_chunks().filter(pa.array(np.repeat(place >= 0, np.diff(starts)))), _offsets(lengths))
        columns = [users, _of(users, vectors, "embedding"), items, _of(users, profiles, "segment")]
        yield from pa.Table.from_arrays(columns, names=["user_id", "embedding", "seen", "segment"]).to_batches(n_rows)


def _of(users: pa.Array, table: pa.Table, name: str) -> pa.Array:
    """The column's value of each user, null where the table has none."""
    return table[name].combine_chunks().take(pc.index_in(users, value_set=table["user_id"].combine_chunks()))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])
