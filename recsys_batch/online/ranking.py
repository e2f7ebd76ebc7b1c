"""One request against one snapshot: the ladder from the ranker over the batch's order down to a popular list.

The ranker gets the same features by the same code as in the night (features.py), and the same rules of the business apply after it,
so under the neutral context the order is the batch's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_batch.features import pair_features
from recsys_batch.online.contributions import contributions
from recsys_batch.online.latency import Latency
from recsys_batch.online.query import Query, features_context
from recsys_batch.online.records import UserLists
from recsys_batch.online.snapshot import Snapshot
from recsys_batch.online.strangers import from_session
from recsys_batch.rules import pick

SOURCES = ("ranker", "batch", "popular")
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
class Ranked:
    """An answer before it is put into words: places of equal length k' <= k, best first.

    Attributes:
        codes: int, items of the snapshot. scores: float32.
        candidate_ranks, batch_ranks: from 1; 0 where the item was not retrieved for the user, or is not in the published top-K.
        batch_scores: float32, of the published top-K; NaN where the item is not in it.
        contributions: feature group -> float32 [k'], where the request asked to explain and the ranker ranked.
        stages: seconds by name.
    """

    codes: np.ndarray
    scores: np.ndarray
    candidate_ranks: np.ndarray
    batch_ranks: np.ndarray
    source: str
    degraded: str | None
    contributions: dict[str, np.ndarray] | None
    stages: dict[str, float]
    batch_scores: np.ndarray | None = None


def rank(snapshot: Snapshot, query: Query, lists: UserLists | None, latency: Latency, *, store_failed: bool = False) -> Ranked:
    """Answer a query.

    Args:
        lists: the user's, None where the snapshot has none (or, with ``store_failed``, where nobody knows).
        latency: what the ranker took lately; the ranker is skipped where less than its p99 is left of the deadline.
    """
    session = snapshot.items.codes(query.session_item_ids) if query.session_item_ids else _NOBODY
    excluded = snapshot.items.codes(query.exclude_item_ids) if query.exclude_item_ids else _NOBODY
    gone = np.concatenate([session, excluded]) if len(session) or len(excluded) else _NOBODY
    if store_failed:
        return _popular(snapshot, query, None, gone, STORE_UNAVAILABLE)
    stranger = lists is None or lists.embedding is None
    if stranger and len(session):
        found = from_session(snapshot, session, gone)
        if len(found.codes):
            return _ranked(snapshot, query, found, session, gone, latency, UNKNOWN_USER if lists is None else NO_EMBEDDING)
    if lists is None:
        return _popular(snapshot, query, None, gone, UNKNOWN_USER)
    if lists.embedding is None:
        return _batch_order(snapshot, query, lists, gone, NO_EMBEDDING, {}, source="popular")
    return _ranked(snapshot, query, lists, session, gone, latency, None)


_NOBODY = np.zeros(0, dtype=np.int64)


def _ranked(
    snapshot: Snapshot, query: Query, lists: UserLists, session: np.ndarray, gone: np.ndarray, latency: Latency, stranger: str | None
) -> Ranked:
    """The first rung; ``stranger`` says why the lists are not the user's own."""
    reason: str | None = None
    stages: dict[str, float] = {}
    if snapshot.ranker is None:
        reason = NO_RANKER
    elif query.deadline is not None and query.deadline - time.perf_counter() < latency.p99():
        reason = DEADLINE
    else:
        started = time.perf_counter()
        try:
            return _by_ranker(snapshot, query, lists, session, gone, stages)
        except Exception:  # whatever a model that somebody brought raises, the lists are there
            reason = RANKER_FAILED
        finally:
            latency.add(time.perf_counter() - started)
    if stranger is not None:
        return _popular(snapshot, query, None, gone, reason)
    return _batch_order(snapshot, query, lists, gone, reason, stages)


class _NotFinite(Exception):
    """The ranker gave a score that is not a number."""


def _by_ranker(
    snapshot: Snapshot, query: Query, lists: UserLists, session: np.ndarray, gone: np.ndarray, stages: dict[str, float]
) -> Ranked:
    assert snapshot.ranker is not None and lists.embedding is not None
    began = time.perf_counter()
    codes = lists.codes.astype(np.int64)
    catalogue, spec = snapshot.items.catalogue, snapshot.manifest.features
    vectors = catalogue.embeddings.take(codes, axis=0)[None]
    features = pair_features(
        spec,
        retrieval_score=lists.retrieval[None],
        log_popularity=catalogue.log_popularity[codes][None],
        n_events=np.array([lists.n_events]),
        context=features_context(query, vectors, snapshot.items.norms[codes][None], catalogue.embeddings[session]),
    )
    user = lists.embedding[None]
    prepared = time.perf_counter()
    scores = snapshot.ranker.score(user, vectors, features)
    if not np.isfinite(scores).all():
        raise _NotFinite
    scored = time.perf_counter()
    stages["features"], stages["model"] = prepared - began, scored - prepared
    masked = _masked(snapshot, query, codes, scores[0], gone)
    places, values = best(masked, codes, query.k, snapshot)
    explained = contributions(snapshot.ranker, spec, user, vectors[:, places], features[:, places]) if query.explain else None
    stages["select"] = time.perf_counter() - scored
    ranks = _batch_ranks(lists, places)
    published = np.append(lists.top_scores, np.float32(np.nan))[ranks - 1]
    return Ranked(codes[places], values, places + 1, ranks, "ranker", None, explained, stages, published)


def _masked(snapshot: Snapshot, query: Query, codes: np.ndarray, scores: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """float32 [C], -inf for what the request rules out."""
    keep = _kept(snapshot, query.categories, codes, gone)
    return scores if keep is None else np.where(keep, scores, np.float32(-np.inf))


def _kept(snapshot: Snapshot, categories: Sequence[str], codes: np.ndarray, gone: np.ndarray) -> np.ndarray | None:
    """bool per code, None where all stay."""
    keep = None
    if len(gone):
        keep = outside(codes, gone)
    if categories:
        inside = snapshot.items.in_categories(codes, categories)
        keep = inside if keep is None else keep & inside
    return keep


def outside(codes: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """bool per code: whether it is not in ``gone``; for a few by comparing each, a quarter of what np.isin takes."""
    if len(gone) > 32:
        return np.isin(codes, gone, invert=True)
    return np.asarray(~(codes[:, None] == gone).any(axis=1))


def best(scores: np.ndarray, codes: np.ndarray, k: int, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray]:
    """(places int64 [k'], scores float32 [k']) of the k best that the rules allow; -inf is out, ties go to the smaller code."""
    rules = snapshot.items.catalogue.business
    if rules.active:
        picked = pick(scores[None], codes[None], k, rules)
        there = np.isfinite(picked.values[0])
        return picked.columns[0][there], picked.values[0][there]
    order = np.lexsort((codes, -scores))[:k]
    values = scores[order]
    there = values > -np.inf
    return order[there], values[there]


def _batch_ranks(lists: UserLists, places: np.ndarray) -> np.ndarray:
    ranks = np.zeros(len(lists.codes), dtype=np.int64)
    ranks[lists.top_places] = np.arange(1, len(lists.top_places) + 1)
    return np.asarray(ranks[places])


def _batch_order(
    snapshot: Snapshot,
    query: Query,
    lists: UserLists,
    gone: np.ndarray,
    reason: str | None,
    stages: dict[str, float],
    source: str = "batch",
) -> Ranked:
    """The published list itself, without what the request rules out."""
    began = time.perf_counter()
    places = lists.top_places.astype(np.int64)
    codes = lists.codes[places].astype(np.int64)
    scores, ranks = lists.top_scores, np.arange(1, len(places) + 1)
    keep = _kept(snapshot, query.categories, codes, gone)
    if keep is not None:
        places, codes, scores, ranks = places[keep], codes[keep], scores[keep], ranks[keep]
    k = query.k
    stages["select"] = time.perf_counter() - began
    return Ranked(codes[:k], scores[:k], places[:k] + 1, ranks[:k], source, reason, None, stages, scores[:k])


def _popular(snapshot: Snapshot, query: Query, segment: str | None, gone: np.ndarray, reason: str | None) -> Ranked:
    began = time.perf_counter()
    codes, scores = snapshot.popular.of(query.segment or segment)
    codes = codes.astype(np.int64)
    masked = _masked(snapshot, query, codes, scores, gone)
    places, values = best(masked, codes, query.k, snapshot)
    nowhere = np.zeros(len(places), dtype=np.int64)
    return Ranked(codes[places], values, nowhere, nowhere, "popular", reason, None, {"select": time.perf_counter() - began})
