"""Calls of a model server as ``serve`` makes them: requests of a snapshot's users with contexts, as arrays, and our own scores for them."""

import datetime as dt
from typing import NamedTuple

import numpy as np

from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.scoring_block import RankerInput, prepare_block
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_key import user_id_from_key
from recsys_batch.ranking.onnx_ranker import OnnxRanker

BATCH = 64


class ScoringCall(NamedTuple):
    """Arrays of a call, float32 [B, d], [B, C, d], [B, C, F], and our own scores for it, [B, C]."""

    users: np.ndarray
    items: np.ndarray
    features: np.ndarray
    expected: np.ndarray


def make_calls(snapshot: Snapshot, n: int, seed: int = 0) -> list[ScoringCall]:
    """Make n calls of one request, of which a third has fewer candidates than the user, and one of BATCH requests."""
    assert snapshot.store is not None and snapshot.ranker is not None
    rng = np.random.default_rng(seed)
    users = [user_id_from_key(key, snapshot.ids.user) for key in snapshot.store.sample_keys(n)]
    pairs: list[RankerInput] = []
    while len(pairs) < n:
        user = users[len(pairs) % len(users)]
        record = None if user is None else snapshot.lookup(user)
        if user is None or record is None or record.embedding is None:
            users.remove(user)
            continue
        session = rng.integers(0, len(snapshot.items.catalogue), rng.integers(0, 4)).tolist()
        when = dt.datetime(2026, 3, 1, tzinfo=dt.UTC) + dt.timedelta(minutes=int(rng.integers(0, 10_000)))
        query = RankQuery(user, 10, when=when, device=("mobile", "desktop", "tv", None)[rng.integers(0, 4)])
        pairs.append(RankerInput(query, record, session, [], True))
    counts = [len(pair.record.codes) for pair in pairs]
    wide = [pair for pair, count in zip(pairs, counts, strict=True) if count == max(set(counts), key=counts.count)]
    calls = [_call(snapshot.ranker, snapshot, [pair]) for pair in pairs]
    cut = [int(rng.integers(1, call.items.shape[1] + 1)) if number % 3 == 0 else None for number, call in enumerate(calls)]
    short = [ScoringCall(call.users, *(array[:, :count] for array in call[1:])) for call, count in zip(calls, cut, strict=True)]
    return [*short, _call(snapshot.ranker, snapshot, [wide[number % len(wide)] for number in range(BATCH)])]


def _call(ranker: OnnxRanker, snapshot: Snapshot, pairs: list[RankerInput]) -> ScoringCall:
    block = prepare_block(snapshot, pairs, is_gathered=True)
    return ScoringCall(block.users, block.vectors, block.features, ranker.score(block.users, block.vectors, block.features))


def largest_difference(scores: np.ndarray, expected: np.ndarray) -> float:
    """Measure the largest absolute difference of scores, [B, C]. Raises AssertionError: other order than ties of rounding explain."""
    assert scores.shape == expected.shape
    largest = float(np.abs(scores - expected).max())
    for row, ours in zip(scores, expected, strict=True):
        in_their_order = ours[np.argsort(-row, kind="stable")]
        assert (np.diff(in_their_order) <= 2 * largest).all(), "the order differs by more than rounding"
    return largest
