"""The lists that the ranker learns from and is judged on: what towers retrieve for users, and which of it they took later."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recsys_batch.dataset.histories import NO_TIME
from recsys_batch.evaluation.metrics import hit_matrix
from recsys_batch.model.tower_parameters import Tokens, TowerParameters
from recsys_batch.model.training_data import Positives
from recsys_batch.ranking.features import Context, FeatureSpec, compute_pair_features
from recsys_batch.ranking.top_k import select_top_k_per_row

N_TRAINING_CANDIDATES = 200
SESSION = 3
_BLOCK = 128
_CELLS = 20_000_000  # scores held at once: 80 MB


@dataclass(frozen=True)
class RankingSamples:
    """Retrieved lists of B users.

    Attributes:
        users: float32 [B, d]; items: codes int64 [B, C]; scores: retrieval scores float32 [B, C].
        there: bool [B, C], False where the user had fewer unseen items than places.
        relevant: bool [B, C]; n_relevant: int64 [B], also those that were not retrieved.
        n_events: int64 [B]; label_us: int64 [B], time of a label, NO_TIME where unknown; session: int64 [B, S], newest inputs.
    """

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    there: np.ndarray
    relevant: np.ndarray
    n_relevant: np.ndarray
    n_events: np.ndarray
    label_us: np.ndarray
    session: np.ndarray

    def take(self, rows: np.ndarray) -> RankingSamples:
        return RankingSamples(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class RankingData:
    """What features are made of: item embeddings float32 [n, d] and log_popularity float32 [n]."""

    spec: FeatureSpec
    embeddings: np.ndarray
    log_popularity: np.ndarray

    @classmethod
    def of(cls, towers: TowerParameters, positives: Positives, sample: RankingSamples | None) -> RankingData:
        """Scaled by the lists that these towers retrieve, so that a ranker finds the same scales with the next towers."""
        log_popularity = np.log1p(positives.item_counts).astype(np.float32)
        if sample is None or not sample.there.any():
            return cls(FeatureSpec.default(), item_embeddings(towers), log_popularity)
        spec = FeatureSpec.fit(sample.scores[sample.there], log_popularity[sample.items[sample.there]], sample.n_events)
        return cls(spec, item_embeddings(towers), log_popularity)

    def features(self, lists: RankingSamples, context: Context | None) -> np.ndarray:
        """float32 [B, C, F]."""
        popularity = self.log_popularity[lists.items]
        return compute_pair_features(
            self.spec, retrieval_score=lists.scores, log_popularity=popularity, n_events=lists.n_events, context=context
        )


def item_embeddings(towers: TowerParameters) -> np.ndarray:
    """float32 [n, h + 1]."""
    return torch.cat([towers.embedding.detach(), towers.item_bias.detach()], dim=1).numpy()


def retrieve_lists(
    towers: TowerParameters, tokens: Tokens, inputs: Positives, labels: Positives, chosen: np.ndarray
) -> RankingSamples | None:
    """Best unseen items of the users ``chosen`` given ``inputs``; what is relevant is ``labels``. None without users."""
    embeddings = item_embeddings(towers)
    step = max(1, min(_BLOCK, _CELLS // len(embeddings)))
    parts = [_retrieved(towers, tokens, inputs, labels, chosen[at : at + step], embeddings) for at in range(0, len(chosen), step)]
    if not parts:
        return None
    return RankingSamples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in RankingSamples.__dataclass_fields__})


def _retrieved(
    towers: TowerParameters, tokens: Tokens, inputs: Positives, labels: Positives, part: np.ndarray, embeddings: np.ndarray
) -> RankingSamples:
    mine, later = inputs.users(part), labels.users(part)
    with torch.no_grad():
        users = towers.users(mine, tokens, part).numpy()
    users = np.concatenate([users, np.ones((len(users), 1), dtype=np.float32)], axis=1)
    scores = users @ embeddings.T
    scores[mine.rows, mine.codes] = -np.inf
    best, items = select_top_k_per_row(scores, min(N_TRAINING_CANDIDATES, len(embeddings)))
    there = np.isfinite(best)
    hits, n_relevant = hit_matrix(items, later.offsets, later.codes, later.n_items)
    label_us = np.full(len(part), NO_TIME)
    some = later.counts > 0
    label_us[some] = later.event_us[later.offsets[:-1][some]]
    return RankingSamples(
        users, items, np.where(there, best, 0.0), there, hits & there, n_relevant, mine.counts, label_us, _newest(mine, SESSION)
    )


def _newest(inputs: Positives, n: int) -> np.ndarray:
    """int64 [B, n]: each user's newest codes, -1 behind the end."""
    result = np.full((inputs.n_users, n), -1, dtype=np.int64)
    head = inputs.places < n
    result[inputs.rows[head], inputs.places[head]] = inputs.codes[head]
    return result
