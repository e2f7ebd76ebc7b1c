"""Sample of a run's users that a snapshot keeps to be looked at, and their newest items. Reads tables, so a server does not import it."""

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.dataset.histories import build_histories
from recsys_batch.tables.user_ranges import LIST_ROWS, UserSortedFiles, ranges_of_files

N_HISTORY_ITEMS = 20
"""Newest items that are kept of each."""


def select_sample_users(candidates: UserSortedFiles, n: int) -> pa.Array:
    """Select about n users of a run, some of each range, without reading more than its first rows.

    Args:
        candidates: of the run, a row per user.
    """
    bounds = ranges_of_files(candidates.parts)
    share = -(-n // max(len(bounds), 1))
    kind = candidates.where.file_schema.field("user_id").type
    sampled = []
    for one in bounds:
        first = next(candidates.batches(one, ["user_id"], max(LIST_ROWS, share)), None)
        if first is not None:
            rows = np.unique(np.linspace(0, first.num_rows - 1, min(share, first.num_rows)).astype(np.int64))
            sampled.append(first["user_id"].take(pa.array(rows)))
    return pa.chunked_array(sampled, kind).combine_chunks()[:n]


def latest_events(interactions: ds.Dataset, users: pa.Array, catalogue: Catalogue) -> dict[int | str, list[int]]:
    """Read the samples: each of these users' newest items; nobody is left out.

    Args:
        interactions: user_id, item_id, event_ts, weight in any order; read once, of which only these users' rows are held.
    """
    rows = interactions.to_table(columns=["user_id", "item_id", "event_ts", "weight"], filter=ds.field("user_id").isin(users))
    rows = rows.sort_by("user_id").combine_chunks()
    times = rows["event_ts"].cast(pa.timestamp("us", rows.schema.field("event_ts").type.tz)).cast(pa.int64())
    known = build_histories(rows.append_column("event_us", times), catalogue, N_HISTORY_ITEMS)
    newest_codes: dict[int | str, list[int]] = {user: [] for user in users.to_pylist()}
    for row, user in enumerate(known.user_ids.to_pylist()):
        newest_codes[user] = known.codes[known.offsets[row] : known.offsets[row + 1]].tolist()
    return newest_codes
