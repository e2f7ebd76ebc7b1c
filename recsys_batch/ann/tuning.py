"""How many inverted lists to search, and how much more to fetch from int8: measured on sampled users against exact search.

Recall is counted on the scores (Aumüller et al. 2020, "ANN-Benchmarks", section 2): a found item that ties the true k-th counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from recsys_batch.ann.retrievers import Probing, Retriever
from recsys_batch.config import Retrieval
from recsys_batch.errors import IndexDamaged, RecsysBatchError

_FETCH_COST = 10  # scanned items that cost as much as one fetched and scored again (20 ns against 2)


@dataclass(frozen=True)
class TuningSample:
    """Sampled users who may be recommended the same items, and search over these items.

    Attributes:
        queries: float32 [n, d].
        exact: over the same items as ``retriever``.
    """

    queries: np.ndarray
    retriever: Retriever
    exact: Retriever


@dataclass(frozen=True)
class OperatingPoint:
    """One measured setting."""

    nprobe: int
    overfetch: float
    knn_recall_at_k: float
    seconds_per_1000_users: float


@dataclass(frozen=True)
class Tuning:
    """What was chosen and why.

    Attributes:
        nprobe: the choice; None where the mode is exact.
        overfetch: of int8; 1.0 where the lists are searched as float32.
        knn_recall_at_k: mean recall at the choice, k = n_candidates; 1.0 where the mode is exact.
        reached: whether that is at least ``target_recall`` (false only where retrieval.nprobe is fixed too low).
        n_users: sampled users that it was measured on.
        curve: every measured setting by (overfetch, nprobe); empty where the mode is exact.
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
        """The inverse of ``to_dict``.

        Raises:
            IndexDamaged: written by another release.
        """
        try:
            return cls(**{**values, "curve": tuple(OperatingPoint(**point) for point in values["curve"])})
        except (KeyError, TypeError) as error:
            raise IndexDamaged(f"the tuning of the index cannot be read ({error}): build the index again") from None


def tune(index: Retriever, samples: Sequence[TuningSample], n_candidates: int, target_recall: float, settings: Retrieval) -> Tuning:
    """Choose nprobe and over-fetch: the cheapest that reaches the target.

    Recall grows with nprobe, so it is doubled until the target is reached, then bisected; from int8 this is done for each
    over-fetch, and the cheapest in items scanned and scored again is taken. The choice depends on recall alone, never on the
    clock, so the same index and users give the same choice.

    Args:
        index: over all items; one that has no lists is exact and needs no tuning.
        samples: over all items of the index or some of them.
        settings: ``settings.nprobe``, where set, is only measured.

    Raises:
        RecsysBatchError: no queries.
    """
    samples = [sample for sample in samples if len(sample.queries)]
    n_users = sum(len(sample.queries) for sample in samples)
    if n_users == 0:
        raise RecsysBatchError("tuning needs sampled users, found none: is any user embedded?")
    if not isinstance(index, Probing):
        return Tuning(None, 1.0, 1.0, target_recall, True, n_users, ())
    nlist, mean_list = index.nlist, index.n_items / index.nlist
    truths = [sample.exact.search(sample.queries, n_candidates)[0] for sample in samples]
    curve: dict[tuple[float, int], OperatingPoint] = {}

    def measured(nprobe: int, overfetch: float) -> OperatingPoint:
        nprobe = index.with_probes(nprobe).probes(n_candidates)
        if nprobe == nlist:
            overfetch = 1.0  # everything is searched as float32
        if (overfetch, nprobe) not in curve:
            curve[overfetch, nprobe] = _measure(samples, truths, nprobe, overfetch)
        return curve[overfetch, nprobe]

    def recall(overfetch: float, nprobe: int) -> float:
        return measured(nprobe, overfetch).knn_recall_at_k

    def cost(point: OperatingPoint) -> float:
        return point.nprobe * mean_list + _FETCH_COST * point.overfetch * n_candidates

    best: OperatingPoint | None = None
    for overfetch in index.overfetches:
        # With more fetched, so few lists have to do that it is cheaper than the best so far.
        affordable = nlist if best is None else min(nlist, int((cost(best) - _FETCH_COST * overfetch * n_candidates) // mean_list))
        if affordable < 1:
            break
        most = settings.nprobe or affordable
        if (settings.nprobe or best) and measured(most, overfetch).knn_recall_at_k < target_recall:
            continue
        point = measured(settings.nprobe or _cheapest(partial(recall, overfetch), target_recall, most), overfetch)
        best = point if best is None else min(best, point, key=cost)
    reached = best is not None
    best = best or max(curve.values(), key=lambda point: point.knn_recall_at_k)
    points = tuple(curve[key] for key in sorted(curve))
    return Tuning(best.nprobe, best.overfetch, best.knn_recall_at_k, target_recall, reached, n_users, points)


def knn_recall_at_k(found_scores: np.ndarray, true_scores: np.ndarray) -> float:
    """Mean over users of |found items that score at least the true k-th| / |true items|; 1.0 where nobody has any to find.

    Users who have none to find are left out.

    Args:
        found_scores, true_scores: float32 [n, k], descending, -inf padded, of the same scoring function.
    """
    n_true = np.isfinite(true_scores).sum(axis=1)
    kth = np.where(np.isfinite(true_scores), true_scores, np.inf).min(axis=1, keepdims=True)
    found = np.isfinite(found_scores) & (found_scores >= kth)
    some = n_true > 0
    return float((found.sum(axis=1)[some] / n_true[some]).mean()) if some.any() else 1.0


def _measure(samples: Sequence[TuningSample], truths: Sequence[np.ndarray], nprobe: int, overfetch: float) -> OperatingPoint:
    recall, seconds, n_users, n_measured = 0.0, 0.0, 0, 0
    for sample, truth in zip(samples, truths, strict=True):
        assert isinstance(sample.retriever, Probing)
        retriever = sample.retriever.with_probes(nprobe, overfetch)
        start = time.perf_counter()
        scores, _ = retriever.search(sample.queries, truth.shape[1])
        seconds += time.perf_counter() - start
        n_users += len(truth)
        with_any = int(np.isfinite(truth[:, 0]).sum())
        recall += knn_recall_at_k(scores, truth) * with_any
        n_measured += with_any
    return OperatingPoint(nprobe, overfetch, recall / n_measured if n_measured else 1.0, seconds * 1000 / n_users)


def _cheapest(recall: Callable[[int], float], target: float, nlist: int) -> int:
    low, high = 0, 1  # recall(low) misses the target
    while high < nlist and recall(high) < target:
        low, high = high, min(2 * high, nlist)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle) >= target else (middle, high)
    return high
