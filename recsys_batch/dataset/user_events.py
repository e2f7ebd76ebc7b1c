"""Users, their events and registered vectors, gathered once a night in order of user_id.

Events are shuffled once; every pass over users is then a task per range, which reads its users' rows without a shuffle of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.seen_policy import SeenPolicy
from recsys_batch.schemas import STRING_MAP, Column, TableSpec
from recsys_batch.tables.list_columns import flat_positions, list_column
from recsys_batch.tables.user_ranges import UserRange, group_boundaries
from recsys_batch.tables.user_rows import UserSortedSource

_USER_ID = Column("user_id", "user_id", "user, as the source names it", nullable=False)

EVENTS = TableSpec(
    "events",
    "interactions in order of user_id",
    (
        _USER_ID,
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
        _USER_ID,
        Column("segment", pa.string(), "as in users"),
        Column("attributes", STRING_MAP, "as in users"),
        Column("in_users", pa.bool_(), "false for who has left the table since", nullable=False),
        Column("segment_before", pa.string(), "in the night that this one goes on from"),
    ),
)
VECTORS = TableSpec(
    "vectors",
    "embeddings that were registered, in order of user_id",
    (_USER_ID, Column("embedding", pa.list_(pa.float32()), "as registered", nullable=False)),
)


@dataclass(frozen=True)
class UserEvents:
    """Gathered rows of all users, or of the users whom an incremental night computes again.

    Attributes:
        bounds: ranges of about equal work, for a pass over all users.
        users: None where there is no users table; vectors: None unless embeddings were registered.
    """

    bounds: Sequence[UserRange]
    events: UserSortedSource
    users: UserSortedSource | None
    vectors: UserSortedSource | None

    def positives(self, bounds: UserRange, min_weight: float) -> pa.Table:
        """Read a range's positive events: user_id, item_id, event_us, weight, before."""
        events = self.events.between(bounds)
        return events.filter(pc.greater(events["weight"], min_weight)).combine_chunks()

    def seen(self, bounds: UserRange, policy: SeenPolicy) -> pa.Table:
        """Read user_id, item_id of every event of a range that counts as seen."""
        events = self._read_items(bounds, policy)
        if policy.excludes_all:
            return events
        return events.filter(pa.array(_mark_seen(events, self.profiles(bounds), policy))).select(["user_id", "item_id"]).combine_chunks()

    def _read_items(self, bounds: UserRange, policy: SeenPolicy) -> pa.Table:
        """Read user_id, item_id of every event of a range, and event_us where the policy needs it."""
        return self.events.between(bounds, ["user_id", "item_id", *(["event_us"] if policy.needs_times else [])])

    def profiles(self, bounds: UserRange) -> pa.Table:
        """Read user_id, segment, attributes of a range's users who are in the users table."""
        if self.users is None:
            fields = [self.events.where.schema.field("user_id"), *(USERS.columns[column].arrow(self.events.where.ids) for column in (1, 2))]
            return pa.schema(fields).empty_table()
        rows = self.users.between(bounds)
        return rows.filter(rows["in_users"]).select(["user_id", "segment", "attributes"]).combine_chunks()

    def known_users(
        self, embeddings: UserSortedSource, bounds: UserRange, n_rows: int, policy: SeenPolicy, among: pa.Array | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Join what is known of each user of a range who has an embedding, an event or a row in users.

        Yields user_id, embedding (or null), seen (item_ids of the events that count as seen), segment (or null), by user_id, ``n_rows``
        at a time; with ``among`` only these users, as a user with an embedding (a row of user_embeddings) may not have been gathered.
        """
        events, profiles = self._read_items(bounds, policy), self.profiles(bounds)
        vectors = embeddings.between(bounds, ["user_id", "embedding"])
        owners, starts = group_boundaries(events["user_id"].combine_chunks())
        is_seen = _mark_seen(events, profiles, policy)
        id_columns = [vectors["user_id"], profiles["user_id"], pa.chunked_array([owners])]
        users = pa.chunked_array([chunk for column in id_columns for chunk in column.chunks], owners.type).unique().sort()
        if among is not None:
            users = users.filter(pc.is_in(users, value_set=among))
        lengths = np.zeros(len(users), dtype=np.int64)
        positions = flat_positions(owners, users)
        n_seen = np.diff(np.concatenate([[0], np.cumsum(is_seen)])[starts])
        lengths[positions[positions >= 0]] = n_seen[positions >= 0]
        item_ids = events["item_id"].combine_chunks().filter(pa.array(np.repeat(positions >= 0, np.diff(starts)) & is_seen))
        items = list_column(item_ids, np.concatenate([[0], np.cumsum(lengths)]))
        columns = [users, _align_to_users(users, vectors, "embedding"), items, _align_to_users(users, profiles, "segment")]
        yield from pa.Table.from_arrays(columns, names=["user_id", "embedding", "seen", "segment"]).to_batches(n_rows)


def _mark_seen(events: pa.Table, profiles: pa.Table, policy: SeenPolicy) -> np.ndarray:
    """Mark the events that count as seen: bool [n_events]; ``events`` are in order of user_id."""
    if policy.excludes_all:
        return np.ones(len(events), dtype=bool)
    owners, starts = group_boundaries(events["user_id"].combine_chunks())
    owner = np.repeat(np.arange(len(owners)), np.diff(starts))
    return policy.mark_seen(_align_to_users(owners, profiles, "segment"), owner, events["event_us"] if policy.needs_times else None)


def _align_to_users(users: pa.Array, table: pa.Table, name: str) -> pa.Array:
    """Take a column's value for each user; null where the table lacks the user."""
    return table[name].combine_chunks().take(pc.index_in(users, value_set=table["user_id"].combine_chunks()))
