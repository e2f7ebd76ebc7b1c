"""Queries with equally many candidates: the model's input for them, and from its scores the best of each."""

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recsys_batch.online.ranking.ablation import group_contributions
from recsys_batch.online.ranking.exploration import Exploration, Explorer
from recsys_batch.online.ranking.rank_query import RankQuery, build_context
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.online.ranking.request_candidates import RequestCandidates
from recsys_batch.online.ranking.selection import candidate_mask, row_offsets, select_top_k
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import UserRecord, stack_published_scores
from recsys_batch.ranking.features import Context, FeatureSpec, PairFeatures, assemble_features
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
    """Queries with equally many candidates, and the model's input for them.

    Attributes:
        codes: int64 [B, C], the candidates. users, items: float32 [B, d], [B, C, d], embeddings.
        spec: of the features. pair: those that are not context, scaled. context: None for the neutral one.
        seconds: that the input took.
    """

    pairs: list[RankerInput]
    codes: np.ndarray
    users: np.ndarray
    items: np.ndarray
    spec: FeatureSpec
    pair: PairFeatures
    context: Context | None
    seconds: float

    @cached_property
    def features(self) -> np.ndarray:
        """All features, float32 [B, C, F], as a model server and an ONNX model take them."""
        return assemble_features(self.spec, self.pair, self.context)

    def score(self, ranker: OnnxRanker | NumpyRanker) -> np.ndarray:
        """Score the candidates: float32 [B, C]."""
        if isinstance(ranker, NumpyRanker):
            return ranker.score_pairs(self.users, self.items, self.pair, self.context)
        return ranker.score(self.users, self.items, self.features)


def prepare_block(snapshot: Snapshot, pairs: list[RankerInput]) -> ScoringBlock:
    """Prepare the model's input for queries with equally many candidates."""
    began = time.perf_counter()
    items, records = snapshot.items, [pair.record for pair in pairs]
    users = np.concatenate([record.embedding for record in records if record.embedding is not None]).reshape(len(pairs), -1)
    codes = np.concatenate([record.codes for record in records], dtype=np.int64).reshape(len(pairs), -1)
    vectors = items.catalogue.embeddings.take(codes, axis=0)
    pair_features = PairFeatures.from_raw(
        snapshot.features,
        retrieval_score=np.concatenate([record.retrieval for record in records]).reshape(codes.shape),
        log_popularity=items.catalogue.log_popularity.take(codes),
        n_events=np.array([record.n_events for record in records]),
        candidate_score=_candidate_scores(pairs),
    )
    context = build_context([pair.query for pair in pairs], items, codes, vectors, [pair.session for pair in pairs])
    return ScoringBlock(pairs, codes, users, vectors, snapshot.features, pair_features, context, time.perf_counter() - began)


def _candidate_scores(pairs: list[RankerInput]) -> np.ndarray | None:
    """Stack the scores that requests bring, float32 [B, C], 0 where one brings none; None where none does."""
    if all(pair.listed is None or pair.listed.scores is None for pair in pairs):
        return None
    none = np.zeros(len(pairs[0].record.codes), np.float32)
    return np.stack([none if pair.listed is None or pair.listed.scores is None else pair.listed.scores for pair in pairs])


def select_from_block(
    snapshot: Snapshot, block: ScoringBlock, scores: np.ndarray, model_seconds: float, explorer: Explorer | None
) -> list[RankResult]:
    """Select each query's best by the scores float32 [B, C], all finite; the stages' times are those of all queries together."""
    began = time.perf_counter()
    items, pairs, codes = snapshot.items, block.pairs, block.codes
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
                block.items[row : row + 1, chosen],
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
