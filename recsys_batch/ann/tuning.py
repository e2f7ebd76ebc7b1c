"""Tune nprobe and the over-fetch of int8: measured on sampled users against exact search. Called by the night and the estimate.

Recall is counted on the scores (Aumüller et al. 2020, "ANN-Benchmarks", section 2): a returned item that ties the true k-th counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from recsys_batch.ann.retrievers import Retriever, TunableRetriever
from recsys_batch.config import Retrieval
from recsys_batch.errors import IndexDamaged, RecsysBatchError

_FETCH_COST = 10  # scanned items that cost as much as one re-ranked item (20 ns against 2)


@dataclass(frozen=True)
class TuningSample:
    """Queries float32 [n, d] of sampled users with the same eligible items, and the search over these items, also exact."""

    queries: np.ndarray
    retriever: Retriever
    exact: Retriever


@dataclass(frozen=True)
class OperatingPoint:
    """Measured recall and time of one (nprobe, overfetch) setting."""

    nprobe: int
    overfetch: float
    knn_recall_at_k: float
    seconds_per_1000_users: float


@dataclass(frozen=True)
class Tuning:
    """Chosen operating point of an index and the measurements behind it.

    Attributes:
        nprobe: chosen nprobe; None where the mode is exact.
        overfetch: chosen over-fetch of int8; 1.0 where the lists are float32.
        knn_recall_at_k: mean recall at the chosen point, k = n_candidates; 1.0 where the mode is exact.
        reached: whether the recall is at least ``target_recall`` (false only where retrieval.nprobe is fixed too low).
        n_users: sampled users that the recall is measured on.
        curve: all measured points by (overfetch, nprobe); empty where the mode is exact.
    """

    nprobe: int | None
    overfetch: float
    knn_recall_at_k: float
    target_recall: float
    reached: bool
    n_users: int
    curve: tuple[OperatingPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tuning:
        """Parse the output of ``to_dict``; raises IndexDamaged where the values were written by another release."""
        try:
            return cls(**{**values, "curve": tuple(OperatingPoint(**point) for point in values["curve"])})
        except (KeyError, TypeError) as error:
            raise IndexDamaged(f"the tuning of the index cannot be read ({error}): build the index again") from None


def tune(index: Retriever, samples: Sequence[TuningSample], n_candidates: int, target_recall: float, settings: Retrieval) -> Tuning:
    """Choose the cheapest nprobe and over-fetch that reach ``target_recall``.

    Recall grows with nprobe, so it is doubled until the target is reached, then bisected; from int8 this is done for each
    over-fetch, and the cheapest in scanned and re-ranked items is taken. The choice depends on recall alone, never on the
    clock, so the same index and users give the same choice.

    Args:
        index: retriever over all items; an exact one needs no tuning.
        samples: queries and retrievers over all items of the index or some of them.
        settings: where ``settings.nprobe`` is set, it is measured and kept.

    Raises RecsysBatchError where no sample has queries.
    """
    samples = [sample for sample in samples if len(sample.queries)]
    n_users = sum(len(sample.queries) for sample in samples)
    if n_users == 0:
        raise RecsysBatchError("tuning needs sampled users, found none: is any user embedded?")
    if not isinstance(index, TunableRetriever):
        return Tuning(None, 1.0, 1.0, target_recall, True, n_users, ())
    nlist, mean_list = index.nlist, index.n_items / index.nlist
    true_scores = [sample.exact.search(sample.queries, n_candidates)[0] for sample in samples]
    curve: dict[tuple[float, int], OperatingPoint] = {}

    def measure(overfetch: float, nprobe: int) -> OperatingPoint:
        nprobe = index.with_nprobe(nprobe).effective_nprobe(n_candidates)
        if nprobe == nlist:
            overfetch = 1.0  # probing all lists is exact search in float32
        if (overfetch, nprobe) not in curve:
            curve[overfetch, nprobe] = _measure_point(samples, true_scores, nprobe, overfetch)
        return curve[overfetch, nprobe]

    def cost(point: OperatingPoint) -> float:
        return point.nprobe * mean_list + _FETCH_COST * point.overfetch * n_candidates

    best: OperatingPoint | None = None
    for overfetch in index.overfetch_grid:
        # The larger over-fetch pays only with so few lists that it is cheaper than the best point so far.
        max_nprobe = nlist if best is None else min(nlist, int((cost(best) - _FETCH_COST * overfetch * n_candidates) // mean_list))
        if max_nprobe < 1:
            break
        tried_nprobe = settings.nprobe or max_nprobe
        if (settings.nprobe or best) and measure(overfetch, tried_nprobe).knn_recall_at_k < target_recall:
            continue
        point = measure(overfetch, settings.nprobe or _lowest_sufficient_nprobe(partial(measure, overfetch), target_recall, tried_nprobe))
        best = point if best is None else min(best, point, key=cost)
    reached = best is not None
    best = best or max(curve.values(), key=lambda point: point.knn_recall_at_k)
    points = tuple(curve[key] for key in sorted(curve))
    return Tuning(best.nprobe, best.overfetch, best.knn_recall_at_k, target_recall, reached, n_users, points)


def knn_recall_at_k(found_scores: np.ndarray, true_scores: np.ndarray) -> float:
    """Compute the mean over users of |returned items that score at least the true k-th| / |true items|.

    Users without true items are left out; 1.0 where no user has any. Both scores are float32 [n, k], descending, -inf padded, of the
    same scoring function.
    """
    n_true = np.isfinite(true_scores).sum(axis=1)
    kth = np.where(np.isfinite(true_scores), true_scores, np.inf).min(axis=1, keepdims=True)
    hits = np.isfinite(found_scores) & (found_scores >= kth)
    has_true = n_true > 0
    return float((hits.sum(axis=1)[has_true] / n_true[has_true]).mean()) if has_true.any() else 1.0


def _measure_point(samples: Sequence[TuningSample], true_scores: Sequence[np.ndarray], nprobe: int, overfetch: float) -> OperatingPoint:
    recall, seconds, n_users, n_measured = 0.0, 0.0, 0, 0
    for sample, expected in zip(samples, true_scores, strict=True):
        assert isinstance(sample.retriever, TunableRetriever)
        retriever = sample.retriever.with_nprobe(nprobe, overfetch)
        start = time.perf_counter()
        scores, _ = retriever.search(sample.queries, expected.shape[1])
        seconds += time.perf_counter() - start
        n_users += len(expected)
        n_with_results = int(np.isfinite(expected[:, 0]).sum())
        recall += knn_recall_at_k(scores, expected) * n_with_results
        n_measured += n_with_results
    return OperatingPoint(nprobe, overfetch, recall / n_measured if n_measured else 1.0, seconds * 1000 / n_users)


def _lowest_sufficient_nprobe(measure: Callable[[int], OperatingPoint], target: float, nlist: int) -> int:
    low, high = 0, 1  # low misses the target
    while high < nlist and measure(high).knn_recall_at_k < target:
        low, high = high, min(2 * high, nlist)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if measure(middle).knn_recall_at_k >= target else (middle, high)
    return high
