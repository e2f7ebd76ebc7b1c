"""Candidates that a request brings: looked up, given the scores that retrieval would give them, and ordered where no ranker orders them.

Called by ladder.py, for a search page or a feed whose items the caller has chosen. No item that it did not name comes into the answer.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import GIVEN_ORDER, RETRIEVAL_ORDER, RankResult
from recsys_batch.online.ranking.selection import select_allowed
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import UserRecord, stack_published_scores
from recsys_batch.online.snapshot.vector_search import score_items


@dataclass(slots=True)
class RequestCandidates:
    """The items of a request's list that may be shown to its user, each once, in the request's order.

    Attributes:
        codes: int64 [C]. places: int64 [C], in the request's list, from 1; of an item that is named twice the first one.
        scores: float32 [C], the request's candidate_scores; None where it has none.
        unknown_item_ids: ids that the snapshot does not have, as the request spells them, each once.
    """

    codes: np.ndarray
    places: np.ndarray
    scores: np.ndarray | None
    unknown_item_ids: list[int | str]

    def describe(self, result: RankResult) -> RankResult:
        """Put a result whose candidate_ranks are places in ``codes`` (from 1) into the request's terms."""
        result.candidate_ranks = self.places[result.candidate_ranks - 1]
        result.unknown_item_ids = self.unknown_item_ids
        return result


@dataclass(slots=True)
class CandidateRecord(UserRecord):
    """A user's record with the request's candidates in place of the retrieved ones.

    Attributes:
        own: the user's record as it was. own_places: int64 [C], candidates' places in its codes, from 0; -1 where one is not there.
        published_ranks: int64 [C], places in the user's whole published top-K, from 1; 0 where a candidate is not in it.
    """

    own: UserRecord = field(kw_only=True)
    own_places: np.ndarray = field(kw_only=True)
    published_ranks: np.ndarray = field(kw_only=True)

    def batch_ranks(self) -> np.ndarray:
        """Rank the candidates as the published top-K does, of which only some may be candidates."""
        return self.published_ranks


def look_up_candidates(snapshot: Snapshot, query: RankQuery, segment: str | None) -> RequestCandidates:
    """Look up the candidates of a request; what the night may not recommend to the user's segment is left out.

    Args:
        segment: the user's; None for none.
    """
    first_places: dict[int, int] = {}
    unknown: dict[int | str, None] = {}
    item_ids = query.candidate_item_ids or ()
    for place, (item_id, code) in enumerate(zip(item_ids, snapshot.items.code_array(item_ids).tolist(), strict=True), 1):
        if code < 0:
            unknown.setdefault(item_id)
        else:
            first_places.setdefault(code, place)
    codes = np.fromiter(first_places, np.int64, len(first_places))
    places = np.fromiter(first_places.values(), np.int64, len(first_places))
    catalogue = snapshot.items.catalogue
    keep = catalogue.eligible_mask(catalogue.rule_of_segment(segment), codes)
    codes, places = codes[keep], places[keep]
    scores = None if query.candidate_scores is None else np.array(query.candidate_scores, np.float32)[places - 1]
    return RequestCandidates(codes, places, scores, list(unknown))


def make_candidate_record(snapshot: Snapshot, record: UserRecord, candidates: RequestCandidates) -> CandidateRecord:
    """Make the record of a user with the request's candidates.

    What the night retrieved for the user keeps the score that it got there; others get theirs by the same metric.

    Args:
        record: the user's, with an embedding.
    """
    assert record.embedding is not None
    retrieved = _find_positions(candidates.codes, record.codes)
    is_retrieved = retrieved >= 0
    retrieval = _retrieval_scores(snapshot, record.embedding, candidates.codes)
    retrieval[is_retrieved] = record.retrieval[retrieved[is_retrieved]]
    ranks = np.zeros(len(candidates.codes), np.int64)
    ranks[is_retrieved] = record.batch_ranks()[retrieved[is_retrieved]]
    listed = np.flatnonzero(ranks)
    listed = listed[np.argsort(ranks[listed])]
    return CandidateRecord(
        embedding=record.embedding,
        n_events=record.n_events,
        segment=record.segment,
        codes=candidates.codes,
        retrieval=retrieval,
        top_places=listed,
        top_scores=record.top_scores[ranks[listed] - 1],
        live=record.live,
        own=record,
        own_places=retrieved,
        published_ranks=ranks,
    )


def order_by_retrieval(
    snapshot: Snapshot, query: RankQuery, candidates: RequestCandidates, record: UserRecord, excluded_codes: Sequence[int], reason: str
) -> RankResult:
    """Answer without the ranker: by retrieval score; in the given order where no score is a number.

    Args:
        record: by ``make_candidate_record``. reason: why the ranker does not rank.
    """
    is_finite = np.isfinite(record.retrieval)
    if not is_finite.any():
        return order_as_given(snapshot, query, candidates, excluded_codes, reason)
    scores = np.where(is_finite, record.retrieval, np.float32(-np.inf))
    ordered = _order(snapshot, query, candidates, scores, excluded_codes, RETRIEVAL_ORDER, reason)
    shown = ordered.candidate_ranks - 1
    ordered.batch_scores, ordered.batch_ranks = stack_published_scores([record])[0, shown], record.batch_ranks()[shown]
    return candidates.describe(ordered)


def order_as_given(
    snapshot: Snapshot, query: RankQuery, candidates: RequestCandidates, excluded_codes: Sequence[int], reason: str | None
) -> RankResult:
    """Answer with the candidates in the request's order; a score is 1 / place in its list. ``reason`` is None where there are none."""
    scores = (1 / candidates.places).astype(np.float32)
    return candidates.describe(_order(snapshot, query, candidates, scores, excluded_codes, GIVEN_ORDER, reason))


def _order(
    snapshot: Snapshot,
    query: RankQuery,
    candidates: RequestCandidates,
    scores: np.ndarray,
    excluded_codes: Sequence[int],
    source: str,
    reason: str | None,
) -> RankResult:
    """Select the best by scores float32 [C]; candidate_ranks are places in the candidates' codes, from 1."""
    began = time.perf_counter()
    places, values = select_allowed(snapshot.items, candidates.codes, scores, excluded_codes, query.categories, query.k)
    stages = {"select": time.perf_counter() - began}
    return RankResult(candidates.codes[places], values, places + 1, None, source, reason, stages, np.zeros(len(places), np.int64))


def _retrieval_scores(snapshot: Snapshot, vector: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Compute what retrieval scores items by, float32 [C]: the inner product with a user's vector, or the cosine.

    An item's score does not depend on the others: einsum takes each row by itself, where BLAS takes several at once.
    """
    items = snapshot.items
    norms = items.norms.take(codes) if snapshot.facts.metric == "cosine" else None
    return score_items(vector, items.catalogue.embeddings.take(codes, axis=0), norms)


def _find_positions(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Find the position of each wanted value in distinct values, int64 of the wanted ones' shape; -1 where one is not there."""
    if not len(among):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(among)
    positions = order[np.minimum(np.searchsorted(among, wanted, sorter=order), len(among) - 1)]
    return np.where(among[positions] == wanted, positions, -1)
