"""Requests that a snapshot answers before it is put in place: to warm it, and to see that it answers.

Called by snapshot_manager.py, in the thread that loads a snapshot, and by activation.py before workers are asked to.
"""

import datetime as dt
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from recsys_batch.online.api.encode import encode_answer, to_json
from recsys_batch.online.api.messages import Bounds
from recsys_batch.online.ranking.ladder import published_order, rank
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import RANKER_FAILED, RankResult
from recsys_batch.online.serving.inspection import describe_item, describe_sample, describe_user
from recsys_batch.online.snapshot.manifest import SnapshotRefused
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_key import user_id_from_key
from recsys_batch.online.snapshot.user_record import UserRecord, decode_record

WARM_REQUESTS = 24
_CHECKED_USERS = 3
_PAUSE_SECONDS = 0.004
"""Seconds between requests that warm a snapshot: they share the interpreter's lock with those that are answered."""


def warm_up(snapshot: Snapshot, recent: list[RankQuery]) -> None:
    """Answer a request of every kind, and the ``recent`` ones of the snapshot before, so that the model's first runs, first imports and
    first reads of pages are nobody's request.
    """
    records = [record for _, record in stored_records(snapshot, WARM_REQUESTS)]
    queries = [replace(query, deadline=None) for query in recent] + _queries_of_each_kind(snapshot)
    for number in range(max(WARM_REQUESTS, len(queries))):
        query = queries[number % len(queries)]
        time.sleep(_PAUSE_SECONDS)
        _answer(snapshot, query, records[number % len(records)] if records else None)


def stored_records(snapshot: Snapshot, n: int) -> list[tuple[int | str, UserRecord]]:
    """Read about n users and their records from the snapshot's own store; none where they are in Redis."""
    if snapshot.store is None:
        return []
    keys = snapshot.store.sample_keys(n)
    return [(user_id_from_key(key, snapshot.ids.user) or 0, decode_record(snapshot.store.get(key) or b"")) for key in keys]


def check_answers(snapshot: Snapshot, users: Sequence[tuple[int | str, UserRecord]]) -> None:
    """Have a snapshot answer every kind of request, about these users, a stranger and an item.

    Raises:
        SnapshotRefused: it fails at one, or its model does.
    """
    for kind, answer in _requests_of_each_kind(snapshot, users[:_CHECKED_USERS]):
        time.sleep(_PAUSE_SECONDS)
        try:
            to_json(answer())
        except Exception as error:  # whatever a request would fail with
            raise SnapshotRefused(f"it does not answer {kind}: {type(error).__name__}: {error}") from None


def _requests_of_each_kind(snapshot: Snapshot, users: Sequence[tuple[int | str, UserRecord]]) -> Iterator[tuple[str, Callable[[], object]]]:
    for query in _queries_of_each_kind(snapshot):
        what = "with a session" if query.session_item_ids else "without a session"
        what += " and a list to rank" if query.candidate_item_ids else ""
        yield f"a stranger {what}", partial(_answer, snapshot, query, None)
        for user_id, record in users:
            yield f"user {user_id!r} {what}", partial(_answer, snapshot, replace(query, user_id=user_id), record)
    for user_id, record in users:
        yield f"the published list of user {user_id!r}", partial(_published, snapshot, RankQuery(user_id, 10), record)
        yield f"the details of user {user_id!r}", partial(describe_user, snapshot, user_id, record)
    yield "some users to look at", partial(describe_sample, snapshot, 20, Bounds(200, 1000), live=False)
    for item_id in snapshot.items.item_ids(np.arange(min(1, len(snapshot.items)))):
        yield f"item {item_id!r}", partial(describe_item, snapshot, item_id)


def _answer(snapshot: Snapshot, query: RankQuery, record: UserRecord | None) -> object:
    result = rank(snapshot, query, record, LatencyTracker())
    if result.degraded == RANKER_FAILED:
        raise ValueError("the ranker fails")
    return _encode(snapshot, query, result)


def _published(snapshot: Snapshot, query: RankQuery, record: UserRecord) -> object:
    return _encode(snapshot, query, published_order(query, record))


def _encode(snapshot: Snapshot, query: RankQuery, result: RankResult) -> object:
    return encode_answer(result, query, snapshot, "warm", result.stages)


def _queries_of_each_kind(snapshot: Snapshot) -> list[RankQuery]:
    """Make a request of each kind, about the first items."""
    items = snapshot.items.item_ids(np.arange(min(3, len(snapshot.items))))
    now = dt.datetime.now(dt.UTC)
    plain = RankQuery(user_id=0, k=10)
    full = replace(plain, when=now, device="mobile", session_item_ids=items[:2], exclude_item_ids=items[2:], explain=True)
    return [plain, full, replace(plain, categories=snapshot.items.categories(0) if items else ()), replace(full, candidate_item_ids=items)]
