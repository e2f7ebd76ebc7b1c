"""Train the ranker on what towers retrieve: its negatives are the hard ones, and its positives are what was taken later.

For every user the older positives are the history, the newest (or random, without time) are the labels, and the best unseen items
are the list. The lists come from *inner* towers, trained on those histories alone: towers that had seen the labels would rank them
higher than they will ever rank what is still to come, and the ranker would learn to trust them too much. Loss: softmax over the list
(ListNet top-one, Cao et al. 2007), mean over the positives in it. Half of the users are shown with the context of their label
event, half without, so that the batch's neutral context is no stranger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recsys_batch.dataset.histories import NO_TIME
from recsys_batch.evaluation.metrics import ndcg_at_k, recall_at_k
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.model.ranking_samples import RankingData, RankingSamples, retrieve_lists
from recsys_batch.model.tower_parameters import Tokens, TowerParameters
from recsys_batch.model.training_data import Positives
from recsys_batch.ranking.features import Context, compute_session_similarity

RankerProgress = Callable[[str, Mapping[str, float]], None]

LABEL_SHARE = 0.2
MAX_USERS, JUDGED_USERS = 30_000, 5_000
GATES = (0.25, 0.5, 1.0)
_BATCH = 128
_EPOCHS, _JUDGE_EVERY = 60, 3
_PATIENCE = 20  # the held-out quality first falls below the retrieval order's, for 10 to 15 epochs, then rises past it
_RATE, _DECAY = 1e-3, 1e-2
_DROPOUT = 0.2
_SURE = 1.0
"""How many standard errors of the users' differences a gate must gain over the retrieval order."""
NOT_JUDGED = {f"{name}_at_{k}": 0.0 for name in ("ndcg", "recall") for k in (10, 20)}
"""Metrics where nothing is held out."""

_SECONDS, _DAY = 1_000_000, 86_400


@dataclass(frozen=True)
class RankerStage:
    """Towers with the histories that they were trained on, and what came after."""

    towers: TowerParameters
    inputs: Positives
    labels: Positives

    def lists(self, tokens: Tokens, seed: int, n_users: int) -> RankingSamples | None:
        """Of at most ``n_users`` users with a history and a label."""
        able = np.flatnonzero((self.labels.counts > 0) & (self.inputs.counts > 0))
        chosen = np.sort(np.random.default_rng(seed).permutation(able)[:n_users])
        return retrieve_lists(self.towers, tokens, self.inputs, self.labels, chosen)


def fit_ranker(
    inner: RankerStage, outer: RankerStage, tokens: Tokens, seed: int, deadline: float, progress: RankerProgress
) -> tuple[RankerParameters, RankingData, dict[str, float]]:
    """A ranker taught on ``inner``, at the epoch and gate that were best on ``outer``; gate 0 is the retrieval order.

    Returns:
        The ranker, the outer stage's feature data, and the metrics of the outer stage ({} where nothing could be judged).
    """
    lists, judge = inner.lists(tokens, seed, MAX_USERS), outer.lists(tokens, seed, JUDGED_USERS)
    data = RankingData.of(outer.towers, outer.inputs, judge)
    params = RankerParameters.initial(data.embeddings.shape[1], len(data.spec.names), seed)
    params.gate = 0.0
    if lists is None or judge is None:
        return params, data, {}
    taught = RankingData.of(inner.towers, inner.inputs, lists)
    lists = lists.take(np.flatnonzero(lists.relevant.any(axis=1)))
    best = _train(params, taught, lists, GateSelector(data, judge), np.random.default_rng(seed), deadline, progress)
    return best, data, measure_ranker(best, data, judge)


def measure_ranker(params: RankerParameters, data: RankingData, judge: RankingSamples) -> dict[str, float]:
    """NDCG and recall at 10 and 20 of the re-ranked lists, neutral context."""
    hits = _ranked_hits(judge, _retrieval(data, judge) + params.gate * _residuals(params, data, judge))
    result = {f"ndcg_at_{k}": float(ndcg_at_k(hits, judge.n_relevant, k).mean()) for k in (10, 20)}
    return {**result, **{f"recall_at_{k}": float(recall_at_k(hits, judge.n_relevant, k).mean()) for k in (10, 20)}}


class GateSelector:
    """Chooses the gate on held-out lists, and tells an improvement from luck."""

    def __init__(self, data: RankingData, judge: RankingSamples) -> None:
        self._data, self._judge = data, judge
        self._retrieval = _retrieval(data, judge)
        self._base = self._ndcg(self._retrieval)

    def best_gate(self, params: RankerParameters) -> tuple[float, float, bool]:
        """(gate, mean NDCG@20, whether that gains _SURE standard errors over the retrieval order) of the best gate above 0."""
        residuals = _residuals(params, self._data, self._judge)
        tried = []
        for gate in GATES:
            gained = self._ndcg(self._retrieval + gate * residuals) - self._base
            sure = bool(gained.mean() > _SURE * gained.std() / max(len(gained), 1) ** 0.5)
            tried.append((gate, float(self._base.mean() + gained.mean()), sure))
        return max(tried, key=lambda one: one[1])

    def _ndcg(self, scores: np.ndarray) -> np.ndarray:
        return ndcg_at_k(_ranked_hits(self._judge, scores), self._judge.n_relevant, 20)


def _train(
    params: RankerParameters,
    taught: RankingData,
    lists: RankingSamples,
    referee: GateSelector,
    rng: np.random.Generator,
    deadline: float,
    progress: RankerProgress,
) -> RankerParameters:
    best, reached, highest, waited = _frozen(params), 0.0, 0.0, 0
    params = replace(params, gate=1.0)
    for tensor in params.tensors():
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(params.tensors(), lr=_RATE, weight_decay=_DECAY)
    for epoch in range(1, _EPOCHS + 1):
        if waited >= _PATIENCE or time.monotonic() > deadline or len(lists.users) == 0:
            break
        order = rng.permutation(len(lists.users))
        losses = [_step(params, taught, lists.take(order[at : at + _BATCH]), rng, optimizer) for at in range(0, len(order), _BATCH)]
        if epoch % _JUDGE_EVERY:
            continue
        gate, quality, sure = referee.best_gate(params)
        waited = 0 if quality > highest else waited + _JUDGE_EVERY
        highest = max(highest, quality)
        if sure and quality > reached:
            best, reached = _frozen(replace(params, gate=gate)), quality
        progress("ranker", {"epoch": epoch, "loss": float(np.mean(losses)), "ndcg_at_20": quality, "gate": gate})
    return best


def _step(
    params: RankerParameters, data: RankingData, lists: RankingSamples, rng: np.random.Generator, optimizer: torch.optim.Optimizer
) -> float:
    features = torch.from_numpy(data.features(lists, _context(data, lists, rng)))
    keep = torch.from_numpy((rng.random((2, lists.users.shape[1])) >= _DROPOUT).astype(np.float32) / (1 - _DROPOUT))
    users, items = torch.from_numpy(lists.users) * keep[0], torch.from_numpy(data.embeddings[lists.items]) * keep[1]
    scores = params.score(users, items, features).masked_fill(torch.from_numpy(~lists.there), -torch.inf)
    logs = torch.log_softmax(scores, dim=1)
    relevant = torch.from_numpy(lists.relevant)
    loss = -torch.where(relevant, logs, 0.0).sum(dim=1).div(relevant.sum(dim=1)).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _context(data: RankingData, lists: RankingSamples, rng: np.random.Generator) -> Context:
    """The label's hour and weekday, and the newest inputs as a session; for half of the users nothing."""
    shown = rng.random(len(lists.users)) < 0.5
    timed = shown & (lists.label_us != NO_TIME)
    seconds = np.where(timed, lists.label_us // _SECONDS, 0)
    hour = np.where(timed, seconds % _DAY / 3600, np.nan)
    weekday = np.where(timed, (seconds // _DAY + 3) % 7, np.nan)  # 1970-01-01 was a Thursday
    there = (lists.session >= 0) & shown[:, None]
    session = np.where(there[..., None], data.embeddings[np.maximum(lists.session, 0)], 0.0).astype(np.float32)
    return Context(hour, weekday, [None] * len(hour), compute_session_similarity(data.embeddings[lists.items], session))


def _retrieval(data: RankingData, lists: RankingSamples) -> np.ndarray:
    """float32 [B, C]: the scaled retrieval score, which the residual is added to."""
    return np.asarray((lists.scores - data.spec.mean[0]) / data.spec.scale[0], dtype=np.float32)


def _residuals(params: RankerParameters, data: RankingData, lists: RankingSamples) -> np.ndarray:
    parts = []
    for at in range(0, len(lists.users), _BATCH):
        part = lists.take(np.arange(at, min(at + _BATCH, len(lists.users))))
        with torch.no_grad():
            features = torch.from_numpy(data.features(part, None))
            items = torch.from_numpy(data.embeddings[part.items])
            parts.append(params.residual(torch.from_numpy(part.users), items, features).numpy())
    return np.concatenate(parts)


def _ranked_hits(lists: RankingSamples, scores: np.ndarray) -> np.ndarray:
    order = np.argsort(-np.where(lists.there, scores, -np.inf), axis=1, kind="stable")
    return np.take_along_axis(lists.relevant, order, axis=1)


def _frozen(params: RankerParameters) -> RankerParameters:
    copies: dict[str, Any] = {name: value.detach().clone() for name, value in vars(params).items() if isinstance(value, torch.Tensor)}
    return replace(params, **copies)
