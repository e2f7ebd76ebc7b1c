"""Rank requests against one snapshot: the ladder from the ranker over the batch's order down to a popular list.

The ranker gets the same features by the same code as in the night (features.py), and the same rules of the business apply after it,
so under the neutral context the order is the batch's.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys_batch.online.ranking.ablation import group_contributions
from recsys_batch.online.ranking.cold_start import candidates_from_session
from recsys_batch.online.ranking.exploration import Exploration, Explorer
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
        exploration: how likely each place was, where places may have been swapped.
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
    exploration: Exploration | None = None


def rank(
    snapshot: Snapshot, query: RankQuery, record: UserRecord | None, latency: LatencyTracker, *, store_failed: bool = False
) -> RankResult:
    """Answer a query: ``rank_many`` of one."""
    return rank_many(snapshot, [RankInput(query, record, store_failed)], latency)[0]


@dataclass(slots=True)
class RankInput:
    """A query with the user's record: None where the snapshot has none (or, with ``store_failed``, where nobody knows)."""

    query: RankQuery
    record: UserRecord | None
    store_failed: bool = False


def rank_many(
    snapshot: Snapshot, inputs: Sequence[RankInput], latency: LatencyTracker, explorer: Explorer | None = None
) -> list[RankResult]:
    """Answer queries that wait at the same time. What numpy and the model cost per call is shared; nobody's answer depends on the others,
    but for rounding.

    Args:
        latency: what the ranker took lately; it is skipped where less than its p99 is left of a deadline.
        explorer: swaps places of what the ranker ranked, but not where a request asks to explain its order; None for no exploration.
    """
    results: dict[int, RankResult] = {}
    by_length: dict[int, dict[int, RankerInput]] = {}
    for number, rank_input in enumerate(inputs):
        resolved = _resolve_candidates(snapshot, rank_input, latency)
        if isinstance(resolved, RankResult):
            results[number] = resolved
        else:
            by_length.setdefault(len(resolved.record.codes), {})[number] = resolved
    for group in by_length.values():
        numbers, pairs = list(group), list(group.values())
        for start in range(0, len(group), MAX_RANK_BATCH):
            block = slice(start, start + MAX_RANK_BATCH)
            results.update(zip(numbers[block], _score_or_fall_back(snapshot, pairs[block], latency, explorer), strict=True))
    return [results[number] for number in range(len(inputs))]


MAX_RANK_BATCH = 16
"""Most queries of one run of the model."""


@dataclass(slots=True)
class RankerInput:
    """A query and the candidates that the ranker scores for it.

    Attributes:
        session, excluded_codes: codes of the session's items, and of what must not come back.
        record: the user's, or one made from the session.
        personalised: whether the record is the user's own.
    """

    query: RankQuery
    record: UserRecord
    session: list[int]
    excluded_codes: list[int]
    personalised: bool


def _resolve_candidates(snapshot: Snapshot, rank_input: RankInput, latency: LatencyTracker) -> RankerInput | RankResult:
    """Decide what the ranker scores for a query, or the answer where there is nothing for it to score."""
    query, record = rank_input.query, rank_input.record
    session = snapshot.items.codes(query.session_item_ids)
    excluded_codes = [*session, *snapshot.items.codes(query.exclude_item_ids)]
    if rank_input.store_failed:
        return _popular(snapshot, query, excluded_codes, STORE_UNAVAILABLE)
    personalised = record is not None and record.embedding is not None
    if not personalised and session:
        made = candidates_from_session(snapshot, np.array(session), np.array(excluded_codes))
        if len(made.codes):
            record = made
    if record is None:
        return _popular(snapshot, query, excluded_codes, UNKNOWN_USER)
    if record.embedding is None:
        return _batch_order(snapshot, query, record, excluded_codes, NO_EMBEDDING)
    pair = RankerInput(query, record, session, excluded_codes, personalised)
    if snapshot.ranker is None:
        return _fall_back(snapshot, pair, NO_RANKER)
    if query.deadline is not None and query.deadline - time.perf_counter() < latency.p99():
        return _fall_back(snapshot, pair, DEADLINE)
    return pair


def _score_or_fall_back(
    snapshot: Snapshot, pairs: list[RankerInput], latency: LatencyTracker, explorer: Explorer | None
) -> list[RankResult]:
    """Rank queries by the model; where it fails for several, each alone, so that one's fault is its own."""
    started = time.perf_counter()
    try:
        return _score_batch(snapshot, pairs, explorer)
    except Exception:  # whatever a model that somebody brought raises, the lists are there
        if len(pairs) > 1:
            return [one for pair in pairs for one in _score_or_fall_back(snapshot, [pair], latency, explorer)]
        return [_fall_back(snapshot, pairs[0], RANKER_FAILED)]
    finally:
        latency.add(time.perf_counter() - started)


def _fall_back(snapshot: Snapshot, pair: RankerInput, reason: str) -> RankResult:
    if pair.personalised:
        return _batch_order(snapshot, pair.query, pair.record, pair.excluded_codes, reason)
    return _popular(snapshot, pair.query, pair.excluded_codes, reason)


class _NotFinite(Exception):
    """The ranker gave a score that is not a number."""


def _score_batch(snapshot: Snapshot, pairs: list[RankerInput], explorer: Explorer | None) -> list[RankResult]:
    """Rank queries with equally many candidates in one run of the model; the stages' times are those of all together."""
    assert snapshot.ranker is not None
    began = time.perf_counter()
    items, spec, records = snapshot.items, snapshot.features, [pair.record for pair in pairs]
    users = np.stack([record.embedding for record in records if record.embedding is not None])
    codes = np.stack([record.codes for record in records]).astype(np.int64)
    vectors = items.catalogue.embeddings.take(codes, axis=0)
    features = compute_pair_features(
        spec,
        retrieval_score=np.stack([record.retrieval for record in records]),
        log_popularity=items.catalogue.log_popularity.take(codes),
        n_events=np.array([record.n_events for record in records]),
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
    n_ordered = max(pair.query.k for pair in pairs) if explorer is None else codes.shape[1]
    columns, values = select_top_k(scores, codes, n_ordered, items.catalogue.item_rules)
    published = np.full(codes.shape, np.nan, np.float32)
    for row, record in enumerate(records):
        published[row, record.top_places] = record.top_scores
    flat = columns + row_offsets(codes)
    shown = list(zip(codes.take(flat), values, columns, published.take(flat), np.isfinite(values).sum(axis=1).tolist(), strict=True))
    stages = {"features": prepared - began, "model": scored - prepared, "select": time.perf_counter() - scored}
    results = []
    for row, (pair, (its_codes, its_values, its_places, before, n)) in enumerate(zip(pairs, shown, strict=True)):
        top: slice | np.ndarray = slice(min(n, pair.query.k))
        exploration = None
        if explorer is not None and not pair.query.explain:
            top, propensities = explorer.swap_places(min(n, pair.query.k), n)
            allowed = None if keep is None else keep[row]
            exploration = Exploration(propensities, top + 1, _batch_positions(pair.record, allowed)[its_places[top]])
        chosen = its_places[top]
        ranked = RankResult(its_codes[top], its_values[top], chosen + 1, before[top], "ranker", None, stages, exploration=exploration)
        if pair.query.explain:
            ranked.batch_ranks = pair.record.batch_ranks()[chosen]
            ranked.contributions = group_contributions(
                snapshot.ranker, spec, users[row : row + 1], vectors[row : row + 1, chosen], features[row : row + 1, chosen]
            )
        results.append(ranked)
    return results


def _batch_positions(record: UserRecord, keep: np.ndarray | None) -> np.ndarray:
    """Number the candidates as the published list without what a request rules out has them: int64 [C], from 1; 0 where one is not in it.

    Args:
        keep: bool [C]; None where all stay.
    """
    listed = record.top_places if keep is None else record.top_places[keep[record.top_places]]
    positions = np.zeros(len(record.codes), dtype=np.int64)
    positions[listed] = np.arange(1, len(listed) + 1)
    return positions


def published_order(query: RankQuery, record: UserRecord, reason: str | None = None, keep: np.ndarray | None = None) -> RankResult:
    """Answer with the first k of the published list itself; source popular where the night had only a popular list for the user.

    Args:
        reason: why it is not ranked for the request.
        keep: bool per row of the published list; None where all stay.
    """
    began = time.perf_counter()
    candidates, scores, ranks = record.top_places.astype(np.int64), record.top_scores, np.arange(1, len(record.top_places) + 1)
    if keep is not None:
        candidates, scores, ranks = candidates[keep], scores[keep], ranks[keep]
    candidates, scores, ranks = candidates[: query.k], scores[: query.k], ranks[: query.k]
    source = "popular" if record.embedding is None else "batch"
    stages = {"select": time.perf_counter() - began}
    return RankResult(record.codes[candidates].astype(np.int64), scores, candidates + 1, scores, source, reason, stages, ranks)


def _batch_order(snapshot: Snapshot, query: RankQuery, record: UserRecord, excluded_codes: Sequence[int], reason: str) -> RankResult:
    """Answer with the published list without what the request rules out."""
    keep = candidate_mask(snapshot.items, record.codes[record.top_places][None], [excluded_codes], [query.categories])
    return published_order(query, record, reason, None if keep is None else keep[0])


def _popular(snapshot: Snapshot, query: RankQuery, excluded_codes: Sequence[int], reason: str) -> RankResult:
    began = time.perf_counter()
    listed, scores = snapshot.popular.for_segment(query.segment)
    codes = listed[None].astype(np.int64)
    keep = candidate_mask(snapshot.items, codes, [excluded_codes], [query.categories])
    ruled = scores[None] if keep is None else np.where(keep, scores, np.float32(-np.inf))
    ((columns,), (values,)) = select_top_k(ruled, codes, query.k, snapshot.items.catalogue.item_rules)
    is_allowed = np.isfinite(values)
    no_ranks = np.zeros(int(is_allowed.sum()), dtype=np.int64)
    stages = {"select": time.perf_counter() - began}
    return RankResult(codes[0, columns[is_allowed]], values[is_allowed], no_ranks, None, "popular", reason, stages, no_ranks)
