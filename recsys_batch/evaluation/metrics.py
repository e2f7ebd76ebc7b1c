"""Offline quality of top-K lists against later interactions; binary relevance, ragged truth.

Per-user metrics take ``hits`` (bool [n_users, K], from ``hit_matrix``) and ``n_relevant`` (int64 [n_users], at least 1 each), and
return float64 [n_users]. ``evaluate_lists`` averages them over the users who have at least one relevant item. Metrics of the lists
alone (coverage, novelty, popularity share) take ``recommended`` (int64 [n_users, K] item codes, -1 = no item, which is no place) and
describe what was recommended, so they run over every list given, whether or not its user came back.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from recsys_batch.errors import RecsysBatchError, UsageError

POPULAR_FRACTION = 0.01
"""popularity_share counts the most popular items up to this share of the catalogue (rounded up)."""


def recall_at_k(hits: np.ndarray, n_relevant: np.ndarray, k: int) -> np.ndarray:
    """Compute recall@k of each user: |top k of u that are relevant| / |all relevant items of u|.

    The denominator is every relevant item, also where there are more than k of them, so a user with 30 relevant items can
    reach 1/3 at most at k = 10 (Herlocker et al. 2004, "Evaluating collaborative filtering recommender systems", 4.1).

    Args:
        hits: bool [n_users, K].
        n_relevant: int64 [n_users], at least 1 each.
    Returns:
        float64 [n_users].
    """
    return np.asarray(hits[:, :k].sum(axis=1) / n_relevant, dtype=np.float64)


def ndcg_at_k(hits: np.ndarray, n_relevant: np.ndarray, k: int) -> np.ndarray:
    """Compute nDCG@k of each user: DCG / IDCG, DCG = sum over hits of 1 / log2(rank + 1), rank from 1.

    The ideal list holds min(|relevant|, k) hits in its first places, so 1.0 is reachable by every user
    (Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", with the log2(rank + 1) discount).
    """
    discount: np.ndarray = 1.0 / np.log2(np.arange(2, k + 2))
    gained = hits[:, :k] @ discount[: hits[:, :k].shape[1]]
    ideal = np.cumsum(discount)[np.minimum(n_relevant, k) - 1]
    return np.asarray(gained / ideal, dtype=np.float64)


def hit_rate_at_k(hits: np.ndarray, k: int) -> np.ndarray:
    """Compute hit_rate@k of each user: 1 where the top k hold at least one relevant item, else 0 (Deshpande and Karypis 2004)."""
    return np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)


def mrr_at_k(hits: np.ndarray, k: int) -> np.ndarray:
    """Compute mrr@k of each user: 1 / rank of the first relevant item in the top k, 0 where there is none (Voorhees 1999, TREC-8)."""
    top = hits[:, :k]
    if top.shape[1] == 0:
        return np.zeros(len(top))
    return np.asarray(np.where(top.any(axis=1), 1.0 / (top.argmax(axis=1) + 1), 0.0))


def coverage(recommended: np.ndarray, available: np.ndarray, k: int) -> float:
    """Compute coverage@k: |available items in anybody's top k| / |available items| (Ge et al. 2010, catalogue coverage).

    ``available`` is bool [n_items]; 0.0 where no item is available.
    """
    shown = np.zeros(len(available), dtype=bool)
    shown[_recommended_codes(recommended, k)] = True
    return float((shown & available).sum() / max(1, available.sum()))


def novelty(recommended: np.ndarray, item_counts: np.ndarray, k: int) -> float:
    """Compute novelty@k in bits: mean over recommended places of -log2 p(i), p(i) = (count_i + 1) / (sum of counts + n_items).

    Self-information of an item's share of the interactions (Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma of
    recommender systems"); one is added to every count (``item_counts``, int64 [n_items] interactions per item), so that an item
    nobody has touched is rare and not infinitely so. 0.0 where nothing is recommended.
    """
    share = (item_counts + 1) / (item_counts.sum() + len(item_counts))
    shown = _recommended_codes(recommended, k)
    return float(-np.log2(share[shown]).mean()) if len(shown) else 0.0


def popularity_share(recommended: np.ndarray, item_counts: np.ndarray, k: int) -> float:
    """Compute popularity_share@k: recommended places that go to the most popular 1 % of items / all recommended places.

    The head is ceil(n_items / 100) items by count (``item_counts``, int64 [n_items] interactions per item), ties by code, so at least
    one (after the short-head exposure of Abdollahpouri et al. 2019, "Managing popularity bias in recommender systems with
    personalized re-ranking"). 0.0 where nothing is recommended.
    """
    n_head = int(np.ceil(len(item_counts) * POPULAR_FRACTION))
    head = np.zeros(len(item_counts), dtype=bool)
    head[np.argsort(-item_counts, kind="stable")[:n_head]] = True
    shown = _recommended_codes(recommended, k)
    return float(head[shown].mean()) if len(shown) else 0.0


def hit_matrix(recommended: np.ndarray, truth_offsets: np.ndarray, truth_codes: np.ndarray, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Mark which recommended places are relevant, and count each user's relevant items: (hits, n_relevant). Repeated truth counts once."""
    users = np.arange(len(recommended), dtype=np.int64)
    truth = np.unique(np.repeat(users, np.diff(truth_offsets)) * n_items + truth_codes)
    hits = np.isin(users[:, None] * n_items + recommended, truth) & (recommended >= 0)
    return hits, np.bincount(truth // n_items, minlength=len(users)).astype(np.int64)


def evaluate_lists(
    recommended: np.ndarray,
    truth_offsets: np.ndarray,
    truth_codes: np.ndarray,
    item_counts: np.ndarray,
    ks: Sequence[int] = (10, 20),
    *,
    available: np.ndarray | None = None,
) -> dict[str, float]:
    """Compute every metric at every k, averaged over users.

    Args:
        recommended: item codes, best first, unique in a row, padded with -1; K may be below k (a short list).
        truth_offsets: int64 [n_users + 1]; user u's relevant items are ``truth_codes[truth_offsets[u]:truth_offsets[u + 1]]``.
        truth_codes: int64 [total], within the catalogue; duplicates count once.
        item_counts: int64 [n_items], training interactions per item.
        available: bool [n_items], what coverage counts; all items where it is not given.

    Returns:
        ``recall_at_10``, ``ndcg_at_10``, ``hit_rate_at_10``, ``mrr_at_10`` averaged over users with at least one relevant item
        (a user among them without a list scores 0); ``coverage_at_10``, ``novelty_at_10``, ``popularity_share_at_10`` over all
        lists; the same for each k.

    Raises:
        UsageError: no user has a relevant item.
        RecsysBatchError: shapes that do not fit, codes outside the catalogue, or an item listed twice for a user.
    """
    per_user = evaluate_users(recommended, truth_offsets, truth_codes, len(item_counts), ks)
    return summarize_metrics(per_user, recommended, item_counts, ks, available=available)


def summarize_metrics(
    per_user: Mapping[str, np.ndarray],
    recommended: np.ndarray,
    item_counts: np.ndarray,
    ks: Sequence[int],
    *,
    available: np.ndarray | None = None,
) -> dict[str, float]:
    """Average the metrics that ``evaluate_users`` gave for ``recommended``, and add those of the lists alone; as ``evaluate_lists``."""
    available = np.ones(len(item_counts), dtype=bool) if available is None else available
    result: dict[str, float] = {}
    for k in ks:
        result |= {name: float(values.mean()) for name, values in per_user.items() if name.endswith(f"_at_{k}")}
        result[f"coverage_at_{k}"] = coverage(recommended, available, k)
        result[f"novelty_at_{k}"] = novelty(recommended, item_counts, k)
        result[f"popularity_share_at_{k}"] = popularity_share(recommended, item_counts, k)
    return result


def evaluate_users(
    recommended: np.ndarray, truth_offsets: np.ndarray, truth_codes: np.ndarray, n_items: int, ks: Sequence[int] = (10, 20)
) -> dict[str, np.ndarray]:
    """Compute the metrics of each user with at least one relevant item: ``recall_at_10``, ``ndcg_at_10``, ... float64 [n judged].

    Arguments and errors as of ``evaluate_lists``; users in the order of ``recommended``.
    """
    _check_inputs(recommended, truth_offsets, truth_codes, n_items, ks)
    hits, n_relevant = hit_matrix(recommended, truth_offsets, truth_codes, n_items)
    judged = n_relevant > 0
    if not judged.any():
        raise UsageError(f"none of {len(judged)} users has a relevant item in the catalogue: does the truth belong to this data?")
    hits, n_relevant = hits[judged], n_relevant[judged]
    result: dict[str, np.ndarray] = {}
    for k in ks:
        result[f"recall_at_{k}"] = recall_at_k(hits, n_relevant, k)
        result[f"ndcg_at_{k}"] = ndcg_at_k(hits, n_relevant, k)
        result[f"hit_rate_at_{k}"] = hit_rate_at_k(hits, k)
        result[f"mrr_at_{k}"] = mrr_at_k(hits, k)
    return result


def _recommended_codes(recommended: np.ndarray, k: int) -> np.ndarray:
    top = recommended[:, :k]
    return top[top >= 0]


def _check_inputs(recommended: np.ndarray, offsets: np.ndarray, truth: np.ndarray, n_items: int, ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise RecsysBatchError(f"metrics need at least one k, each >= 1, found {list(ks)}")
    if recommended.ndim != 2 or len(offsets) != len(recommended) + 1 or offsets[-1] != len(truth):
        raise RecsysBatchError(
            f"lists {recommended.shape}, truth offsets {offsets.shape} and truth {truth.shape} do not fit: "
            "expected [n_users, K], [n_users + 1] and [offsets[-1]]"
        )
    for name, codes, lowest in (("recommended", recommended, -1), ("truth", truth, 0)):
        if codes.size and (codes.min() < lowest or codes.max() >= n_items):
            raise RecsysBatchError(f"{name} codes run from {codes.min()} to {codes.max()}; the catalogue has {n_items} items")
    ordered = np.sort(recommended, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if twice.any():
        raise RecsysBatchError(f"the list in row {int(np.argmax(twice))} holds an item twice ({int(twice.sum())} such lists)")
