"""NDCG of towers on held-out positives, by which tower training stops early and chooses its hyperparameters."""

from dataclasses import dataclass

import numpy as np
import torch

from recsys_batch.evaluation.metrics import hit_matrix, ndcg_at_k
from recsys_batch.model.tower_parameters import ContentTokens, TowerParameters
from recsys_batch.model.training_data import Positives, sample_evaluable_users, split_user_blocks
from recsys_batch.ranking.top_k import select_top_k_per_row

NDCG_CUTOFF = 20
MAX_VALIDATION_USERS = 5_000


@dataclass(frozen=True)
class Validator:
    """Evaluates towers on sampled users: ``inputs`` are their histories, ``held_out`` their later positives."""

    users: np.ndarray
    inputs: Positives
    held_out: Positives

    def ndcg(self, params: TowerParameters, tokens: ContentTokens) -> float:
        """Average ``ndcg_per_user``; 0.0 where nothing is held out."""
        return mean_or_zero(self.ndcg_per_user(params, tokens))

    def ndcg_per_user(self, params: TowerParameters, tokens: ContentTokens) -> np.ndarray:
        """Compute NDCG@20 of the towers over the whole catalogue without history items, float64 [n_users]."""
        if len(self.users) == 0:
            return np.zeros(0)
        blocks = split_user_blocks(np.arange(len(self.users)), self.inputs.n_items, MAX_VALIDATION_USERS)
        with torch.no_grad():
            top_lists = np.concatenate([self._retrieve(params, tokens, part) for part in blocks])
        hits, n_relevant = hit_matrix(top_lists, self.held_out.offsets, self.held_out.codes, self.held_out.n_items)
        return ndcg_at_k(hits, n_relevant, NDCG_CUTOFF)

    def log_loss(self, scores: torch.Tensor, scale: float) -> float:
        """Average -log softmax(scale * scores) over held-out items; scores float32 [B, n] of the first B users; 0.0 where B is 0."""
        if len(scores) == 0:
            return 0.0
        logs = torch.log_softmax(scores * scale, dim=1)
        held_out = self.held_out.select_users(np.arange(len(scores)))
        return float(-logs[torch.from_numpy(held_out.rows), torch.from_numpy(held_out.codes)].mean())

    def _retrieve(self, params: TowerParameters, tokens: ContentTokens, part: np.ndarray) -> np.ndarray:
        histories = self.inputs.select_users(part)
        scores = params.score_items(params.encode_users(histories, tokens, self.users[part])).numpy()
        scores[histories.rows, histories.codes] = -np.inf
        return select_top_k_per_row(scores, NDCG_CUTOFF)[1]


def make_validator(train: Positives, held_out: Positives, seed: int) -> Validator:
    """Sample at most MAX_VALIDATION_USERS users with a history and held-out positives into a Validator."""
    chosen = sample_evaluable_users(train, held_out, MAX_VALIDATION_USERS, seed)
    return Validator(chosen, train.select_users(chosen), held_out.select_users(chosen))


def mean_or_zero(values: np.ndarray) -> float:
    """Average values; 0.0 where there are none."""
    return float(values.mean()) if len(values) else 0.0


def is_clearly_better(ndcg: np.ndarray, baseline: np.ndarray) -> bool:
    """Test whether the mean of paired per-user values exceeds the baseline by more than its standard error; less may be noise."""
    gain = ndcg - baseline
    return len(gain) > 0 and float(gain.mean()) > float(gain.std() / np.sqrt(len(gain)))
