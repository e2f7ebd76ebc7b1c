"""Tune nprobe and the over-fetch of int8: measured on sampled users against exact search. Called by the night and the estimate.

No search finds an item whose list it does not probe, so one exact search, and the places of the lists in which its results lie, bound the
recall of every nprobe from above; from float32 lists this is the recall. Searches start from there instead of looking for it.

Recall is counted on the scores (Aumüller et al. 2020, "ANN-Benchmarks", section 2): a returned item that ties the true k-th counts.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from recsys_batch.ann.retrievers import Retriever, TunableRetriever
from recsys_batch.config import Retrieval
from recsys_batch.errors import IndexDamaged, RecsysBatchError
from recsys_batch.ranking.top_k import NO_CODE

_FETCH_COST = 10  # scanned items that cost as much as one re-ranked item (20 ns against 2)
_COMPARED_STEP = 4  # half and twice the chosen lists are measured on every fourth user, to show what more or less would give
_TIES = 16  # results behind the last one that are looked at for its score


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
        curve: all measured points by (overfetch, nprobe), those beside the chosen one of float32 lists on a quarter of the users; empty
            where the mode is exact.
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

    For each over-fetch, the fewest lists that could do are measured, then more of them until the target is reached, then bisected; the
    cheapest in scanned and re-ranked items is taken. The choice depends on recall alone, never on the clock, so the same index and
    users give the same choice.

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
    expected = [_ExpectedResults.of(sample, n_candidates) for sample in samples]
    curve: dict[tuple[float, int], OperatingPoint] = {}

    def measure(overfetch: float, nprobe: int) -> OperatingPoint:
        nprobe = index.with_nprobe(nprobe).effective_nprobe(n_candidates)
        if nprobe == nlist:
            overfetch = 1.0  # probing all lists is exact search in float32
        if (overfetch, nprobe) not in curve:
            curve[overfetch, nprobe] = _measure_point(expected, nprobe, overfetch)
        return curve[overfetch, nprobe]

    def cost(point: OperatingPoint) -> float:
        return point.nprobe * mean_list + _FETCH_COST * point.overfetch * n_candidates

    fewest = 1 + bisect_left(range(1, nlist), target_recall, key=lambda nprobe: _bound_recall(expected, nprobe, n_candidates))
    best: OperatingPoint | None = None
    for overfetch in index.overfetch_grid:
        # The larger over-fetch pays only with so few lists that it is cheaper than the best point so far.
        max_nprobe = nlist if best is None else min(nlist, int((cost(best) - _FETCH_COST * overfetch * n_candidates) // mean_list))
        if max_nprobe < (settings.nprobe or fewest):
            break
        tried_nprobe = settings.nprobe or max_nprobe
        if (settings.nprobe or best) and measure(overfetch, tried_nprobe).knn_recall_at_k < target_recall:
            continue
        if not settings.nprobe:
            tried_nprobe = _lowest_sufficient_nprobe(partial(measure, overfetch), target_recall, fewest, max_nprobe)
        point = measure(overfetch, tried_nprobe)
        best = point if best is None else min(best, point, key=cost)
    reached = best is not None
    best = best or max(curve.values(), key=lambda point: point.knn_recall_at_k)
    if len(index.overfetch_grid) == 1:
        some = [results.thin(_COMPARED_STEP) for results in expected]
        beside = {best.nprobe // 2, index.with_nprobe(2 * best.nprobe).effective_nprobe(n_candidates)} - {0}
        for nprobe in beside - {measured for _, measured in curve}:
            curve[1.0, nprobe] = _measure_point(some, nprobe, 1.0)
    points = tuple(curve[key] for key in sorted(curve))
    return Tuning(best.nprobe, best.overfetch, best.knn_recall_at_k, target_recall, reached, n_users, points)


def knn_recall_at_k(found_scores: np.ndarray, true_scores: np.ndarray) -> float:
    """Compute the mean over users of |returned items that score at least the true k-th| / |true items|.

    Users without true items are left out; 1.0 where no user has any. Both scores are float32 [n, k], descending, -inf padded, of the
    same scoring function.
    """
    n_true = np.isfinite(true_scores).sum(axis=1)
    hits = np.isfinite(found_scores) & (found_scores >= _lowest_scores(true_scores))
    has_true = n_true > 0
    return float((hits.sum(axis=1)[has_true] / n_true[has_true]).mean()) if has_true.any() else 1.0


def _lowest_scores(scores: np.ndarray) -> np.ndarray:
    """Find the last result of each user, float32 [n, 1]; inf where there is none."""
    return np.asarray(np.where(np.isfinite(scores), scores, np.inf).min(axis=1, keepdims=True))


@dataclass(frozen=True)
class _ExpectedResults:
    """Results of exact search for a sample, and how many of them a search of the first lists can find.

    Attributes:
        scores: float32 [n, k], of exact search.
        recall_bound: float64 [nlist + 1], by nprobe: the mean share of a user's results that lie in the lists probed.
        n_users_with_results: users that recall is a mean of.
    """

    sample: TuningSample
    scores: np.ndarray
    recall_bound: np.ndarray
    n_users_with_results: int

    @classmethod
    def of(cls, sample: TuningSample, k: int) -> _ExpectedResults:
        assert isinstance(sample.retriever, TunableRetriever)
        nlist = sample.retriever.nlist
        scores, codes = sample.exact.search(sample.queries, k + _TIES)
        last = _lowest_scores(scores[:, :k])
        places = sample.retriever.list_places(sample.queries, np.where(scores >= last, codes, NO_CODE))
        places[scores[:, -1] == last[:, 0]] = 0  # more tie than were looked at: they may all lie in the first list
        places = np.sort(np.where(places == NO_CODE, nlist, places), axis=1)[:, :k]  # of more than k, those probed first are enough
        n_results = np.isfinite(scores[:, :k]).sum(axis=1)
        shares = np.broadcast_to(1 / np.maximum(n_results, 1)[:, None], places.shape)
        found_at = np.bincount(places.ravel(), shares.ravel(), minlength=nlist + 1)[:nlist]
        n_users = int(np.count_nonzero(n_results))
        return cls(sample, scores[:, :k], np.concatenate([[0.0], np.cumsum(found_at)]) / max(n_users, 1), n_users)

    def thin(self, step: int) -> _ExpectedResults:
        """Keep every ``step``-th user."""
        queries, scores = self.sample.queries[::step], self.scores[::step]
        return replace(
            self, sample=replace(self.sample, queries=queries), scores=scores, n_users_with_results=int(np.isfinite(scores[:, 0]).sum())
        )


def _bound_recall(expected: Sequence[_ExpectedResults], nprobe: int, k: int) -> float:
    """Bound the recall of a search of ``nprobe`` lists from above: 1.0 where that is all of them."""
    recalls, weights = [], []
    for results in expected:
        assert isinstance(results.sample.retriever, TunableRetriever)
        probed = results.sample.retriever.with_nprobe(nprobe).effective_nprobe(k)
        recalls.append(1.0 if probed == results.sample.retriever.nlist else float(results.recall_bound[probed]))
        weights.append(results.n_users_with_results)
    return float(np.average(recalls, weights=weights)) if any(weights) else 1.0


def _measure_point(expected: Sequence[_ExpectedResults], nprobe: int, overfetch: float) -> OperatingPoint:
    recall, seconds = 0.0, 0.0
    for results in expected:
        assert isinstance(results.sample.retriever, TunableRetriever)
        retriever = results.sample.retriever.with_nprobe(nprobe, overfetch)
        start = time.perf_counter()
        scores, _ = retriever.search(results.sample.queries, results.scores.shape[1])
        seconds += time.perf_counter() - start
        recall += knn_recall_at_k(scores, results.scores) * results.n_users_with_results
    n_users, n_measured = sum(len(results.scores) for results in expected), sum(results.n_users_with_results for results in expected)
    return OperatingPoint(nprobe, overfetch, recall / n_measured if n_measured else 1.0, seconds * 1000 / n_users)


def _lowest_sufficient_nprobe(measure: Callable[[int], OperatingPoint], target: float, fewest: int, most: int) -> int:
    """Find the lowest nprobe of ``fewest`` .. ``most`` that reaches the target, ``most`` where none below it does."""
    low, high, step = fewest - 1, fewest, 1  # low misses the target
    while high < most and measure(high).knn_recall_at_k < target:
        low, high, step = high, min(high + step, most), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if measure(middle).knn_recall_at_k >= target else (middle, high)
    return high
