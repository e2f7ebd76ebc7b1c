"""Warm a snapshot before it answers: called by ``SnapshotManager`` in the thread that loads it."""

import datetime as dt
import time
from dataclasses import replace

import numpy as np

from recsys_batch.online.api.encode import encode_answer, to_json
from recsys_batch.online.ranking.ladder import rank
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import decode_record

WARM_REQUESTS = 24
_PAUSE_SECONDS = 0.004
"""Seconds between requests that warm a snapshot: they share the interpreter's lock with those that are answered."""


def warm_up(snapshot: Snapshot, recent: list[RankQuery]) -> None:
    """Answer a request of every kind, and the newest requests, so that the model's first runs, first imports and first reads of pages are
    nobody's request.

    Args:
        recent: queries that were answered lately from the snapshot before.
    """
    records = [snapshot.store.get(key) for key in snapshot.store.sample_keys(WARM_REQUESTS)] if snapshot.store is not None else []
    queries = [replace(query, deadline=None) for query in recent] + _warm_up_queries(snapshot)
    for number in range(max(WARM_REQUESTS, len(queries))):
        query = queries[number % len(queries)]
        record = records[number % len(records)] if records else None
        time.sleep(_PAUSE_SECONDS)
        ranked = rank(snapshot, query, decode_record(record) if record else None, LatencyTracker())
        to_json(encode_answer(ranked, query, snapshot, "warm", ranked.stages))
    for query in _warm_up_queries(snapshot):
        rank(snapshot, query, None, LatencyTracker())


def _warm_up_queries(snapshot: Snapshot) -> list[RankQuery]:
    """Make a request of each kind, about the first items."""
    items = snapshot.items.item_ids(np.arange(min(3, len(snapshot.items))))
    now = dt.datetime.now(dt.UTC)
    plain = RankQuery(user_id=0, k=10)
    full = replace(plain, when=now, device="mobile", session_item_ids=items[:2], exclude_item_ids=items[2:], explain=True)
    return [plain, full, replace(plain, categories=snapshot.items.categories(0) if items else ())]
