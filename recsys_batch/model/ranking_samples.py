"""Candidate lists on which the ranker is trained and evaluated: items that towers retrieve, labelled with later positives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recsys_batch.dataset.histories import NO_TIME
from recsys_batch.evaluation.metrics import hit_matrix
from recsys_batch.model.content_tokens import ContentTokens
from recsys_batch.model.tower_parameters import TowerParameters
from recsys_batch.model.training_data import Positives, split_user_blocks
from recsys_batch.ranking.features import Context, FeatureSpec, compute_pair_features
from recsys_batch.ranking.top_k import select_top_k_per_row

N_TRAINING_CANDIDATES = 200
SESSION_LENGTH = 3
_BLOCK_USERS = 128


@dataclass(frozen=True)
class RankingSamples:
    """Retrieved candidate lists of B users.

    Attributes:
        users: float32 [B, d]; items: codes int64 [B, C]; scores: retrieval scores float32 [B, C].
        is_candidate: bool [B, C], False for the padding of users with fewer than C unseen items.
        relevant: bool [B, C]; n_relevant: int64 [B], including items that were not retrieved.
        n_events: int64 [B]; label_us: int64 [B], microseconds of a label, NO_TIME where unknown; session: int64 [B, S], newest inputs.
    """

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    is_candidate: np.ndarray
    relevant: np.ndarray
    n_relevant: np.ndarray
    n_events: np.ndarray
    label_us: np.ndarray
    session: np.ndarray

    def take(self, rows: np.ndarray) -> RankingSamples:
        """Select the users at ``rows``."""
        return RankingSamples(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class RankingData:
    """Inputs of ranker features: their scaling, item embeddings float32 [n, d] and log_popularity float32 [n]."""

    spec: FeatureSpec
    embeddings: np.ndarray
    log_popularity: np.ndarray

    @classmethod
    def from_samples(cls, towers: TowerParameters, positives: Positives, sample: RankingSamples | None) -> RankingData:
        """Fit the feature scaling to the lists that these towers retrieve, so that a ranker sees the same scales with other towers."""
        log_popularity = np.log1p(positives.item_counts).astype(np.float32)
        if sample is None or not sample.is_candidate.any():
            return cls(FeatureSpec.default(), towers.item_embeddings(), log_popularity)
        spec = FeatureSpec.fit(sample.scores[sample.is_candidate], log_popularity[sample.items[sample.is_candidate]], sample.n_events)
        return cls(spec, towers.item_embeddings(), log_popularity)

    def compute_features(self, lists: RankingSamples, context: Context | None) -> np.ndarray:
        """Compute pair features float32 [B, C, F]."""
        raw = {"retrieval_score": lists.scores, "log_popularity": self.log_popularity[lists.items], "n_events": lists.n_events}
        return compute_pair_features(self.spec, **raw, context=context)


def retrieve_lists(
    towers: TowerParameters, tokens: ContentTokens, inputs: Positives, labels: Positives, chosen: np.ndarray
) -> RankingSamples | None:
    """Retrieve the best unseen items of the users ``chosen`` given ``inputs``, with ``labels`` as relevant items; None without users."""
    embeddings = towers.item_embeddings()
    blocks = split_user_blocks(chosen, len(embeddings), _BLOCK_USERS)
    parts = [_retrieve_block(towers, tokens, inputs, labels, block, embeddings) for block in blocks]
    if not parts:
        return None
    return RankingSamples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in RankingSamples.__dataclass_fields__})


def _retrieve_block(
    towers: TowerParameters, tokens: ContentTokens, inputs: Positives, labels: Positives, part: np.ndarray, embeddings: np.ndarray
) -> RankingSamples:
    histories, later = inputs.select_users(part), labels.select_users(part)
    with torch.no_grad():
        users = towers.encode_users(histories, tokens, part).numpy()
    users = np.concatenate([users, np.ones((len(users), 1), dtype=np.float32)], axis=1)
    scores = users @ embeddings.T
    scores[histories.rows, histories.codes] = -np.inf
    best, items = select_top_k_per_row(scores, min(N_TRAINING_CANDIDATES, len(embeddings)))
    is_candidate = np.isfinite(best)
    hits, n_relevant = hit_matrix(items, later.offsets, later.codes, later.n_items)
    label_us = np.full(len(part), NO_TIME)
    has_label = later.counts > 0
    label_us[has_label] = later.event_us[later.offsets[:-1][has_label]]
    session, relevant = _newest_codes(histories, SESSION_LENGTH), hits & is_candidate
    scores = np.where(is_candidate, best, 0.0)
    return RankingSamples(users, items, scores, is_candidate, relevant, n_relevant, histories.counts, label_us, session)


def _newest_codes(inputs: Positives, n: int) -> np.ndarray:
    """Select each user's newest ``n`` codes, int64 [B, n], padded with -1."""
    newest = np.full((inputs.n_users, n), -1, dtype=np.int64)
    is_newest = inputs.positions < n
    newest[inputs.rows[is_newest], inputs.positions[is_newest]] = inputs.codes[is_newest]
    return newest
