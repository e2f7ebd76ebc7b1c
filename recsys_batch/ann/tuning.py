"""How many inverted lists to search: measured on sampled users against exact search, the cheapest that reaches the target.

Recall is counted on the scores (Aumüller et al. 2020, "ANN-Benchmarks", section 2): a found item that ties the true k-th counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recsys_batch.ann.backends import Probing, Retriever
from recsys_batch.config import Retrieval
from recsys_batch.errors import RecsysBatchError


@dataclass(frozen=True)
class OperatingPoint:
    """One measured setting."""

    nprobe: int
    knn_recall_at_k: float
    seconds_per_1000_users: float


@dataclass(frozen=True)
class Tuning:
    """What was chosen and why.

    Attributes:
        nprobe: the choice; None where the mode is exact.
        knn_recall_at_k: mean recall at the choice, k = n_candidates; 1.0 where the mode is exact.
        reached: whether that is at least ``target_recall`` (false only where retrieval.nprobe is fixed too low).
        n_users: sampled users that it was measured on.
        curve: every measured setting by nprobe; empty where the mode is exact.
    """

    nprobe: int | None
    knn_recall_at_k: float
    target_recall: float
    reached: bool
    n_users: int
    curve: tuple[OperatingPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def tune(
    retriever: Retriever, exact: Retriever, queries: np.ndarray, n_candidates: int, target_recall: float, settings: Retrieval
) -> Tuning:
    """Choose nprobe. Recall grows with nprobe, so it is doubled until the target is reached, then bisected.

    The choice depends on recall alone, never on the clock, so the same index and users give the same nprobe.

    Args:
        retriever: the index to tune; one that has no lists is exact and needs none.
        exact: over the same items.
        queries: float32 [n, d] of sampled users.
        settings: ``settings.nprobe``, where set, is only measured.

    Raises:
        RecsysBatchError: no queries.
    """
    if len(queries) == 0:
        raise RecsysBatchError("tuning needs sampled users, found none: is any user embedded?")
    if not isinstance(retriever, Probing):
        return Tuning(None, 1.0, target_recall, True, len(queries), ())
    truth, _ = exact.search(queries, n_candidates)
    curve: dict[int, OperatingPoint] = {}

    def recall(nprobe: int) -> float:
        nprobe = retriever.at_nprobe(nprobe).probes(n_candidates)
        if nprobe not in curve:
            curve[nprobe] = _measure(retriever.at_nprobe(nprobe), nprobe, queries, truth)
        return curve[nprobe].knn_recall_at_k

    chosen = retriever.at_nprobe(settings.nprobe or _cheapest(recall, target_recall, retriever.nlist)).probes(n_candidates)
    reached = recall(chosen) >= target_recall
    points = tuple(curve[nprobe] for nprobe in sorted(curve))
    return Tuning(chosen, recall(chosen), target_recall, reached, len(queries), points)


def knn_recall_at_k(found_scores: np.ndarray, true_scores: np.ndarray) -> float:
    """Mean over users of |found items that score at least the true k-th| / |true items|.

    Args:
        found_scores, true_scores: float32 [n, k], descending, -inf padded, of the same scoring function.
    """
    n_true = np.isfinite(true_scores).sum(axis=1)
    kth = np.where(np.isfinite(true_scores), true_scores, np.inf).min(axis=1, keepdims=True)
    found = np.isfinite(found_scores) & (found_scores >= kth)
    return float((found.sum(axis=1) / np.maximum(n_true, 1)).mean())


def _measure(retriever: Retriever, nprobe: int, queries: np.ndarray, truth: np.ndarray) -> OperatingPoint:
    start = time.perf_counter()
    scores, _ = retriever.search(queries, truth.shape[1])
    seconds = time.perf_counter() - start
    return OperatingPoint(nprobe, knn_recall_at_k(scores, truth), seconds * 1000 / len(queries))


def _cheapest(recall: Callable[[int], float], target: float, nlist: int) -> int:
    low, high = 0, 1  # recall(low) misses the target
    while high < nlist and recall(high) < target:
        low, high = high, min(2 * high, nlist)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle) >= target else (middle, high)
    return high
