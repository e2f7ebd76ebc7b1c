"""Items that users had before a run, which its lists could not hold. No JVM."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.seen_policy import SeenPolicy
from recsys_batch.read import read_table, user_segments
from recsys_batch.tables.list_columns import flat_positions
from recsys_batch.tables.run_manifest import Run


@dataclass(frozen=True)
class SeenPairs:
    """Pairs of users and items that they had seen; may repeat.

    Attributes:
        owner: int64 [n], places of users. item_ids: [n].
        n_events: of these users, whether they count as seen or not.
    """

    owner: np.ndarray
    item_ids: pa.ChunkedArray
    n_events: int


def read_seen_pairs(warehouse: str, run: Run, users: pa.Array, policy: SeenPolicy, where: pc.Expression | None = None) -> SeenPairs:
    """Read what ``users`` had seen by the interactions that a run read; ``where`` has to hold for all of theirs."""
    version, times = run.input_versions["interactions"], ["event_ts"] if policy.needs_times else []
    events = read_table(warehouse, "interactions", columns=["user_id", "item_id", *times], where=where, version=version)
    owner = flat_positions(events["user_id"], users)
    is_seen = owner >= 0
    n_events = int(np.count_nonzero(is_seen))
    if not policy.excludes_all:
        event_us = pc.cast(pc.cast(events["event_ts"], pa.timestamp("us", "UTC")), pa.int64()).filter(pa.array(is_seen)) if times else None
        is_seen[is_seen] = policy.mark_seen(_read_segments(warehouse, run, users, policy), owner[is_seen], event_us)
    return SeenPairs(owner[is_seen], events["item_id"].filter(pa.array(is_seen)), n_events)


def _read_segments(warehouse: str, run: Run, users: pa.Array, policy: SeenPolicy) -> pa.Array:
    """Read the users' segments at the run: string [n_users], null for users without one, and where the policy asks for none."""
    table, names = user_segments(warehouse, run.input_versions.get("users")) if policy.needs_segments else (None, ())
    if table is None:
        return pa.nulls(len(users), pa.string())
    places = table["place"].combine_chunks().take(pc.index_in(users, value_set=table["user_id"].combine_chunks()))
    return pa.array(names, pa.string()).take(places)
