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
from recsys_batch.online.query import SESSION_ITEMS, Query, features_context
from recsys_batch.online.records import UserLists
from recsys_batch.online.snapshot import Snapshot
from recsys_batch.online.strangers import from_session
from recsys_batch.rules import pick
from recsys_batch.topk import order_pairs

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
    """Answer a query: ``rank_many`` of one."""
    return rank_many(snapshot, [Asked(query, lists, store_failed)], latency)[0]


@dataclass(frozen=True, slots=True)
class Asked:
    """A query with the user's lists: None where the snapshot has none (or, with ``store_failed``, where nobody knows)."""

    query: Query
    lists: UserLists | None
    store_failed: bool = False


def rank_many(snapshot: Snapshot, asked: Sequence[Asked], latency: Latency) -> list[Ranked]:
    """Answer queries that wait at the same time. What numpy and the model cost per call is shared; nobody's answer depends on the others,
    but for rounding.

    Args:
        latency: what the ranker took lately; it is skipped where less than its p99 is left of a deadline.
    """
    found: list[Ranked | None] = []
    waiting: dict[int, list[tuple[int, Pair]]] = {}
    for place, one in enumerate(asked):
        pair = _paired(snapshot, one, latency)
        found.append(pair if isinstance(pair, Ranked) else None)
        if isinstance(pair, Pair):
            waiting.setdefault(len(pair.lists.codes), []).append((place, pair))
    for same in waiting.values():
        for at in range(0, len(same), TOGETHER):
            block = same[at : at + TOGETHER]
            for (place, _), ranked in zip(block, _ranked(snapshot, [pair for _, pair in block], latency), strict=True):
                found[place] = ranked
    return [one for one in found if one is not None]


TOGETHER = 16
"""Most queries of one run of the model."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and the lists to rank for it.

    Attributes:
        session, gone: int64, codes of the session's items, and of what must not come back.
        own: whether the lists are the user's, and not made from the session.
    """

    query: Query
    lists: UserLists
    session: np.ndarray
    gone: np.ndarray
    own: bool


_NOBODY = np.zeros(0, dtype=np.int64)


def _paired(snapshot: Snapshot, asked: Asked, latency: Latency) -> Pair | Ranked:
    """What the ranker is to rank, or the answer where there is nothing for it to rank."""
    query, lists = asked.query, asked.lists
    session = snapshot.items.codes(query.session_item_ids) if query.session_item_ids else _NOBODY
    excluded = snapshot.items.codes(query.exclude_item_ids) if query.exclude_item_ids else _NOBODY
    gone = np.concatenate([session, excluded]) if len(session) or len(excluded) else _NOBODY
    if asked.store_failed:
        return _popular(snapshot, query, gone, STORE_UNAVAILABLE)
    own = lists is not None and lists.embedding is not None
    if not own and len(session):
        made = from_session(snapshot, session, gone)
        if len(made.codes):
            lists = made
    if lists is None:
        return _popular(snapshot, query, gone, UNKNOWN_USER)
    if lists.embedding is None:
        return _batch_order(snapshot, query, lists, gone, NO_EMBEDDING)
    pair = Pair(query, lists, session, gone, own)
    if snapshot.ranker is None:
        return _without_ranker(snapshot, pair, NO_RANKER)
    if query.deadline is not None and query.deadline - time.perf_counter() < latency.p99():
        return _without_ranker(snapshot, pair, DEADLINE)
    return pair


def _ranked(snapshot: Snapshot, pairs: list[Pair], latency: Latency) -> list[Ranked]:
    """By the ranker; where it fails for several, each alone, so that one's fault is its own."""
    started = time.perf_counter()
    try:
        return _by_ranker(snapshot, pairs)
    except Exception:  # whatever a model that somebody brought raises, the lists are there
        if len(pairs) > 1:
            return [one for pair in pairs for one in _ranked(snapshot, [pair], latency)]
        return [_without_ranker(snapshot, pairs[0], RANKER_FAILED)]
    finally:
        latency.add(time.perf_counter() - started)


def _without_ranker(snapshot: Snapshot, pair: Pair, reason: str) -> Ranked:
    if pair.own:
        return _batch_order(snapshot, pair.query, pair.lists, pair.gone, reason)
    return _popular(snapshot, pair.query, pair.gone, reason)


class _NotFinite(Exception):
    """The ranker gave a score that is not a number."""


def _by_ranker(snapshot: Snapshot, pairs: list[Pair]) -> list[Ranked]:
    """Lists of one length C; the stages' times are those of all together."""
    assert snapshot.ranker is not None
    began = time.perf_counter()
    catalogue, spec = snapshot.items.catalogue, snapshot.manifest.features
    users = np.stack([pair.lists.embedding for pair in pairs if pair.lists.embedding is not None])
    codes = np.stack([pair.lists.codes for pair in pairs]).astype(np.int64)
    vectors = catalogue.embeddings.take(codes.ravel(), axis=0).reshape(*codes.shape, -1)
    sessions = [catalogue.embeddings[pair.session[-SESSION_ITEMS:]] for pair in pairs]
    features = pair_features(
        spec,
        retrieval_score=np.stack([pair.lists.retrieval for pair in pairs]),
        log_popularity=catalogue.log_popularity.take(codes),
        n_events=np.array([pair.lists.n_events for pair in pairs]),
        context=features_context([pair.query for pair in pairs], vectors, snapshot.items.norms.take(codes), sessions),
    )
    prepared = time.perf_counter()
    scores = snapshot.ranker.score(users, vectors, features)
    if not np.isfinite(scores).all():
        raise _NotFinite
    scored = time.perf_counter()
    for row, pair in enumerate(pairs):
        keep = _kept(snapshot, pair.query.categories, codes[row], pair.gone)
        if keep is not None:
            scores[row] = np.where(keep, scores[row], np.float32(-np.inf))
    picked = best(scores, codes, max(pair.query.k for pair in pairs), snapshot)
    found = []
    for row, (pair, (all_places, all_values)) in enumerate(zip(pairs, picked, strict=True)):
        places, values = all_places[: pair.query.k], all_values[: pair.query.k]
        ranks = _batch_ranks(pair.lists, places)
        published = np.append(pair.lists.top_scores, np.float32(np.nan))[ranks - 1]
        explained = None
        if pair.query.explain:
            mine = slice(row, row + 1)
            explained = contributions(snapshot.ranker, spec, users[mine], vectors[mine][:, places], features[mine][:, places])
        stages = {"features": prepared - began, "model": scored - prepared, "select": time.perf_counter() - scored}
        found.append(Ranked(codes[row][places], values, places + 1, ranks, "ranker", None, explained, stages, published))
    return found


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


def best(scores: np.ndarray, codes: np.ndarray, k: int, snapshot: Snapshot) -> list[tuple[np.ndarray, np.ndarray]]:
    """(places int64 [k'], scores float32 [k']) per row, of the k best that the rules allow; -inf is out, ties go to the smaller code.

    Every rule takes from the top, so a shorter list is the beginning of a longer one.

    Args:
        scores: float32 [B, C]. codes: int64 [B, C].
    """
    rules = snapshot.items.catalogue.business
    if rules.active:
        picked = pick(scores, codes, k, rules)
        columns, values = picked.columns, picked.values
    else:
        # As one integer per pair, and the places of the few that are kept looked up: a fifth of what a lexsort takes.
        values, picked_codes = order_pairs(scores, codes, k)
        columns = (codes[:, None, :] == picked_codes[:, :, None]).argmax(axis=2)
    there = np.isfinite(values)
    return [(columns[row][mine], values[row][mine]) for row, mine in enumerate(there)]


def _batch_ranks(lists: UserLists, places: np.ndarray) -> np.ndarray:
    ranks = np.zeros(len(lists.codes), dtype=np.int64)
    ranks[lists.top_places] = np.arange(1, len(lists.top_places) + 1)
    return np.asarray(ranks[places])


def published_order(query: Query, lists: UserLists, reason: str | None = None, keep: np.ndarray | None = None) -> Ranked:
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
    return Ranked(lists.codes[places].astype(np.int64), scores, places + 1, ranks, source, reason, None, stages, scores)


def _batch_order(snapshot: Snapshot, query: Query, lists: UserLists, gone: np.ndarray, reason: str) -> Ranked:
    """The published list without what the request rules out."""
    return published_order(query, lists, reason, _kept(snapshot, query.categories, lists.codes[lists.top_places], gone))


def _popular(snapshot: Snapshot, query: Query, gone: np.ndarray, reason: str) -> Ranked:
    began = time.perf_counter()
    listed, scores = snapshot.popular.of(query.segment)
    codes = listed.astype(np.int64)
    keep = _kept(snapshot, query.categories, codes, gone)
    if keep is not None:
        scores = np.where(keep, scores, np.float32(-np.inf))
    ((places, values),) = best(scores[None], codes[None], query.k, snapshot)
    nowhere = np.zeros(len(places), dtype=np.int64)
    return Ranked(codes[places], values, nowhere, nowhere, "popular", reason, None, {"select": time.perf_counter() - began})
