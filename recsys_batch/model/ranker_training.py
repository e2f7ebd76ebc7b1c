"""Train the ranker on candidates that towers retrieve: hard negatives, and later positives of the user. Called by training.

For every user the older positives are the history, the newest (or random, without time) are the labels, and the best unseen items
are the list. The lists come from *inner* towers, trained on those histories alone: towers trained on the labels would rank them
higher than future positives, and the ranker would learn to trust the retrieval score too much. Loss: softmax over the list
(ListNet top-one, Cao et al. 2007), mean over the positives in it. Half of the users have the context of their label
event, half have none, so that the ranker also learns the neutral context of batch scoring.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recsys_batch.dataset.histories import NO_TIME
from recsys_batch.evaluation.metrics import ndcg_at_k
from recsys_batch.model.challenger_metrics import average_metrics
from recsys_batch.model.content_tokens import ContentTokens
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.model.ranking_samples import RankingData, RankingSamples, retrieve_lists
from recsys_batch.model.tower_parameters import TowerParameters
from recsys_batch.model.training_data import Positives, Progress, bound_users, sample_evaluable_users
from recsys_batch.ranking.features import Context, compute_session_similarity

LABEL_SHARE = 0.2
MAX_TRAINING_USERS, MAX_EVALUATION_USERS = 30_000, 5_000
GATE_GRID = (0.25, 0.5, 1.0)
_MAX_TRAINING_SCORES = 2_000_000_000  # over which the lists of a large catalogue's users are found: some 40 s on two cores
_BATCH_USERS = 128
_EPOCHS, _EVALUATION_INTERVAL = 60, 3
_PATIENCE = 20  # held-out NDCG first falls below that of the retrieval order, for 10 to 15 epochs, then rises past it
_LEARNING_RATE, _WEIGHT_DECAY = 1e-3, 1e-2
_DROPOUT = 0.2
_MIN_STANDARD_ERRORS = 1.0
"""Standard errors of the users' differences by which a gate must beat the retrieval order."""

_MICROSECONDS, _DAY = 1_000_000, 86_400


@dataclass(frozen=True)
class RankerStage:
    """Towers with the histories that they were trained on (``inputs``) and the later positives (``labels``)."""

    towers: TowerParameters
    inputs: Positives
    labels: Positives

    def sample_lists(self, tokens: ContentTokens, seed: int, n_users: int) -> RankingSamples | None:
        """Retrieve candidate lists of at most ``n_users`` sampled users with a history and a label; None without such users."""
        chosen = sample_evaluable_users(self.inputs, self.labels, n_users, seed)
        return retrieve_lists(self.towers, tokens, self.inputs, self.labels, chosen)


def fit_ranker(
    inner: RankerStage, outer: RankerStage, tokens: ContentTokens, seed: int, deadline: float, progress: Progress
) -> tuple[RankerParameters, RankingData, dict[str, float]]:
    """Train a ranker on ``inner`` and keep the epoch and gate with the best NDCG on ``outer``; gate 0 is the retrieval order.

    Returns the ranker, the outer stage's feature data, and the metrics of the outer stage ({} where it has no samples).
    """
    n_items = inner.inputs.n_items
    lists = inner.sample_lists(tokens, seed, bound_users(MAX_TRAINING_USERS, n_items, _MAX_TRAINING_SCORES))
    evaluation = outer.sample_lists(tokens, seed, bound_users(MAX_EVALUATION_USERS, n_items))
    data = RankingData.from_samples(outer.towers, outer.inputs, evaluation)
    best = RankerParameters.initialize(data.embeddings.shape[1], len(data.spec.names), seed)
    best.gate = 0.0
    if lists is None or evaluation is None:
        return best, data, {}
    train_data = RankingData.from_samples(inner.towers, inner.inputs, lists)
    selector, rng = GateSelector(data, evaluation), np.random.default_rng(seed)
    lists = lists.take(np.flatnonzero(lists.relevant.any(axis=1)))
    params, best_ndcg, highest_ndcg, stale_epochs = replace(_detached_copy(best), gate=1.0), 0.0, 0.0, 0
    for tensor in params.tensors():
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(params.tensors(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    for epoch in range(1, _EPOCHS + 1):
        if stale_epochs >= _PATIENCE or time.monotonic() > deadline or len(lists.users) == 0:
            break
        batches = _split_batches(rng.permutation(len(lists.users)))
        losses = [_train_batch(params, train_data, lists.take(users), rng, optimizer) for users in batches]
        if epoch % _EVALUATION_INTERVAL:
            continue
        gate, ndcg, is_significant = selector.select_gate(params)
        stale_epochs = 0 if ndcg > highest_ndcg else stale_epochs + _EVALUATION_INTERVAL
        highest_ndcg = max(highest_ndcg, ndcg)
        if is_significant and ndcg > best_ndcg:
            best, best_ndcg = _detached_copy(replace(params, gate=gate)), ndcg
        progress("ranker", {"epoch": epoch, "loss": float(np.mean(losses)), "ndcg_at_20": ndcg, "gate": gate})
    return best, data, measure_ranker(best, data, evaluation)


def measure_ranker(params: RankerParameters, data: RankingData, evaluation: RankingSamples) -> dict[str, float]:
    """Measure NDCG and recall at 10 and 20 of the re-ranked lists, neutral context."""
    return average_metrics(rerank_hits(params, data, evaluation), evaluation.n_relevant)


def rerank_hits(params: RankerParameters, data: RankingData, evaluation: RankingSamples) -> np.ndarray:
    """Mark the relevant places of the re-ranked lists, neutral context: bool [B, C]."""
    return _sort_hits(evaluation, _retrieval_scores(data, evaluation) + params.gate * _residuals(params, data, evaluation))


class GateSelector:
    """Selects the gate on held-out lists and tests whether it improves significantly on the retrieval order."""

    def __init__(self, data: RankingData, evaluation: RankingSamples) -> None:
        self._data, self._evaluation = data, evaluation
        self._retrieval_scores = _retrieval_scores(data, evaluation)
        self._retrieval_ndcg = self._ndcg(self._retrieval_scores)

    def select_gate(self, params: RankerParameters) -> tuple[float, float, bool]:
        """Select the best gate above 0: (gate, mean NDCG@20, whether the gain exceeds _MIN_STANDARD_ERRORS standard errors)."""
        residuals = _residuals(params, self._data, self._evaluation)
        candidates = []
        for gate in GATE_GRID:
            gain = self._ndcg(self._retrieval_scores + gate * residuals) - self._retrieval_ndcg
            is_significant = bool(gain.mean() > _MIN_STANDARD_ERRORS * gain.std() / max(len(gain), 1) ** 0.5)
            candidates.append((gate, float(self._retrieval_ndcg.mean() + gain.mean()), is_significant))
        return max(candidates, key=lambda candidate: candidate[1])

    def _ndcg(self, scores: np.ndarray) -> np.ndarray:
        return ndcg_at_k(_sort_hits(self._evaluation, scores), self._evaluation.n_relevant, 20)


def _split_batches(users: np.ndarray) -> list[np.ndarray]:
    return np.split(users, range(_BATCH_USERS, len(users), _BATCH_USERS))


def _train_batch(
    params: RankerParameters, data: RankingData, lists: RankingSamples, rng: np.random.Generator, optimizer: torch.optim.Optimizer
) -> float:
    features = torch.from_numpy(data.compute_features(lists, _sample_context(data, lists, rng)))
    keep = torch.from_numpy((rng.random((2, lists.users.shape[1])) >= _DROPOUT).astype(np.float32) / (1 - _DROPOUT))
    users, items = torch.from_numpy(lists.users) * keep[0], torch.from_numpy(data.embeddings[lists.items]) * keep[1]
    scores = params.score(users, items, features).masked_fill(torch.from_numpy(~lists.is_candidate), -torch.inf)
    logs = torch.log_softmax(scores, dim=1)
    relevant = torch.from_numpy(lists.relevant)
    loss = -torch.where(relevant, logs, 0.0).sum(dim=1).div(relevant.sum(dim=1)).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _sample_context(data: RankingData, lists: RankingSamples, rng: np.random.Generator) -> Context:
    """Build the context of the label event (hour, weekday, newest inputs as session) for half of the users, none for the others."""
    has_context = rng.random(len(lists.users)) < 0.5
    has_time = has_context & (lists.label_us != NO_TIME)
    seconds = np.where(has_time, lists.label_us // _MICROSECONDS, 0)
    hour = np.where(has_time, seconds % _DAY / 3600, np.nan)
    weekday = np.where(has_time, (seconds // _DAY + 3) % 7, np.nan)  # 1970-01-01 was a Thursday
    in_session = (lists.session >= 0) & has_context[:, None]
    session = np.where(in_session[..., None], data.embeddings[np.maximum(lists.session, 0)], 0.0).astype(np.float32)
    return Context(hour, weekday, [None] * len(hour), compute_session_similarity(data.embeddings[lists.items], session))


def _retrieval_scores(data: RankingData, lists: RankingSamples) -> np.ndarray:
    """Scale the retrieval scores to the ranker's first feature, float32 [B, C]."""
    return np.asarray((lists.scores - data.spec.mean[0]) / data.spec.scale[0], dtype=np.float32)


def _residuals(params: RankerParameters, data: RankingData, lists: RankingSamples) -> np.ndarray:
    parts = []
    for users in _split_batches(np.arange(len(lists.users))):
        part = lists.take(users)
        with torch.no_grad():
            features = torch.from_numpy(data.compute_features(part, None))
            items = torch.from_numpy(data.embeddings[part.items])
            parts.append(params.residual(torch.from_numpy(part.users), items, features).numpy())
    return np.concatenate(parts)


def _sort_hits(lists: RankingSamples, scores: np.ndarray) -> np.ndarray:
    order = np.argsort(-np.where(lists.is_candidate, scores, -np.inf), axis=1, kind="stable")
    return np.take_along_axis(lists.relevant, order, axis=1)


def _detached_copy(params: RankerParameters) -> RankerParameters:
    copies: dict[str, Any] = {name: value.detach().clone() for name, value in vars(params).items() if isinstance(value, torch.Tensor)}
    return replace(params, **copies)
