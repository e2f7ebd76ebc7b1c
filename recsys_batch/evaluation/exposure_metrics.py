"""Hits of shown items, and the metrics of answers and places by them: numpy alone."""

from dataclasses import dataclass

import numpy as np

from recsys_batch.evaluation.off_policy import Z_95


@dataclass(frozen=True)
class AnswerMetrics:
    """Metrics of a group of answers.

    Attributes:
        hit_rate: answers with at least one hit / all answers.
        ndcg: mean over all answers of DCG / IDCG, 0 for one without a hit; see ``answer_ndcg``.
        hits_per_item: hits / shown items.
    """

    n_answers: int
    n_users: int
    n_shown: int
    n_hits: int
    hit_rate: float
    ndcg: float
    hits_per_item: float


@dataclass(frozen=True)
class PlaceMetrics:
    """Hits of what was shown at a place; low and high are of Wilson's 95 % interval of hits_per_item."""

    position: int
    n_shown: int
    n_hits: int
    hits_per_item: float
    low: float
    high: float


@dataclass(frozen=True)
class ShownItems:
    """Rows of shown items, those of an answer next to each other.

    Attributes:
        starts: int64 [n_answers], the first row of each answer.
        users: int64 [n], codes. position: int64 [n], from 1. hits: bool [n].
    """

    starts: np.ndarray
    users: np.ndarray
    position: np.ndarray
    hits: np.ndarray


def mark_hits(pairs: np.ndarray, shown_at: np.ndarray, event_pairs: np.ndarray, event_at: np.ndarray, within: int) -> np.ndarray:
    """Mark the showings that an event of the same user and item followed, bool [n]: in (shown_at, shown_at + within], and an event counts
    for the last showing before it only.

    Args:
        pairs, event_pairs: int64, a code of user and item. shown_at, event_at: int64, in the unit of ``within``.
    """
    n_events = len(event_pairs)
    pair, at = np.concatenate([event_pairs, pairs]), np.concatenate([event_at, shown_at])
    # An event at the very time of a showing is not after it, so it is sorted before it.
    order = np.lexsort((np.arange(len(pair)) >= n_events, at, pair))
    is_showing = order >= n_events
    last = np.maximum.accumulate(np.where(is_showing, np.arange(len(order)), -1))[~is_showing]
    events, last = order[~is_showing][last >= 0], order[last[last >= 0]]
    follows = (pair[last] == pair[events]) & (at[events] - at[last] <= within)
    hits = np.zeros(len(pairs), dtype=bool)
    hits[last[follows] - n_events] = True
    return hits


def answer_ndcg(shown: ShownItems) -> np.ndarray:
    """Compute each answer's NDCG, float64 [n_answers]: DCG = sum over hits of 1 / log2(1 + place), IDCG the DCG of the same number of hits
    in the first places; 0 without a hit (Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques").
    """
    gained = _sum_by_answer(np.where(shown.hits, 1 / np.log2(1.0 + shown.position), 0.0), shown.starts)
    n_hits = _sum_by_answer(shown.hits.astype(np.int64), shown.starts)
    ideal = np.concatenate([[1.0], np.cumsum(1 / np.log2(np.arange(2.0, n_hits.max(initial=0) + 2)))])
    return np.asarray(gained / ideal[n_hits])


def summarise_answers(shown: ShownItems, labels: np.ndarray, n_labels: int) -> list[AnswerMetrics]:
    """Compute the metrics of each group of answers.

    Args:
        labels: int [n_answers], the group of each, from 0. n_labels: number of groups, each with an answer.
    """
    n_answers, n_shown = np.bincount(labels, minlength=n_labels), _sizes(shown)
    hits = _sum_by_answer(shown.hits.astype(np.int64), shown.starts)
    users = shown.users[shown.starts]
    pairs = np.sort(labels * (users.max(initial=0) + 1) + users)
    distinct = pairs[np.diff(pairs, prepend=-1) > 0]
    columns: dict[str, np.ndarray] = {
        "n_users": np.bincount(distinct // (users.max(initial=0) + 1), minlength=n_labels),
        "n_shown": np.bincount(labels, n_shown, n_labels).astype(np.int64),
        "n_hits": np.bincount(labels, hits, n_labels).astype(np.int64),
        "hit_rate": np.bincount(labels, hits > 0, n_labels) / n_answers,
        "ndcg": np.bincount(labels, answer_ndcg(shown), n_labels) / n_answers,
    }
    columns["hits_per_item"] = columns["n_hits"] / columns["n_shown"]
    return [AnswerMetrics(*row) for row in zip(n_answers.tolist(), *(column.tolist() for column in columns.values()), strict=True)]


def summarise_places(shown: ShownItems) -> list[PlaceMetrics]:
    """Count what was shown at each place, and its hits, with Wilson's interval (Wilson 1927, "Probable Inference"); it takes showings as
    independent, so it is somewhat narrow where users come back.
    """
    n_shown, n_hits = np.bincount(shown.position), np.bincount(shown.position, shown.hits)
    places = np.flatnonzero(n_shown)
    n, hits = n_shown[places], n_hits[places]
    rate, spread = hits / n, Z_95**2 / n
    middle = (rate + spread / 2) / (1 + spread)
    half = Z_95 * np.sqrt(rate * (1 - rate) / n + spread / (4 * n)) / (1 + spread)
    columns = (places, n, hits.astype(np.int64), rate, np.maximum(middle - half, 0), np.minimum(middle + half, 1))
    return [PlaceMetrics(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _sum_by_answer(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.asarray(np.add.reduceat(values, starts))


def _sizes(shown: ShownItems) -> np.ndarray:
    return np.diff(shown.starts, append=len(shown.users))
