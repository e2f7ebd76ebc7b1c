"""Train the towers: a closed-form start, then softmax steps in which the target is never in the history it is predicted from.

Each step splits the positives of some users into input and targets: by time for half of them where time is known (what came
before a random moment is input), at random for the others. The loss is the mean over targets of -log softmax over the
catalogue. In a large catalogue it is over the batch's own targets and random further items, each logit corrected by -log of the
item's chance to be in that set (logQ: Bengio and Senecal 2008; Yi et al. 2019, "Sampling-bias-corrected neural modeling").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from recsys_batch.config import Config
from recsys_batch.model.early_stopping import TOP, Validator, is_clearly_better, make_validator
from recsys_batch.model.tower_parameters import Plan, Tokens, TowerParameters, load_parameters, start_parameters
from recsys_batch.model.training_data import Positives
from recsys_batch.model.warm_start import RIDGE_MAX_ITEMS, WarmStart, compute_spectrum, fit_ridge_start, truncate_start

TowerProgress = Callable[[str, Mapping[str, float]], None]

RIDGES = (150.0, 400.0, 50.0, 1000.0, 15.0)  # the likeliest first: where time is short the rest is not tried
RECENCIES = (0.0, 0.3, 0.6, 1.0)
EMBEDDING_DIMS = (64, 128, 256)
_WIDER_IS_WORTH = 0.02  # a wider model costs every night: the narrowest within this share of the best is taken
_PARAMETERS = 64_000_000  # n_items * embedding_dim of a model whose width is chosen: Adam holds eight such arrays
_SCALES = tuple(float(scale) for scale in np.geomspace(0.5, 500, 25))
_FULL_SOFTMAX_ITEMS = 60_000
_EXTRA_NEGATIVES = 4_096
_CELLS = 12_000_000  # logits of one step: 48 MB
_KEEP = 0.9  # share of the positives that is input when the split is random
_BY_TIME = 0.5  # share of users whose split is by time
_PATIENCE = 6


@dataclass(frozen=True)
class FittedTowers:
    """Towers at their best epoch, with what it takes to train them again on more data."""

    parameters: TowerParameters
    plan: Plan
    epochs: int
    curve: list[float]


def fit_towers(
    train: Positives, held: Positives, tokens: Tokens, has_time: bool, config: Config, deadline: float, progress: TowerProgress
) -> FittedTowers:
    """Early stopping on NDCG@20 of the held-out part; epoch 0 is the closed-form start itself."""
    judge = make_validator(train, held, config.training.seed)
    plan, params = choose_plan(train, judge, tokens, has_time, config, deadline)
    best, best_epoch, best_each = params.copy(), 0, judge.ndcg_of_users(params, tokens)
    curve = [_mean(best_each)]
    progress("towers", {"epoch": 0, "embedding_dim": plan.h + 1, f"ndcg_at_{TOP}": curve[0]})
    trainer = _Trainer(params, train, tokens, has_time, config)
    for epoch in range(1, config.training.max_epochs + 1):
        if epoch - best_epoch > _PATIENCE or time.monotonic() > deadline:
            break
        loss = trainer.epoch(deadline)
        each = judge.ndcg_of_users(params, tokens)
        curve.append(_mean(each))
        progress("towers", {"epoch": epoch, "loss": loss, f"ndcg_at_{TOP}": curve[-1]})
        if is_clearly_better(each, best_each):
            best, best_epoch, best_each = params.copy(), epoch, each
    return FittedTowers(best, plan, best_epoch, curve)


def refit_towers(
    everything: Positives, fitted: FittedTowers, tokens: Tokens, has_time: bool, config: Config, deadline: float
) -> TowerParameters:
    """The same training on all positives, for the epochs that were best, turned so that the ranker trained before still fits."""
    params = start_parameters(fitted.plan, everything, len(tokens.names), config.training.seed)
    trainer = _Trainer(params, everything, tokens, has_time, config)
    for _ in range(fitted.epochs):
        trainer.epoch(deadline)
    return params.rotated_onto(fitted.parameters)


def choose_plan(
    train: Positives, judge: Validator, tokens: Tokens, has_time: bool, config: Config, deadline: float
) -> tuple[Plan, TowerParameters]:
    """Ridge, then width, then recency by NDCG@20 on the held-out part, then the scale by its log loss; and the start they give."""
    widths = _widths(train.n_items, config)
    begin = _starts(train, widths[-1], config.training.seed)
    n_tokens, quarter = len(tokens.names), time.monotonic() + (deadline - time.monotonic()) / 4

    def quality(start_of: WarmStart, plan: Plan) -> float:
        return judge.ndcg(load_parameters(start_of, plan, n_tokens), tokens)

    plan = Plan(RIDGES[0], 0.0, 1.0, widths[-1])
    begun = begin(plan.ridge)
    best = quality(begun, plan)
    for ridge in RIDGES[1:]:
        if time.monotonic() > quarter:
            break
        tried = begin(ridge)
        reached = quality(tried, replace(plan, ridge=ridge))
        if reached > best:
            best, begun, plan = reached, tried, replace(plan, ridge=ridge)
    by_width = {h: quality(begun, replace(plan, h=h)) for h in widths}
    enough = max(by_width.values()) * (1 - _WIDER_IS_WORTH)
    plan = replace(plan, h=next(h for h in widths if by_width[h] >= enough))
    if has_time:
        plan = max((replace(plan, recency=recency) for recency in RECENCIES), key=lambda one: quality(begun, one))
    plan = replace(plan, scale=_best_scale(load_parameters(begun, plan, n_tokens), judge, tokens, train.n_items))
    return plan, load_parameters(begun, plan, n_tokens)


def _starts(train: Positives, h: int, seed: int) -> Callable[[float], WarmStart]:
    """The closed-form start for a ridge; what all ridges share is computed once."""
    if train.n_items <= RIDGE_MAX_ITEMS:
        return lambda ridge: fit_ridge_start(train, h, ridge, seed)
    spectrum = compute_spectrum(train, h, seed)
    return lambda ridge: truncate_start(train, h, ridge, seed, spectrum)


def _widths(n_items: int, config: Config) -> list[int]:
    """Candidate widths of the learned vectors (one less than embedding_dim, which has the item's bias too), ascending."""
    if config.model.embedding_dim is not None:
        return [config.model.embedding_dim - 1]
    return [dim - 1 for dim in EMBEDDING_DIMS if dim == EMBEDDING_DIMS[0] or n_items * dim <= _PARAMETERS]


def _best_scale(params: TowerParameters, judge: Validator, tokens: Tokens, n_items: int) -> float:
    some = np.arange(min(len(judge.users), max(1, _CELLS // n_items)))
    with torch.no_grad():
        scores = params.scores(params.users(judge.inputs.users(some), tokens, judge.users[some]))
        return min(_SCALES, key=lambda value: judge.log_loss(scores, value))


def _mean(each: np.ndarray) -> float:
    return float(each.mean()) if len(each) else 0.0


class _Trainer:
    """Adam over the parameters in place."""

    def __init__(self, params: TowerParameters, data: Positives, tokens: Tokens, has_time: bool, config: Config) -> None:
        self._params, self._data, self._tokens, self._has_time = params, data, tokens, has_time
        self._rng = np.random.default_rng(config.training.seed)
        self._full = data.n_items <= _FULL_SOFTMAX_ITEMS
        width = data.n_items if self._full else config.training.batch_size * 20 + _EXTRA_NEGATIVES
        self._batch = int(np.clip(_CELLS // width, 16, config.training.batch_size))
        self._able = np.flatnonzero(data.counts >= 2)
        self._frequency = data.item_counts / max(len(data.codes), 1)
        for tensor in params.tensors().values():
            tensor.requires_grad_(True)
        # No weight decay: Adam would shrink the rows of rare items, which have no other gradient, by a full step each time.
        self._optimizer = torch.optim.Adam(params.tensors().values(), lr=config.training.learning_rate)

    def epoch(self, deadline: float) -> float:
        """One pass over the users; the mean loss."""
        losses = []
        order = self._rng.permutation(self._able)
        for at in range(0, len(order), self._batch):
            losses.append(self._step(order[at : at + self._batch]))
            if time.monotonic() > deadline:
                break
        return float(np.mean(losses)) if losses else float("nan")

    def _step(self, users: np.ndarray) -> float:
        mine = self._data.users(users)
        is_input = self._split(mine)
        inputs, targets = mine.where(is_input), mine.where(~is_input)
        vectors = self._params.users(inputs, self._tokens, users)
        loss = self._full_loss(vectors, targets) if self._full else self._sampled_loss(vectors, targets)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())

    def _split(self, mine: Positives) -> np.ndarray:
        """bool [total]: which entries are input; every user keeps at least one of each where there are two."""
        counts, places = mine.counts, mine.places
        by_chance = self._rng.random(len(places)) < _KEEP
        cut = 1 + np.floor(self._rng.uniform(0.0, 0.5, len(counts)) * (counts - 1))
        by_time = places >= np.repeat(cut, counts)
        timed = self._rng.random(len(counts)) < (_BY_TIME if self._has_time else 0.0)
        chosen = np.where(np.repeat(timed, counts), by_time, by_chance)
        n_inputs = np.bincount(mine.rows[chosen], minlength=len(counts))
        # One entry changes sides for users of whom chance left a side empty.
        lone = places == np.repeat(self._rng.integers(0, counts), counts)
        return np.asarray((chosen & ~(np.repeat(n_inputs == counts, counts) & lone)) | (np.repeat(n_inputs == 0, counts) & lone))

    def _full_loss(self, vectors: torch.Tensor, targets: Positives) -> torch.Tensor:
        logs = torch.log_softmax(self._params.scores(vectors), dim=1)
        return -logs[torch.from_numpy(targets.rows), torch.from_numpy(targets.codes)].mean()

    def _sampled_loss(self, vectors: torch.Tensor, targets: Positives) -> torch.Tensor:
        n = self._data.n_items
        pool = np.unique(np.concatenate([targets.codes, self._rng.integers(0, n, _EXTRA_NEGATIVES)]))
        missed = (1 - self._frequency[pool]) ** len(targets.codes) * (1 - 1 / n) ** _EXTRA_NEGATIVES
        log_q = torch.from_numpy(np.log1p(-np.minimum(missed, 1 - 1e-9)).astype(np.float32))
        items = torch.from_numpy(pool)
        logits = vectors @ self._params.embedding[items].T + self._params.item_bias[items].T - log_q
        place = torch.from_numpy(np.searchsorted(pool, targets.codes))
        return -torch.log_softmax(logits, dim=1)[torch.from_numpy(targets.rows), place].mean()
