"""Weights of the towers in training, and their hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recsys_batch.model.content_tokens import ContentTokens
from recsys_batch.model.towers import weigh_history
from recsys_batch.model.training_data import Positives
from recsys_batch.model.warm_start import WarmStart, make_start_fitter

SPARSE_GRADIENT_ITEMS = 200_000
"""Larger catalogues have gradients of the rows that a step touched; at this size and width 64, those of all rows would be 100 MB a step."""


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of the towers: ridge (lambda of the item-item model), recency decay of pooling, logit scale, vector width h."""

    ridge: float
    recency: float
    scale: float
    h: int


@dataclass
class TowerParameters:
    """Tower weights: history, embedding float32 [n, h], item_bias [n, 1], user_bias [h], user_tokens [s, h]; recency decay of pooling."""

    history: torch.Tensor
    embedding: torch.Tensor
    item_bias: torch.Tensor
    user_bias: torch.Tensor
    user_tokens: torch.Tensor
    recency: float

    def tensors(self) -> dict[str, torch.Tensor]:
        """Trainable tensors by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    @property
    def has_sparse_gradients(self) -> bool:
        """Whether gradients of item tensors hold the touched rows alone."""
        return len(self.history) > SPARSE_GRADIENT_ITEMS

    def copy(self) -> TowerParameters:
        """Copy the weights, detached from the gradient graph."""
        copies: dict[str, Any] = {name: value.detach().clone() for name, value in self.tensors().items()}
        return replace(self, **copies)

    def encode_users(self, inputs: Positives, tokens: ContentTokens, chosen: np.ndarray) -> torch.Tensor:
        """Encode the users ``chosen``, float32 [B, h]; ``inputs`` holds their histories in the same order."""
        pooled = self.pool(inputs) + self.user_bias
        return pooled + sum_token_embeddings(tokens, self.user_tokens, chosen) if len(tokens.codes) else pooled

    def pool(self, inputs: Positives) -> torch.Tensor:
        """Pool histories as ``towers.pool_history`` does, within rounding, and with a gradient: float32 [B, h]; of the touched rows alone
        where gradients are sparse.
        """
        weights, starts = torch.from_numpy(weigh_history(inputs.offsets, self.recency)), torch.from_numpy(inputs.offsets[:-1].copy())
        codes = torch.from_numpy(inputs.codes)
        return torch.nn.functional.embedding_bag(
            codes, self.history, starts, mode="sum", per_sample_weights=weights, sparse=self.has_sparse_gradients
        )

    def score_items(self, users: torch.Tensor) -> torch.Tensor:
        """Compute logits of every item, float32 [B, n]."""
        return torch.addmm(self.item_bias.T, users, self.embedding.T)

    def score_sampled_items(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Compute logits of some items, int64 [m], float32 [B, m]."""
        lookup = torch.nn.functional.embedding
        embedding, bias = (lookup(items, table, sparse=self.has_sparse_gradients) for table in (self.embedding, self.item_bias))
        return users @ embedding.T + bias.T

    def item_embeddings(self) -> np.ndarray:
        """Concatenate item vectors and biases, float32 [n, h + 1]."""
        return torch.cat([self.embedding.detach(), self.item_bias.detach()], dim=1).numpy()

    def rotate_onto(self, other: TowerParameters) -> TowerParameters:
        """Rotate a copy of the model so that its item vectors are as close to the other's as possible.

        Inner products do not change under a common rotation (orthogonal Procrustes: Schoenemann 1966).
        """
        U, _, Vt = torch.linalg.svd(self.embedding.detach().T @ other.embedding.detach())
        rotated = self.copy()
        for name in ("history", "embedding", "user_bias", "user_tokens"):
            setattr(rotated, name, getattr(rotated, name) @ (U @ Vt))
        return rotated


def initialize_parameters(hyperparameters: Hyperparameters, positives: Positives, n_tokens: int, seed: int) -> TowerParameters:
    """Fit a warm start and scale it to initial weights; biases and tokens are zero."""
    start = make_start_fitter(positives, hyperparameters.h, seed)(hyperparameters.ridge)
    return scale_warm_start(start, hyperparameters, n_tokens)


def scale_warm_start(start: WarmStart, hyperparameters: Hyperparameters, n_tokens: int) -> TowerParameters:
    """Scale a warm start of width h or more to initial weights: its first h columns are the narrower start."""
    scale = np.float32(np.sqrt(hyperparameters.scale))
    return TowerParameters(
        history=torch.from_numpy(start.history[:, : hyperparameters.h] * scale),
        embedding=torch.from_numpy(start.embedding[:, : hyperparameters.h] * scale),
        item_bias=torch.zeros(len(start.embedding), 1),
        user_bias=torch.zeros(hyperparameters.h),
        user_tokens=torch.zeros(n_tokens, hyperparameters.h),
        recency=hyperparameters.recency,
    )


def sum_token_embeddings(tokens: ContentTokens, table: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
    """Sum the embeddings of each chosen row's tokens, float32 [B, h]; a token's embedding is a row of ``table``."""
    counts = np.diff(tokens.offsets)[chosen]
    starts = np.cumsum(counts) - counts
    entries = np.repeat(tokens.offsets[:-1][chosen] - starts, counts) + np.arange(counts.sum())
    codes = torch.from_numpy(tokens.codes[entries])
    return torch.nn.functional.embedding_bag(codes, table, torch.from_numpy(starts), mode="sum")
