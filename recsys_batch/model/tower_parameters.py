"""The towers' weights in training, and the closed-form plan that they start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recsys_batch.model.towers import pool
from recsys_batch.model.training_data import Positives
from recsys_batch.model.warm_start import RIDGE_MAX_ITEMS, WarmStart, fit_ridge_start, truncate_start


@dataclass(frozen=True)
class Tokens:
    """Content tokens per row as ragged codes of a token table of ``n`` rows."""

    names: tuple[str, ...]
    offsets: np.ndarray
    codes: np.ndarray

    def bags(self, table: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
        """float32 [B, h]: the sum of each chosen row's tokens."""
        mine = Positives(len(self.names), self.offsets, self.codes, self.codes).users(chosen)
        starts = torch.from_numpy(mine.offsets[:-1].copy())
        return torch.nn.functional.embedding_bag(torch.from_numpy(mine.codes), table, starts, mode="sum")


def group_tokens(rows: list[list[str]], min_rows: int, max_tokens: int = 20_000) -> Tokens:
    """The most frequent tokens that at least ``min_rows`` rows have, sorted by name."""
    flat = np.array([name for row in rows for name in row], dtype=object)
    names, counts = np.unique(flat.astype(str), return_counts=True) if len(flat) else (np.array([], dtype=str), np.array([], dtype=int))
    frequent = np.flatnonzero(counts >= min_rows)
    frequent = np.sort(frequent[np.argsort(-counts[frequent], kind="stable")[:max_tokens]])
    place = {str(names[i]): code for code, i in enumerate(frequent)}
    kept = [[place[name] for name in row if name in place] for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in kept])]).astype(np.int64)
    return Tokens(tuple(place), offsets, np.array([code for row in kept for code in row], dtype=np.int64))


@dataclass(frozen=True)
class Plan:
    """How training starts: the item-item model's lambda, the pooling's decay, what stretches scores to logits, the vectors' width."""

    ridge: float
    recency: float
    scale: float
    h: int


@dataclass
class TowerParameters:
    """history, embedding float32 [n, h], item_bias [n, 1], user_bias [h], user_tokens [s, h]; pooling decays by ``recency``."""

    history: torch.Tensor
    embedding: torch.Tensor
    item_bias: torch.Tensor
    user_bias: torch.Tensor
    user_tokens: torch.Tensor
    recency: float

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def copy(self) -> TowerParameters:
        copies: dict[str, Any] = {name: value.detach().clone() for name, value in self.tensors().items()}
        return replace(self, **copies)

    def users(self, inputs: Positives, tokens: Tokens, chosen: np.ndarray) -> torch.Tensor:
        """float32 [B, h] of the users ``chosen``; ``inputs`` holds their histories in the same order."""
        pooled = pool(self.history, inputs.codes, inputs.offsets, self.recency) + self.user_bias
        return pooled + tokens.bags(self.user_tokens, chosen) if len(tokens.codes) else pooled

    def scores(self, users: torch.Tensor) -> torch.Tensor:
        """float32 [B, n] logits of every item."""
        return torch.addmm(self.item_bias.T, users, self.embedding.T)

    def rotated_onto(self, other: TowerParameters) -> TowerParameters:
        """The same model, turned so that its item vectors lie as near to the other's as a rotation can bring them.

        Inner products do not change when all vectors turn together (orthogonal Procrustes: Schoenemann 1966).
        """
        U, _, Vt = torch.linalg.svd(self.embedding.detach().T @ other.embedding.detach())
        turned = self.copy()
        for name in ("history", "embedding", "user_bias", "user_tokens"):
            setattr(turned, name, getattr(turned, name) @ (U @ Vt))
        return turned


def start_parameters(plan: Plan, positives: Positives, n_tokens: int, seed: int) -> TowerParameters:
    """Parameters by the plan; biases and tokens start at zero."""
    begin = fit_ridge_start if positives.n_items <= RIDGE_MAX_ITEMS else truncate_start
    return load_parameters(begin(positives, plan.h, plan.ridge, seed), plan, n_tokens)


def load_parameters(begun: WarmStart, plan: Plan, n_tokens: int) -> TowerParameters:
    """Parameters from a closed-form start of the plan's width or more: its first columns are the narrower start."""
    stretch = np.float32(np.sqrt(plan.scale))
    return TowerParameters(
        history=torch.from_numpy(begun.history[:, : plan.h] * stretch),
        embedding=torch.from_numpy(begun.embedding[:, : plan.h] * stretch),
        item_bias=torch.zeros(len(begun.embedding), 1),
        user_bias=torch.zeros(plan.h),
        user_tokens=torch.zeros(n_tokens, plan.h),
        recency=plan.recency,
    )
