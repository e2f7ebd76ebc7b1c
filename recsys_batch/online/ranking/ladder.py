"""Rank requests against one snapshot: the ladder from the ranker over the batch's order down to a popular list.

The ranker gets the same features by the same code as in the night (features.py), and the same rules of the business apply after it,
so under the neutral context the order is the batch's.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_batch.online.ranking.cold_start import candidates_from_session, record_of_session
from recsys_batch.online.ranking.exploration import Explorer
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.listed_scores import score_listed
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import (
    DEADLINE,
    NO_EMBEDDING,
    NO_RANKER,
    RANKER_FAILED,
    STORE_UNAVAILABLE,
    UNKNOWN_USER,
    RankResult,
)
from recsys_batch.online.ranking.request_candidates import look_up_candidates, make_candidate_record, order_as_given, order_by_retrieval
from recsys_batch.online.ranking.scoring_block import RankerInput, prepare_block, select_from_block
from recsys_batch.online.ranking.selection import candidate_mask, select_allowed
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import UserRecord
from recsys_batch.ranking.compiled_ranker import CompiledRanker


def rank(
    snapshot: Snapshot, query: RankQuery, record: UserRecord | None, latency: LatencyTracker, *, store_failed: bool = False
) -> RankResult:
    """Answer a query: ``rank_many`` of one."""
    return rank_many(snapshot, [RankInput(query, record, store_failed)], latency)[0]


@dataclass(slots=True)
class RankInput:
    """A query with the user's record: None where there is none, or, with ``store_failed``, where nobody knows."""

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
    results, blocks = resolve_many(snapshot, inputs, latency)
    for numbers, pairs in blocks:
        results.update(zip(numbers, _score_or_fall_back(snapshot, pairs, latency, explorer), strict=True))
    return [results[number] for number in range(len(inputs))]


def resolve_many(
    snapshot: Snapshot, inputs: Sequence[RankInput], latency: LatencyTracker
) -> tuple[dict[int, RankResult], list[tuple[list[int], list[RankerInput]]]]:
    """Resolve queries into (answers that need no ranker, by number; blocks of numbers and queries for one run of the model each)."""
    results: dict[int, RankResult] = {}
    by_length: dict[tuple[int, bool], dict[int, RankerInput]] = {}
    for number, rank_input in enumerate(inputs):
        resolved = _resolve_candidates(snapshot, rank_input, latency)
        if isinstance(resolved, RankResult):
            results[number] = resolved
        else:
            by_length.setdefault((len(resolved.record.codes), resolved.listed is None), {})[number] = resolved
    blocks = []
    for group in by_length.values():
        numbers, pairs = list(group), list(group.values())
        for start in range(0, len(group), MAX_RANK_BATCH):
            block = slice(start, start + MAX_RANK_BATCH)
            blocks.append((numbers[block], pairs[block]))
    return results, blocks


MAX_RANK_BATCH = 16
"""Most queries of one run of the model."""


def _resolve_candidates(snapshot: Snapshot, rank_input: RankInput, latency: LatencyTracker) -> RankerInput | RankResult:
    """Decide what the ranker scores for a query, or the answer where there is nothing for it to score."""
    query, record = rank_input.query, rank_input.record
    session = snapshot.items.codes(query.session_item_ids)
    excluded_codes = list(snapshot.items.codes(query.exclude_item_ids))
    if session and not snapshot.seen_policy.allows_all(query.segment if record is None else snapshot.segment(record.segment)):
        excluded_codes += session
    resolve = _resolve_retrieved if query.candidate_item_ids is None else _resolve_listed
    resolved = resolve(snapshot, rank_input, session, excluded_codes)
    if isinstance(resolved, RankResult):
        return resolved
    if snapshot.ranker is None:
        return fall_back(snapshot, resolved, NO_RANKER)
    if query.deadline is not None and query.deadline - time.perf_counter() < tracker_of(resolved, latency).p99():
        return fall_back(snapshot, resolved, DEADLINE)
    return resolved


def _resolve_listed(snapshot: Snapshot, rank_input: RankInput, session: list[int], excluded_codes: list[int]) -> RankerInput | RankResult:
    """Resolve a query that brings its candidates; in their given order for a user of whom nothing is known, nor a session."""
    query, record = rank_input.query, rank_input.record
    listed = look_up_candidates(snapshot, query, query.segment if record is None else snapshot.segment(record.segment))
    if not len(listed.codes):
        return order_as_given(snapshot, query, listed, excluded_codes, None)
    personalised = record is not None and record.embedding is not None
    if not personalised and session:
        record = record_of_session(snapshot, np.array(session))
    if record is None or record.embedding is None:
        unknown = STORE_UNAVAILABLE if rank_input.store_failed else UNKNOWN_USER
        return order_as_given(snapshot, query, listed, excluded_codes, unknown if record is None else NO_EMBEDDING)
    record = make_candidate_record(snapshot, record, listed)
    return RankerInput(query, record, session, excluded_codes, personalised, listed)


def _resolve_retrieved(
    snapshot: Snapshot, rank_input: RankInput, session: list[int], excluded_codes: list[int]
) -> RankerInput | RankResult:
    """Resolve a query whose candidates are the user's, or are found near the session."""
    query, record = rank_input.query, rank_input.record
    if record is None and rank_input.store_failed:
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
    return RankerInput(query, record, session, excluded_codes, personalised)


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
        return [fall_back(snapshot, pairs[0], RANKER_FAILED)]
    finally:
        tracker_of(pairs[0], latency).add(time.perf_counter() - started)


def tracker_of(pair: RankerInput, latency: LatencyTracker) -> LatencyTracker:
    """Choose the tracker of a query's kind: of candidates that were retrieved, or of lists that requests bring."""
    return latency if pair.listed is None else latency.of_lists()


def fall_back(snapshot: Snapshot, pair: RankerInput, reason: str) -> RankResult:
    """Answer a query without the ranker: by the user's published list, or where there is none of its own, by a popular one.

    Candidates that the request brought are ordered by their retrieval scores.
    """
    if pair.listed is not None:
        return order_by_retrieval(snapshot, pair.query, pair.listed, pair.record, pair.excluded_codes, reason)
    if pair.personalised:
        return _batch_order(snapshot, pair.query, pair.record, pair.excluded_codes, reason)
    return _popular(snapshot, pair.query, pair.excluded_codes, reason)


class _NotFinite(Exception):
    """The ranker gave a score that is not a number."""


def _score_batch(snapshot: Snapshot, pairs: list[RankerInput], explorer: Explorer | None) -> list[RankResult]:
    """Rank queries with equally many candidates in one run of the model."""
    assert snapshot.ranker is not None
    is_listed = pairs[0].listed is not None
    block = prepare_block(snapshot, pairs, is_gathered=not is_listed and not isinstance(snapshot.ranker, CompiledRanker))
    began = time.perf_counter()
    scores = score_listed(snapshot, pairs, block) if is_listed else block.score(snapshot.ranker)
    if not np.isfinite(scores).all():
        raise _NotFinite
    return select_from_block(snapshot, pairs, block, scores, time.perf_counter() - began, explorer)


def published_order(query: RankQuery, record: UserRecord, reason: str | None = None, keep: np.ndarray | None = None) -> RankResult:
    """Answer with the first k of the published list itself; source popular where the night had only a popular list for the user.

    A place whose score is no finite number is left out: nothing says that the item belongs there.

    Args:
        reason: why it is not ranked for the request.
        keep: bool per row of the published list; None where all stay.
    """
    began = time.perf_counter()
    candidates, scores, ranks = record.top_places.astype(np.int64), record.top_scores, np.arange(1, len(record.top_places) + 1)
    is_finite = np.isfinite(scores)
    if not is_finite.all():
        keep = is_finite if keep is None else keep & is_finite
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
    codes = listed.astype(np.int64)
    places, values = select_allowed(snapshot.items, codes, scores, excluded_codes, query.categories, query.k)
    no_ranks = np.zeros(len(places), dtype=np.int64)
    stages = {"select": time.perf_counter() - began}
    return RankResult(codes[places], values, no_ranks, None, "popular", reason, stages, no_ranks)
