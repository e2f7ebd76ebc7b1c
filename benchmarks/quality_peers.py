"""What a recommendation is compared with in quality.py: popularity, EASE, item-based neighbours and implicit's ALS.

Each takes the same known events, and chooses its settings by NDCG@20 on the validation part that training chooses the model's by.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys_batch.evaluation.metrics import evaluate_users
from recsys_batch.model.training_data import Positives
from recsys_batch.model.warm_start import interaction_matrix
from recsys_batch.ranking.top_k import select_top_k_per_row

K = 20
Scorer = Callable[[sparse.csr_matrix, np.ndarray], np.ndarray]
"""(histories [B, n] of ones, rows of these users int64 [B]) -> scores float32 [B, n]."""

_BLOCK_USERS = 500


@dataclass(frozen=True)
class FittedPeer:
    """A peer's scorer and the settings that were chosen."""

    scorer: Scorer
    settings: dict[str, float]


def rank_unseen(known: Positives, scorer: Scorer, k: int = K) -> np.ndarray:
    """List the k best items that each user has not had, int64 [n_users, k]."""
    matrix, lists = interaction_matrix(known), []
    for start in range(0, known.n_users, _BLOCK_USERS):
        rows = np.arange(start, min(start + _BLOCK_USERS, known.n_users))
        scores = np.array(scorer(matrix[rows], rows), dtype=np.float32)
        scores[matrix[rows].nonzero()] = -np.inf
        lists.append(select_top_k_per_row(scores, k)[1])
    return np.concatenate(lists)


def fit_peer(name: str, known: Positives, train: Positives, held_out: Positives, seed: int) -> FittedPeer:
    """Choose a peer's settings on (train, held_out) and fit it to all that is known."""
    best, best_settings = -1.0, {}
    for settings, fit in _PEERS[name](seed):
        lists = rank_unseen(train, fit(interaction_matrix(train)))
        reached = float(evaluate_users(lists, held_out.offsets, held_out.codes, train.n_items, (K,))[f"ndcg_at_{K}"].mean())
        if reached > best:
            best, best_settings, best_fit = reached, settings, fit
    return FittedPeer(best_fit(interaction_matrix(known)), best_settings)


Trial = tuple[dict[str, float], Callable[[sparse.csr_matrix], Scorer]]


def _try_popularity(seed: int) -> Iterator[Trial]:
    def fit(matrix: sparse.csr_matrix) -> Scorer:
        counts = np.asarray(matrix.sum(axis=0), dtype=np.float32)
        return lambda histories, rows: np.tile(counts, (len(rows), 1))

    yield {}, fit


def _try_ease(seed: int) -> Iterator[Trial]:
    """Steck 2019, "Embarrassingly shallow autoencoders for sparse data", eq. 8."""

    def fit(matrix: sparse.csr_matrix, ridge: float) -> Scorer:
        gram = (matrix.T @ matrix).toarray()
        gram[np.diag_indices_from(gram)] += ridge
        inverse = np.linalg.inv(gram)
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        return lambda histories, rows: histories @ weights

    for ridge in (50.0, 100.0, 200.0, 400.0, 800.0, 1600.0):
        yield {"lambda": ridge}, lambda matrix, ridge=ridge: fit(matrix, ridge)  # type: ignore[misc]


def _try_item_knn(seed: int) -> Iterator[Trial]:
    """Cosine of items by their users, shrunk by 1 / (1 + shrink / shared users), the k nearest of each item."""

    def fit(matrix: sparse.csr_matrix, k: int, shrink: float) -> Scorer:
        shared = (matrix.T @ matrix).toarray()
        lengths = np.sqrt(np.diag(shared))
        similarity = shared / np.maximum(lengths[:, None] * lengths, 1e-9) * (shared / (shared + shrink + 1e-9))
        np.fill_diagonal(similarity, 0.0)
        if k < len(similarity):
            smallest = np.partition(similarity, -k, axis=0)[-k]
            similarity[similarity < smallest] = 0.0
        nearest = sparse.csr_matrix(similarity)
        return lambda histories, rows: (histories @ nearest).toarray()

    for k in (20, 50, 100, 200, 500):
        for shrink in (0.0, 10.0, 100.0):
            yield {"k": k, "shrink": shrink}, lambda matrix, k=k, shrink=shrink: fit(matrix, k, shrink)  # type: ignore[misc]


def _try_als(seed: int) -> Iterator[Trial]:
    """Hu, Koren and Volinsky 2008, "Collaborative filtering for implicit feedback datasets", as implicit has it."""
    from implicit.als import AlternatingLeastSquares

    def fit(matrix: sparse.csr_matrix, factors: int, regularization: float, alpha: float) -> Scorer:
        settings = {"factors": factors, "regularization": regularization, "alpha": alpha, "iterations": 15}
        model = AlternatingLeastSquares(**settings, random_state=seed)
        model.fit(matrix, show_progress=False)
        return lambda histories, rows: model.user_factors[rows] @ model.item_factors.T

    for factors in (32, 64, 128):
        for regularization in (0.01, 0.1, 1.0):
            for alpha in (1.0, 5.0, 20.0):
                trial = {"factors": factors, "regularization": regularization, "alpha": alpha}
                yield trial, lambda matrix, trial=trial: fit(matrix, **trial)  # type: ignore[misc]


_PEERS: dict[str, Callable[[int], Iterator[Trial]]] = {
    "popularity": _try_popularity,
    "ease": _try_ease,
    "item_knn": _try_item_knn,
    "als": _try_als,
}
PEERS = tuple(_PEERS)
