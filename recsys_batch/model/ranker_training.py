"""Train the ranker on what the towers retrieve: its negatives are the hard ones, and its positives are what was taken later.

For every user the older positives are the history, the newest (or random, without time) are the labels, and the towers' best
unseen items are the list. Loss: softmax over the list (ListNet top-one, Cao et al. 2007), mean over the positives in it. Half of
the users are shown with the context of their label event, half without, so that the batch's neutral context is no stranger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from recsys_batch.features import Context, FeatureSpec, pair_features, session_similarity
from recsys_batch.metrics import hit_matrix, ndcg_at_k, recall_at_k
from recsys_batch.model.data import NO_TIME, Positives, split
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.model.tower_parameters import Tokens, TowerParameters
from recsys_batch.topk import top_k

Progress = Callable[[str, Mapping[str, float]], None]

N_CANDIDATES = 200
MAX_USERS = 30_000
GATES = (0.0, 0.25, 0.5, 1.0)
_LABEL_SHARE = 0.2
_BATCH = 128
_EPOCHS = 20
_PATIENCE = 3
_SESSION = 3
_RATE, _DECAY = 1e-3, 1e-4
_SECONDS, _DAY = 1_000_000, 86_400


@dataclass(frozen=True)
class Lists:
    """Retrieved lists of B users.

    Attributes:
        users: float32 [B, d]; items: codes int64 [B, C]; scores: retrieval scores float32 [B, C].
        relevant: bool [B, C]; n_relevant: int64 [B], also those that were not retrieved.
        n_events: int64 [B]; label_us: int64 [B], time of a label, NO_TIME where unknown; session: int64 [B, S], newest inputs.
    """

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    relevant: np.ndarray
    n_relevant: np.ndarray
    n_events: np.ndarray
    label_us: np.ndarray
    session: np.ndarray

    def take(self, rows: np.ndarray) -> Lists:
        return Lists(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class RankingData:
    """What features are made of: item embeddings float32 [n, d] and log_popularity float32 [n]."""

    spec: FeatureSpec
    embeddings: np.ndarray
    log_popularity: np.ndarray

    def features(self, lists: Lists, context: Context | None) -> np.ndarray:
        popularity = self.log_popularity[lists.items]
        return pair_features(
            self.spec, retrieval_score=lists.scores, log_popularity=popularity, n_events=lists.n_events, context=context
        )


def retrieve_lists(towers: TowerParameters, tokens: Tokens, inputs: Positives, labels: Positives, chosen: np.ndarray) -> Lists:
    """Best unseen items of the users ``chosen`` given ``inputs``; labels are ``labels``."""
    embeddings = item_embeddings(towers)
    parts = []
    for at in range(0, len(chosen), _BATCH):
        part = chosen[at : at + _BATCH]
        mine, later = inputs.users(part), labels.users(part)
        with torch.no_grad():
            users = towers.users(mine, tokens, part).numpy()
        users = np.concatenate([users, np.ones((len(users), 1), dtype=np.float32)], axis=1)
        scores = users @ embeddings.T
        scores[mine.rows, mine.codes] = -np.inf
        best, items = top_k(scores, min(N_CANDIDATES, embeddings.shape[0]))
        hits, n_relevant = hit_matrix(items, later.offsets, later.codes, later.n_items)
        first = np.minimum(later.offsets[:-1], max(len(later.codes) - 1, 0))
        label_us = np.where(later.counts > 0, later.event_us[first] if len(later.codes) else NO_TIME, NO_TIME)
        session = _newest(mine, _SESSION)
        # A user with fewer unseen items than places gets -inf scores; the ranker sees 0 there and nothing counts them.
        relevant = hits & np.isfinite(best)
        parts.append(
            Lists(users, items, np.where(np.isfinite(best), best, 0.0), relevant, n_relevant, mine.counts, label_us, session)
        )
    return Lists(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in Lists.__dataclass_fields__})


def item_embeddings(towers: TowerParameters) -> np.ndarray:
    """float32 [n, h + 1]."""
    return torch.cat([towers.embedding.detach(), towers.item_bias.detach()], dim=1).numpy()


def fit_ranker(
    towers: TowerParameters, tokens: Tokens, train: Positives, held: Positives, seed: int, deadline: float, progress: Progress
) -> tuple[RankerParameters, RankingData, dict[str, float]]:
    """The ranker at its best epoch and gate on the held-out part; gate 0 is the retrieval order, so it is never worse than that there."""
    rng = np.random.default_rng(seed)
    inputs, labels = split(train, _LABEL_SHARE)
    able = np.flatnonzero((labels.counts > 0) & (inputs.counts > 0))
    lists = retrieve_lists(towers, tokens, inputs, labels, rng.permutation(able)[:MAX_USERS]) if len(able) else None
    judged = np.flatnonzero((held.counts > 0) & (train.counts > 0))
    judge = retrieve_lists(towers, tokens, train, held, np.sort(rng.permutation(judged)[:MAX_USERS])) if len(judged) else None
    log_popularity = np.log1p(train.item_counts).astype(np.float32)
    embeddings = item_embeddings(towers)
    sample = lists or judge
    spec = (
        FeatureSpec.default()
        if sample is None
        else FeatureSpec.fitted(sample.scores, log_popularity[sample.items], sample.n_events)
    )
    data = RankingData(spec, embeddings, log_popularity)
    params = RankerParameters.initial(embeddings.shape[1], len(spec.names), seed)
    if lists is None or judge is None:
        params.gate = 0.0
        return params, data, {}
    best = _train(params, data, lists.take(np.flatnonzero(lists.relevant.any(axis=1))), judge, rng, deadline, progress)
    return best, data, metrics_of(best, data, judge)


def metrics_of(params: RankerParameters, data: RankingData, judge: Lists) -> dict[str, float]:
    """NDCG and recall at 10 and 20 of the re-ranked lists, neutral context."""
    scores = _scores(params, data, judge)
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(judge.relevant, order, axis=1)
    result = {f"ndcg_at_{k}": float(ndcg_at_k(hits, judge.n_relevant, k).mean()) for k in (10, 20)}
    return {**result, **{f"recall_at_{k}": float(recall_at_k(hits, judge.n_relevant, k).mean()) for k in (10, 20)}}


def _train(
    params: RankerParameters,
    data: RankingData,
    lists: Lists,
    judge: Lists,
    rng: np.random.Generator,
    deadline: float,
    progress: Progress,
) -> RankerParameters:
    best = replace(params, gate=0.0)
    reached, waited = _quality(best, data, judge), 0
    for tensor in params.tensors():
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(params.tensors(), lr=_RATE, weight_decay=_DECAY)
    for epoch in range(1, _EPOCHS + 1):
        if waited > _PATIENCE or time.monotonic() > deadline or len(lists.users) == 0:
            break
        losses = []
        order = rng.permutation(len(lists.users))
        for at in range(0, len(order), _BATCH):
            losses.append(_step(params, data, lists.take(order[at : at + _BATCH]), rng, optimizer))
        waited += 1
        for gate in GATES[1:]:
            tried = replace(params, gate=gate)
            quality = _quality(tried, data, judge)
            if quality > reached:
                best, reached, waited = _frozen(tried), quality, 0
        progress("ranker", {"epoch": epoch, "loss": float(np.mean(losses)), "ndcg_at_10": reached})
    return best


def _step(
    params: RankerParameters, data: RankingData, lists: Lists, rng: np.random.Generator, optimizer: torch.optim.Optimizer
) -> float:
    features = torch.from_numpy(data.features(lists, _context(data, lists, rng)))
    items = torch.from_numpy(data.embeddings[lists.items])
    logs = torch.log_softmax(params.score(torch.from_numpy(lists.users), items, features), dim=1)
    relevant = torch.from_numpy(lists.relevant)
    loss = -(logs * relevant).sum(dim=1).div(relevant.sum(dim=1)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _context(data: RankingData, lists: Lists, rng: np.random.Generator) -> Context | None:
    """The label's hour and weekday, and the newest inputs as a session; for half of the users nothing."""
    shown = rng.random(len(lists.users)) < 0.5
    timed = shown & (lists.label_us != NO_TIME)
    seconds = np.where(timed, lists.label_us // _SECONDS, 0)
    hour = np.where(timed, seconds % _DAY / 3600, np.nan)
    weekday = np.where(timed, (seconds // _DAY + 3) % 7, np.nan)  # 1970-01-01 was a Thursday
    there = (lists.session >= 0) & shown[:, None]
    session = np.where(there[..., None], data.embeddings[np.maximum(lists.session, 0)], 0.0).astype(np.float32)
    return Context(hour, weekday, [None] * len(hour), session_similarity(data.embeddings[lists.items], session))


def _scores(params: RankerParameters, data: RankingData, lists: Lists) -> np.ndarray:
    parts = []
    for at in range(0, len(lists.users), _BATCH):
        part = lists.take(np.arange(at, min(at + _BATCH, len(lists.users))))
        with torch.no_grad():
            features = torch.from_numpy(data.features(part, None))
            parts.append(
                params.score(torch.from_numpy(part.users), torch.from_numpy(data.embeddings[part.items]), features).numpy()
            )
    return np.concatenate(parts)


def _quality(params: RankerParameters, data: RankingData, judge: Lists) -> float:
    return metrics_of(params, data, judge)["ndcg_at_10"]


def _frozen(params: RankerParameters) -> RankerParameters:
    copies = {name: value.detach().clone() for name, value in vars(params).items() if isinstance(value, torch.Tensor)}
    return replace(params, **copies)


def _newest(inputs: Positives, n: int) -> np.ndarray:
    """int64 [B, n]: each user's newest codes, -1 behind the end."""
    result = np.full((inputs.n_users, n), -1, dtype=np.int64)
    head = inputs.places < n
    result[inputs.rows[head], inputs.places[head]] = inputs.codes[head]
    return result
