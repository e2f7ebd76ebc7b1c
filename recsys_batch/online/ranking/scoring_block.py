"""Queries with equally many candidates: the model's input for them, and from its scores the best of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from recsys_batch.online.ranking.ablation import group_contributions
from recsys_batch.online.ranking.exploration import Exploration, Explorer
from recsys_batch.online.ranking.rank_query import SESSION_ITEMS, RankQuery, build_context, compute_similarity, pad_sessions
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.online.ranking.request_candidates import RequestCandidates
from recsys_batch.online.ranking.selection import candidate_mask, row_offsets, select_top_k
from recsys_batch.online.snapshot.item_table import ItemTable
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import UserRecord, stack_published_scores
from recsys_batch.ranking.compiled_ranker import CompiledRanker
from recsys_batch.ranking.features import CANDIDATE_SCORE, Context, FeatureSpec, PairFeatures, assemble_features
from recsys_batch.ranking.numpy_ranker import NumpyRanker
from recsys_batch.ranking.onnx_ranker import OnnxRanker


@dataclass(slots=True)
class RankerInput:
    """A query and the candidates that the ranker scores for it.

    Attributes:
        session, excluded_codes: codes of the session's items, and of what must not come back.
        record: the user's, or one made from the session.
        personalised: whether the record is the user's own.
        listed: the candidates of ``record``, where the request brought them; None where they were retrieved.
    """

    query: RankQuery
    record: UserRecord
    session: list[int]
    excluded_codes: list[int]
    personalised: bool
    listed: RequestCandidates | None = None


@dataclass
class ScoringBlock:
    """Queries with equally many candidates, and what a ranker may ask for of them; what it does not ask for is not made.

    Attributes:
        queries, sessions: of each its request, and codes of its session's items.
        codes: int64 [B, C], the candidates. users: float32 [B, d], embeddings. n_events: int64 [B].
        retrieval: float32 [B, C], not scaled. candidate_score: float32 [B, C], what requests bring; None where none does.
        spec: of the features.
        seconds: that this took.
    """

    items: ItemTable
    spec: FeatureSpec
    queries: Sequence[RankQuery]
    sessions: Sequence[list[int]]
    codes: np.ndarray
    users: np.ndarray
    n_events: np.ndarray
    retrieval: np.ndarray
    candidate_score: np.ndarray | None
    seconds: float = 0.0

    @cached_property
    def vectors(self) -> np.ndarray:
        """Embeddings of the candidates, float32 [B, C, d]."""
        return self.items.catalogue.embeddings.take(self.codes, axis=0)

    @cached_property
    def pair(self) -> PairFeatures:
        """Features that are not context, scaled."""
        return PairFeatures.from_raw(
            self.spec,
            retrieval_score=self.retrieval,
            log_popularity=self.items.catalogue.log_popularity.take(self.codes),
            n_events=self.n_events,
            candidate_score=self.candidate_score,
        )

    @cached_property
    def context(self) -> Context | None:
        """Context of the requests, with the session's similarity; None for the neutral one."""
        context = build_context(self.queries, self.sessions)
        if context is None or not any(self.sessions):
            return context
        return replace(context, session_similarity=compute_similarity(self.items, self.codes, self.vectors, self.sessions))

    @cached_property
    def features(self) -> np.ndarray:
        """All features, float32 [B, C, F], as a model server and an ONNX model take them."""
        return assemble_features(self.spec, self.pair, self.context)

    def score(self, ranker: OnnxRanker | NumpyRanker) -> np.ndarray:
        """Score the candidates: float32 [B, C]."""
        if isinstance(ranker, CompiledRanker):
            return ranker.score_codes(
                self.users,
                self.codes,
                self.retrieval,
                self.n_events,
                pad_sessions(self.sessions, -1),
                build_context(self.queries, self.sessions),
                self.candidate_score,
                self.items.catalogue.embeddings,
                self.items.catalogue.log_popularity,
                self.items.norms,
            )
        if isinstance(ranker, NumpyRanker):
            return ranker.score_pairs(self.users, self.vectors, self.pair, self.context)
        return ranker.score(self.users, self.vectors, self.features)

    def take(self, rows: np.ndarray, columns: np.ndarray) -> ScoringBlock:
        """Take groups of candidates: those at ``columns`` [n, w] of the queries ``rows`` [n], as n queries of w candidates."""
        cells, numbers = (rows[:, None], columns), rows.tolist()
        return replace(
            self,
            queries=[self.queries[row] for row in numbers],
            sessions=[self.sessions[row] for row in numbers],
            codes=self.codes[cells],
            users=self.users[rows],
            n_events=self.n_events[rows],
            retrieval=self.retrieval[cells],
            candidate_score=None if self.candidate_score is None else self.candidate_score[cells],
        )


def prepare_block(snapshot: Snapshot, pairs: Sequence[RankerInput], *, is_gathered: bool) -> ScoringBlock:
    """Prepare the model's input for queries with equally many candidates.

    Args:
        is_gathered: whether vectors, features of pairs and context are made here, and their time counted as the features'.
    """
    began = time.perf_counter()
    records = [pair.record for pair in pairs]
    users = np.concatenate([record.embedding for record in records if record.embedding is not None]).reshape(len(pairs), -1)
    codes = np.concatenate([record.codes for record in records], dtype=np.int64).reshape(len(pairs), -1)
    block = ScoringBlock(
        snapshot.items,
        snapshot.features,
        queries=[pair.query for pair in pairs],
        sessions=[pair.session[-SESSION_ITEMS:] for pair in pairs],
        codes=codes,
        users=users,
        n_events=np.array([record.n_events for record in records]),
        retrieval=np.concatenate([record.retrieval for record in records], dtype=np.float32).reshape(codes.shape),
        candidate_score=_candidate_scores(pairs) if CANDIDATE_SCORE in snapshot.features.names else None,
    )
    if is_gathered:
        _ = block.vectors, block.pair, block.context
    block.seconds = time.perf_counter() - began
    return block


def _candidate_scores(pairs: Sequence[RankerInput]) -> np.ndarray | None:
    """Stack the scores that requests bring, float32 [B, C], 0 where one brings none; None where none does."""
    if all(pair.listed is None or pair.listed.scores is None for pair in pairs):
        return None
    none = np.zeros(len(pairs[0].record.codes), np.float32)
    return np.stack([none if pair.listed is None or pair.listed.scores is None else pair.listed.scores for pair in pairs])


def select_from_block(
    snapshot: Snapshot,
    pairs: Sequence[RankerInput],
    block: ScoringBlock,
    scores: np.ndarray,
    model_seconds: float,
    explorer: Explorer | None,
) -> list[RankResult]:
    """Select each query's best by the scores float32 [B, C], all finite; the stages' times are those of all queries together.

    Args:
        pairs: what the block was prepared from.
    """
    began = time.perf_counter()
    items, codes = snapshot.items, block.codes
    keep = candidate_mask(items, codes, [pair.excluded_codes for pair in pairs], [pair.query.categories for pair in pairs])
    if keep is not None:
        scores = np.where(keep, scores, np.float32(-np.inf))
    n_ordered = max(pair.query.k for pair in pairs) if explorer is None else codes.shape[1]
    columns, values = select_top_k(scores, codes, n_ordered, items.catalogue.item_rules)
    flat = columns + row_offsets(codes)
    batch_scores = stack_published_scores([pair.record for pair in pairs]).take(flat)
    n_allowed = np.isfinite(values).sum(axis=1).tolist()
    shown = zip(pairs, codes.take(flat), values, columns, columns + 1, batch_scores, n_allowed, strict=True)
    stages = {"features": block.seconds, "model": model_seconds, "select": time.perf_counter() - began}
    results = []
    for row, (pair, its_codes, its_values, its_places, ranks, before, n) in enumerate(shown):
        top: slice | np.ndarray = slice(min(n, pair.query.k))
        exploration = None
        if explorer is not None and not pair.query.explain and pair.listed is None:
            top, propensities = explorer.swap_places(min(n, pair.query.k), n)
            allowed = None if keep is None else keep[row]
            exploration = Exploration(propensities, top + 1, _batch_positions(pair.record, allowed)[its_places[top]])
        ranked = RankResult(its_codes[top], its_values[top], ranks[top], before[top], "ranker", None, stages, exploration=exploration)
        if pair.query.explain and snapshot.ranker is not None:
            chosen = its_places[top]
            ranked.batch_ranks = pair.record.batch_ranks()[chosen]
            ranked.contributions = group_contributions(
                snapshot.ranker,
                snapshot.features,
                block.users[row : row + 1],
                block.vectors[row : row + 1, chosen],
                block.features[row : row + 1, chosen],
            )
        results.append(ranked if pair.listed is None else pair.listed.describe(ranked))
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
