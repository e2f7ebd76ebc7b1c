"""Hold towers against the held-out part: what early stopping and the choice of a start are decided by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recsys_batch.evaluation.metrics import hit_matrix, ndcg_at_k
from recsys_batch.model.tower_parameters import Tokens, TowerParameters
from recsys_batch.model.training_data import Positives
from recsys_batch.ranking.top_k import select_top_k_per_row

TOP = 20
MAX_USERS = 5_000
_CELLS = 20_000_000


@dataclass(frozen=True)
class Validator:
    """Sampled users with held-out positives: their histories, and what they took later."""

    users: np.ndarray
    inputs: Positives
    held: Positives

    def ndcg(self, params: TowerParameters, tokens: Tokens) -> float:
        """Mean of ``ndcg_of_users``; 0.0 where nothing is held out."""
        each = self.ndcg_of_users(params, tokens)
        return float(each.mean()) if len(each) else 0.0

    def ndcg_of_users(self, params: TowerParameters, tokens: Tokens) -> np.ndarray:
        """float64 [users]: NDCG@20 of the towers alone over the whole catalogue, items of the history left out."""
        if len(self.users) == 0:
            return np.zeros(0)
        with torch.no_grad():
            lists = np.concatenate([self._lists(params, tokens, part) for part in self._blocks()])
        hits, n_relevant = hit_matrix(lists, self.held.offsets, self.held.codes, self.held.n_items)
        return ndcg_at_k(hits, n_relevant, TOP)

    def log_loss(self, scores: torch.Tensor, scale: float) -> float:
        """Mean -log softmax(scale * scores) of the held-out items; scores float32 [B, n] of the first B users; 0.0 where there are none."""
        if len(scores) == 0:
            return 0.0
        logs = torch.log_softmax(scores * scale, dim=1)
        mine = self.held.users(np.arange(len(scores)))
        return float(-logs[torch.from_numpy(mine.rows), torch.from_numpy(mine.codes)].mean())

    def _lists(self, params: TowerParameters, tokens: Tokens, part: np.ndarray) -> np.ndarray:
        mine = self.inputs.users(part)
        scores = params.scores(params.users(mine, tokens, self.users[part])).numpy()
        scores[mine.rows, mine.codes] = -np.inf
        return select_top_k_per_row(scores, TOP)[1]

    def _blocks(self) -> list[np.ndarray]:
        step = max(1, _CELLS // max(self.inputs.n_items, 1))
        return [np.arange(at, min(at + step, len(self.users))) for at in range(0, len(self.users), step)]


def make_validator(train: Positives, held: Positives, seed: int) -> Validator:
    """At most MAX_USERS of those with a history and something held out."""
    able = np.flatnonzero((held.counts > 0) & (train.counts > 0))
    chosen = np.sort(np.random.default_rng(seed).permutation(able)[:MAX_USERS])
    return Validator(chosen, train.users(chosen), held.users(chosen))


def is_clearly_better(each: np.ndarray, than: np.ndarray) -> bool:
    """Whether the mean of paired per-user values rose by more than its standard error: less is as likely noise as progress."""
    gain = each - than
    return len(gain) > 0 and float(gain.mean()) > float(gain.std() / np.sqrt(len(gain)))
