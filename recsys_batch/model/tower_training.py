"""Train the towers: closed-form warm start, then softmax steps whose targets are not in the input history. Called by training.

Each step splits the positives of some users into input and targets: by time for half of them where time is known (events before
a random moment are input), at random for the others. The loss is the mean over targets of -log softmax over the
catalogue. In a large catalogue it is over the batch's own targets and random negatives, each logit corrected by -log of the
item's chance to be in that set (logQ: Bengio and Senecal 2008; Yi et al. 2019, "Sampling-bias-corrected neural modeling").
NDCG@20 on held-out positives chooses the hyperparameters and ends the training.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from recsys_batch.config import Config
from recsys_batch.evaluation.metrics import hit_matrix, ndcg_at_k
from recsys_batch.model.content_tokens import ContentTokens
from recsys_batch.model.tower_parameters import Hyperparameters, TowerParameters, initialize_parameters, scale_warm_start
from recsys_batch.model.training_data import Positives, Progress, bound_users, sample_evaluable_users, split_user_blocks
from recsys_batch.model.warm_start import WarmStart, make_start_fitter
from recsys_batch.ranking.top_k import select_top_k_per_row

NDCG_CUTOFF = 20
MAX_VALIDATION_USERS = 5_000
RIDGE_GRID = (150.0, 400.0, 50.0, 1000.0, 15.0)  # most likely first: the time budget may skip the rest
RECENCY_GRID = (0.0, 0.3, 0.6, 1.0)
EMBEDDING_DIMS = (64, 128, 256)
_WIDTH_TOLERANCE = 0.02  # a wider model costs every night: the narrowest within this share of the best is chosen
_MAX_PARAMETERS = 64_000_000  # n_items * embedding_dim of a model whose width is chosen: Adam holds eight such arrays
_SCALE_GRID = tuple(float(scale) for scale in np.geomspace(0.5, 500, 25))
_FULL_SOFTMAX_ITEMS = 60_000
_EXTRA_NEGATIVES = 4_096
_BATCH_LOGITS = 12_000_000  # logits of one step: 48 MB
_INPUT_SHARE = 0.9  # share of the positives that is input when the split is random
_TIME_SPLIT_SHARE = 0.5  # share of users whose split is by time
_PATIENCE = 6


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
        top_lists = []
        for part in split_user_blocks(np.arange(len(self.users)), self.inputs.n_items, MAX_VALIDATION_USERS):
            histories = self.inputs.select_users(part)
            with torch.no_grad():
                scores = params.score_items(params.encode_users(histories, tokens, self.users[part])).numpy()
            scores[histories.rows, histories.codes] = -np.inf
            top_lists.append(select_top_k_per_row(scores, NDCG_CUTOFF)[1])
        hits, n_relevant = hit_matrix(np.concatenate(top_lists), self.held_out.offsets, self.held_out.codes, self.held_out.n_items)
        return ndcg_at_k(hits, n_relevant, NDCG_CUTOFF)

    def log_loss(self, scores: torch.Tensor, scale: float) -> float:
        """Average -log softmax(scale * scores) over held-out items; scores float32 [B, n] of the first B users; 0.0 where B is 0."""
        if len(scores) == 0:
            return 0.0
        logs = torch.log_softmax(scores * scale, dim=1)
        held_out = self.held_out.select_users(np.arange(len(scores)))
        return float(-logs[torch.from_numpy(held_out.rows), torch.from_numpy(held_out.codes)].mean())


def make_validator(train: Positives, held_out: Positives, seed: int) -> Validator:
    """Sample at most MAX_VALIDATION_USERS users with a history and held-out positives into a Validator."""
    chosen = sample_evaluable_users(train, held_out, bound_users(MAX_VALIDATION_USERS, train.n_items), seed)
    return Validator(chosen, train.select_users(chosen), held_out.select_users(chosen))


def mean_or_zero(values: np.ndarray) -> float:
    """Average values; 0.0 where there are none."""
    return float(values.mean()) if len(values) else 0.0


def is_clearly_better(ndcg: np.ndarray, baseline: np.ndarray) -> bool:
    """Test whether the mean of paired per-user values exceeds the baseline by more than its standard error; less may be noise."""
    gain = ndcg - baseline
    return len(gain) > 0 and float(gain.mean()) > float(gain.std() / np.sqrt(len(gain)))


@dataclass(frozen=True)
class FittedTowers:
    """Towers at their best epoch, with the hyperparameters and epochs to train them again on more data; NDCG@20 by epoch."""

    parameters: TowerParameters
    hyperparameters: Hyperparameters
    epochs: int
    curve: list[float]


def fit_towers(
    train: Positives,
    held_out: Positives,
    tokens: ContentTokens,
    has_time: bool,
    config: Config,
    deadline: float,
    progress: Progress,
) -> FittedTowers:
    """Train towers with early stopping on NDCG@20 of the held-out part; epoch 0 is the warm start itself."""
    validator = make_validator(train, held_out, config.training.seed)
    hyperparameters, params = search_hyperparameters(train, validator, tokens, has_time, config, deadline)
    best, best_epoch, best_ndcg = params.copy(), 0, validator.ndcg_per_user(params, tokens)
    curve = [mean_or_zero(best_ndcg)]
    progress("towers", {"epoch": 0, "embedding_dim": hyperparameters.h + 1, f"ndcg_at_{NDCG_CUTOFF}": curve[0]})
    trainer = _Trainer(params, train, tokens, has_time, config)
    for epoch in range(1, config.training.max_epochs + 1):
        if epoch - best_epoch > _PATIENCE or time.monotonic() > deadline:
            break
        loss = trainer.train_epoch(deadline)
        ndcg = validator.ndcg_per_user(params, tokens)
        curve.append(mean_or_zero(ndcg))
        progress("towers", {"epoch": epoch, "loss": loss, f"ndcg_at_{NDCG_CUTOFF}": curve[-1]})
        if is_clearly_better(ndcg, best_ndcg):
            best, best_epoch, best_ndcg = params.copy(), epoch, ndcg
    return FittedTowers(best, hyperparameters, best_epoch, curve)


def refit_towers(
    positives: Positives, fitted: FittedTowers, tokens: ContentTokens, has_time: bool, config: Config, deadline: float
) -> TowerParameters:
    """Train towers on ``positives`` for the fitted number of epochs and rotate them, so that the ranker trained before still fits."""
    params = initialize_parameters(fitted.hyperparameters, positives, len(tokens.names), config.training.seed)
    trainer = _Trainer(params, positives, tokens, has_time, config)
    for _ in range(fitted.epochs):
        trainer.train_epoch(deadline)
    return params.rotate_onto(fitted.parameters)


def search_hyperparameters(
    train: Positives, validator: Validator, tokens: ContentTokens, has_time: bool, config: Config, deadline: float
) -> tuple[Hyperparameters, TowerParameters]:
    """Search ridge, width and recency by held-out NDCG@20, then the logit scale by log loss; return them with the initial weights."""
    widths = list_widths(train.n_items, config)
    fit_start = make_start_fitter(train, widths[-1], config.training.seed)
    n_tokens, ridge_deadline = len(tokens.names), time.monotonic() + (deadline - time.monotonic()) / 4

    def start_ndcg(warm_start: WarmStart, tried: Hyperparameters) -> float:
        return validator.ndcg(scale_warm_start(warm_start, tried, n_tokens), tokens)

    hyperparameters = Hyperparameters(RIDGE_GRID[0], 0.0, 1.0, widths[-1])
    start = fit_start(hyperparameters.ridge)
    best = start_ndcg(start, hyperparameters)
    for ridge in RIDGE_GRID[1:]:
        if time.monotonic() > ridge_deadline:
            break
        tried = fit_start(ridge)
        reached = start_ndcg(tried, replace(hyperparameters, ridge=ridge))
        if reached > best:
            best, start, hyperparameters = reached, tried, replace(hyperparameters, ridge=ridge)
    by_width = {h: start_ndcg(start, replace(hyperparameters, h=h)) for h in widths[:-1]} | {widths[-1]: best}
    sufficient = max(by_width.values()) * (1 - _WIDTH_TOLERANCE)
    hyperparameters = replace(hyperparameters, h=next(h for h in widths if by_width[h] >= sufficient))
    if has_time:
        by_recency = {recency: start_ndcg(start, replace(hyperparameters, recency=recency)) for recency in RECENCY_GRID[1:]}
        by_recency = {RECENCY_GRID[0]: by_width[hyperparameters.h]} | by_recency
        hyperparameters = replace(hyperparameters, recency=max(by_recency, key=lambda recency: by_recency[recency]))
    unscaled = scale_warm_start(start, hyperparameters, n_tokens)
    hyperparameters = replace(hyperparameters, scale=_choose_scale(unscaled, validator, tokens, train.n_items))
    return hyperparameters, scale_warm_start(start, hyperparameters, n_tokens)


def list_widths(n_items: int, config: Config) -> list[int]:
    """List candidate widths of the learned vectors (embedding_dim less one for the item bias), ascending."""
    if config.model.embedding_dim is not None:
        return [config.model.embedding_dim - 1]
    return [dim - 1 for dim in EMBEDDING_DIMS if dim == EMBEDDING_DIMS[0] or n_items * dim <= _MAX_PARAMETERS]


def _choose_scale(params: TowerParameters, validator: Validator, tokens: ContentTokens, n_items: int) -> float:
    users = np.arange(min(len(validator.users), max(1, _BATCH_LOGITS // n_items)))
    with torch.no_grad():
        scores = params.score_items(params.encode_users(validator.inputs.select_users(users), tokens, validator.users[users]))
        return min(_SCALE_GRID, key=lambda value: validator.log_loss(scores, value))


def make_optimizers(params: TowerParameters, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Make Adam for all tensors; where gradients are sparse, SparseAdam for those of items, which moves the touched rows alone.

    No weight decay: Adam would shrink the rows of rare items, which have no other gradient, by a full step each time.
    """
    tensors = params.tensors()
    if not params.has_sparse_gradients:
        return [torch.optim.Adam(tensors.values(), lr=learning_rate)]
    of_items = [tensors.pop(name) for name in ("history", "embedding", "item_bias")]
    return [torch.optim.SparseAdam(of_items, lr=learning_rate), torch.optim.Adam(tensors.values(), lr=learning_rate)]


class _Trainer:
    """Trains tower parameters in place with Adam."""

    def __init__(self, params: TowerParameters, data: Positives, tokens: ContentTokens, has_time: bool, config: Config) -> None:
        self._params, self._data, self._tokens, self._has_time = params, data, tokens, has_time
        self._rng = np.random.default_rng(config.training.seed)
        self._full = data.n_items <= _FULL_SOFTMAX_ITEMS
        width = data.n_items if self._full else config.training.batch_size * 20 + _EXTRA_NEGATIVES
        self._batch_users = int(np.clip(_BATCH_LOGITS // width, 16, config.training.batch_size))
        self._trainable = np.flatnonzero(data.counts >= 2)
        self._frequency = data.item_counts / max(len(data.codes), 1)
        for tensor in params.tensors().values():
            tensor.requires_grad_(True)
        self._optimizers = make_optimizers(params, config.training.learning_rate)

    def train_epoch(self, deadline: float) -> float:
        """Train one pass over the users; return the mean loss."""
        losses = []
        order = self._rng.permutation(self._trainable)
        for start in range(0, len(order), self._batch_users):
            losses.append(self._train_batch(order[start : start + self._batch_users]))
            if time.monotonic() > deadline:
                break
        return float(np.mean(losses)) if losses else float("nan")

    def _train_batch(self, users: np.ndarray) -> float:
        histories = self._data.select_users(users)
        is_input = self._split(histories)
        inputs, targets = histories.where(is_input), histories.where(~is_input)
        vectors = self._params.encode_users(inputs, self._tokens, users)
        loss = self._full_loss(vectors, targets) if self._full else self._sampled_loss(vectors, targets)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self._optimizers:
            optimizer.step()
        return float(loss.detach())

    def _split(self, histories: Positives) -> np.ndarray:
        """Split entries into input (True) and targets, bool [total]; a user with two or more keeps at least one of each."""
        counts, positions = histories.counts, histories.positions
        random_split = self._rng.random(len(positions)) < _INPUT_SHARE
        cut = 1 + np.floor(self._rng.uniform(0.0, 0.5, len(counts)) * (counts - 1))
        time_split = positions >= np.repeat(cut, counts)
        uses_time = self._rng.random(len(counts)) < (_TIME_SPLIT_SHARE if self._has_time else 0.0)
        is_input = np.where(np.repeat(uses_time, counts), time_split, random_split)
        n_inputs = np.bincount(histories.rows[is_input], minlength=len(counts))
        # One entry changes sides for users with an empty side.
        is_flipped = positions == np.repeat(self._rng.integers(0, counts), counts)
        return np.asarray(
            (is_input & ~(np.repeat(n_inputs == counts, counts) & is_flipped)) | (np.repeat(n_inputs == 0, counts) & is_flipped)
        )

    def _full_loss(self, vectors: torch.Tensor, targets: Positives) -> torch.Tensor:
        log_probabilities = torch.log_softmax(self._params.score_items(vectors), dim=1)
        return -log_probabilities[torch.from_numpy(targets.rows), torch.from_numpy(targets.codes)].mean()

    def _sampled_loss(self, vectors: torch.Tensor, targets: Positives) -> torch.Tensor:
        n = self._data.n_items
        sampled = np.unique(np.concatenate([targets.codes, self._rng.integers(0, n, _EXTRA_NEGATIVES)]))
        p_unsampled = (1 - self._frequency[sampled]) ** len(targets.codes) * (1 - 1 / n) ** _EXTRA_NEGATIVES
        log_q = torch.from_numpy(np.log1p(-np.minimum(p_unsampled, 1 - 1e-9)).astype(np.float32))
        items = torch.from_numpy(sampled)
        logits = self._params.score_sampled_items(vectors, items) - log_q
        target_columns = torch.from_numpy(np.searchsorted(sampled, targets.codes))
        return -torch.log_softmax(logits, dim=1)[torch.from_numpy(targets.rows), target_columns].mean()
