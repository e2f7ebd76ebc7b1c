"""One request against one snapshot: the ladder from the ranker over the batch's order down to a popular list.

The ranker gets the same features by the same code as in the night (features.py), and the same rules of the business apply after it,
so under the neutral context the order is the batch's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys_batch.online.ranking.ablation import group_contributions
from recsys_batch.online.ranking.cold_start import candidates_from_session
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery, build_context
from recsys_batch.online.ranking.selection import candidate_mask, row_offsets, select_top_k
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import UserRecord
from recsys_batch.ranking.features import compute_pair_features

ANSWER_SOURCES = ("ranker", "batch", "popular")
UNKNOWN_USER, NO_EMBEDDING, NO_RANKER, DEADLINE, RANKER_FAILED, STORE_UNAVAILABLE, STALE = REASONS = (
    "unknown_user",
    "no_embedding",
    "no_ranker",
    "deadline",
    "ranker_failed",
    "store_unavailable",
    "stale_snapshot",
)
"""Why an answer is not all that it could be."""


@dataclass(slots=True)
class RankResult:
    """An answer before it is put into words: places of equal length k' <= k, best first.

    Attributes:
        codes: int, items of the snapshot. scores: float32.
        candidate_ranks: from 1; 0 where the item was not retrieved for the user.
        batch_scores: float32, of the published top-K; NaN where the item is not in it, None where there is no such list.
        stages: seconds by name.
        batch_ranks: places in the published top-K, from 1; 0 where the item is not in it. None where it takes working out, and the
            request did not ask to explain.
        contributions: feature group -> float32 [k'], where the request asked to explain and the ranker ranked.
    """

    codes: np.ndarray
    scores: np.ndarray
    candidate_ranks: np.ndarray
    batch_scores: np.ndarray | None
    source: str
    degraded: str | None
    stages: Mapping[str, float]
    batch_ranks: np.ndarray | None = None
    contributions: dict[str, np.ndarray] | None = None


def rank(
    snapshot: Snapshot, query: RankQuery, lists: UserRecord | None, latency: LatencyTracker, *, store_failed: bool = False
) -> RankResult:
    """Answer a query: ``rank_many`` of one."""
    return rank_many(snapshot, [RankInput(query, lists, store_failed)], latency)[0]


@dataclass(slots=True)
class RankInput:
    """A query with the user's lists: None where the snapshot has none (or, with ``store_failed``, where nobody knows)."""

    query: RankQuery
    lists: UserRecord | None
    store_failed: bool = False


def rank_many(snapshot: Snapshot, asked: Sequence[RankInput], latency: LatencyTracker) -> list[RankResult]:
    """Answer queries that wait at the same time. What numpy and the model cost per call is shared; nobody's answer depends on the others,
    but for rounding.

    Args:
        latency: what the ranker took lately; it is skipped where less than its p99 is left of a deadline.
    """
    found: list[RankResult | None] = []
    waiting: dict[int, list[tuple[int, ScoringInput]]] = {}
    for place, one in enumerate(asked):
        pair = _resolve_candidates(snapshot, one, latency)
        found.append(pair if isinstance(pair, RankResult) else None)
        if isinstance(pair, ScoringInput):
            waiting.setdefault(len(pair.lists.codes), []).append((place, pair))
    for same in waiting.values():
        for at in range(0, len(same), MAX_RANK_BATCH):
            block = same[at : at + MAX_RANK_BATCH]
            for (place, _), ranked in zip(block, _score_or_fall_back(snapshot, [pair for _, pair in block], latency), strict=True):
                found[place] = ranked
    return [one for one in found if one is not None]


MAX_RANK_BATCH = 16
"""Most queries of one run of the model."""


@dataclass(slots=True)
class ScoringInput:
    """A query and the lists to rank for it.

    Attributes:
        session, gone: codes of the session's items, and of what must not come back.
        own: whether the lists are the user's, and not made from the session.
    """

    query: RankQuery
    lists: UserRecord
    session: list[int]
    excluded_codes: list[int]
    personalised: bool


def _resolve_candidates(snapshot: Snapshot, asked: RankInput, latency: LatencyTracker) -> ScoringInput | RankResult:
    """What the ranker is to rank, or the answer where there is nothing for it to rank."""
    query, lists = asked.query, asked.lists
    session = snapshot.items.codes(query.session_item_ids)
    gone = [*session, *snapshot.items.codes(query.exclude_item_ids)]
    if asked.store_failed:
        return _popular(snapshot, query, gone, STORE_UNAVAILABLE)
    own = lists is not None and lists.embedding is not None
    if not own and session:
        made = candidates_from_session(snapshot, np.array(session), np.array(gone))
        if len(made.codes):
            lists = made
    if lists is None:
        return _popular(snapshot, query, gone, UNKNOWN_USER)
    if lists.embedding is None:
        return _batch_order(snapshot, query, lists, gone, NO_EMBEDDING)
    pair = ScoringInput(query, lists, session, gone, own)
    if snapshot.ranker is None:
        return _fall_back(snapshot, pair, NO_RANKER)
    if query.deadline is not None and query.deadline - time.perf_counter() < latency.p99():
        return _fall_back(snapshot, pair, DEADLINE)
    return pair


def _score_or_fall_back(snapshot: Snapshot, pairs: list[ScoringInput], latency: LatencyTracker) -> list[RankResult]:
    """By the ranker; where it fails for several, each alone, so that one's fault is its own."""
    started = time.perf_counter()
    try:
        return _score_batch(snapshot, pairs)
    except Exception:  # whatever a model that somebody brought raises, the lists are there
        if len(pairs) > 1:
            return [one for pair in pairs for one in _score_or_fall_back(snapshot, [pair], latency)]
        return [_fall_back(snapshot, pairs[0], RANKER_FAILED)]
    finally:
        latency.add(time.perf_counter() - started)


def _fall_back(snapshot: Snapshot, pair: ScoringInput, reason: str) -> RankResult:
    if pair.personalised:
        return _batch_order(snapshot, pair.query, pair.lists, pair.excluded_codes, reason)
    return _popular(snapshot, pair.query, pair.excluded_codes, reason)


class _NotFinite(Exception):
    """The ranker gave a score that is not a number."""


def _score_batch(snapshot: Snapshot, pairs: list[ScoringInput]) -> list[RankResult]:
    """Lists of one length C; the stages' times are those of all together."""
    assert snapshot.ranker is not None
    began = time.perf_counter()
    items, spec, lists = snapshot.items, snapshot.features, [pair.lists for pair in pairs]
    users = np.stack([one.embedding for one in lists if one.embedding is not None])
    codes = np.stack([one.codes for one in lists]).astype(np.int64)
    vectors = items.catalogue.embeddings.take(codes, axis=0)
    features = compute_pair_features(
        spec,
        retrieval_score=np.stack([one.retrieval for one in lists]),
        log_popularity=items.catalogue.log_popularity.take(codes),
        n_events=np.array([one.n_events for one in lists]),
        context=build_context([pair.query for pair in pairs], items, codes, vectors, [pair.session for pair in pairs]),
    )
    prepared = time.perf_counter()
    scores = snapshot.ranker.score(users, vectors, features)
    if not np.isfinite(scores).all():
        raise _NotFinite
    scored = time.perf_counter()
    keep = candidate_mask(items, codes, [pair.excluded_codes for pair in pairs], [pair.query.categories for pair in pairs])
    if keep is not None:
        scores = np.where(keep, scores, np.float32(-np.inf))
    places, values = select_top_k(scores, codes, max(pair.query.k for pair in pairs), items.catalogue.item_rules)
    published = np.full(codes.shape, np.nan, np.float32)
    for row, one in enumerate(lists):
        published[row, one.top_places] = one.top_scores
    flat = places + row_offsets(codes)
    shown = list(zip(codes.take(flat), values, places, published.take(flat), np.isfinite(values).sum(axis=1).tolist(), strict=True))
    stages = {"features": prepared - began, "model": scored - prepared, "select": time.perf_counter() - scored}
    found = []
    for row, (pair, (its_codes, its_values, its_places, before, n)) in enumerate(zip(pairs, shown, strict=True)):
        top = slice(min(n, pair.query.k))
        chosen = its_places[top]
        ranked = RankResult(its_codes[top], its_values[top], chosen + 1, before[top], "ranker", None, stages)
        if pair.query.explain:
            ranked.batch_ranks = _batch_ranks(pair.lists, chosen)
            ranked.contributions = group_contributions(
                snapshot.ranker, spec, users[row : row + 1], vectors[row : row + 1, chosen], features[row : row + 1, chosen]
            )
        found.append(ranked)
    return found


def _batch_ranks(lists: UserRecord, places: np.ndarray) -> np.ndarray:
    ranks = np.zeros(len(lists.codes), dtype=np.int64)
    ranks[lists.top_places] = np.arange(1, len(lists.top_places) + 1)
    return np.asarray(ranks[places])


def published_order(query: RankQuery, lists: UserRecord, reason: str | None = None, keep: np.ndarray | None = None) -> RankResult:
    """The first k of the published list itself; source popular where the night had only a popular list for the user.

    Args:
        reason: why it is not ranked for the request.
        keep: bool per row of the published list; None where all stay.
    """
    began = time.perf_counter()
    places, ranks = lists.top_places.astype(np.int64), np.arange(1, len(lists.top_places) + 1)
    scores = lists.top_scores
    if keep is not None:
        places, scores, ranks = places[keep], scores[keep], ranks[keep]
    places, scores, ranks = places[: query.k], scores[: query.k], ranks[: query.k]
    source = "popular" if lists.embedding is None else "batch"
    stages = {"select": time.perf_counter() - began}
    return RankResult(lists.codes[places].astype(np.int64), scores, places + 1, scores, source, reason, stages, ranks)


def _batch_order(snapshot: Snapshot, query: RankQuery, lists: UserRecord, gone: Sequence[int], reason: str) -> RankResult:
    """The published list without what the request rules out."""
    keep = candidate_mask(snapshot.items, lists.codes[lists.top_places][None], [gone], [query.categories])
    return published_order(query, lists, reason, None if keep is None else keep[0])


def _popular(snapshot: Snapshot, query: RankQuery, gone: Sequence[int], reason: str) -> RankResult:
    began = time.perf_counter()
    listed, scores = snapshot.popular.for_segment(query.segment)
    codes = listed[None].astype(np.int64)
    keep = candidate_mask(snapshot.items, codes, [gone], [query.categories])
    ruled = scores[None] if keep is None else np.where(keep, scores, np.float32(-np.inf))
    ((places,), (values,)) = select_top_k(ruled, codes, query.k, snapshot.items.catalogue.item_rules)
    there = np.isfinite(values)
    nowhere = np.zeros(int(there.sum()), dtype=np.int64)
    stages = {"select": time.perf_counter() - began}
    return RankResult(codes[0, places[there]], values[there], nowhere, None, "popular", reason, stages, nowhere)
