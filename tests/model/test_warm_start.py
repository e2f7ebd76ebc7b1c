"""Closed-form starts: against their formulas, by brute force on small matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recsys_batch.model.data import Positives
from recsys_batch.model.warm_start import ridge_start, svd_start

RIDGE = 3.0


@pytest.fixture
def sample(make_positives: Any) -> Positives:
    rng = np.random.default_rng(2)
    return make_positives([rng.permutation(12)[: rng.integers(1, 9)].tolist() for _ in range(40)], 12)  # type: ignore[no-any-return]


def dense(positives: Positives) -> np.ndarray:
    X = np.zeros((positives.n_users, positives.n_items))
    X[positives.rows, positives.codes] = 1
    return X


def ease(X: np.ndarray, ridge: float) -> np.ndarray:
    """Steck 2019, eq. 8, as written there."""
    P = np.linalg.inv(X.T @ X + ridge * np.eye(X.shape[1]))
    B = np.eye(len(P)) - P @ np.diag(1 / np.diag(P))
    np.fill_diagonal(B, 0)
    return B


def test_at_full_rank_the_ridge_start_is_the_item_item_model(sample: Positives) -> None:
    start = ridge_start(sample, 12, RIDGE, seed=1)
    np.testing.assert_allclose(start.history @ start.embedding.T, ease(dense(sample), RIDGE), atol=1e-4)


def test_at_lower_rank_the_ridge_start_scores_as_near_to_the_full_model_as_that_rank_can(sample: Positives) -> None:
    X = dense(sample)
    full = X @ ease(X, RIDGE)
    start = ridge_start(sample, 4, RIDGE, seed=1)
    best = np.sqrt((np.linalg.svd(full, compute_uv=False)[4:] ** 2).sum())
    assert np.linalg.norm(X @ start.history @ start.embedding.T - full) == pytest.approx(best, rel=1e-3)


def test_the_svd_start_is_the_truncated_svd_of_the_normalised_matrix(sample: Positives) -> None:
    X = dense(sample)
    X = X / np.sqrt(X.sum(1, keepdims=True)) / X.sum(0) ** 0.25
    _, spectrum, Vt = np.linalg.svd(X, full_matrices=False)
    start = svd_start(sample, 5, seed=1)
    np.testing.assert_allclose(start.history @ start.embedding.T, Vt[:5].T * spectrum[:5] @ Vt[:5], atol=1e-4)


@pytest.mark.parametrize("begin", [lambda p, h, s: ridge_start(p, h, RIDGE, s), svd_start])
def test_more_dimensions_than_items_are_filled_with_zeros(sample: Positives, begin: Any) -> None:
    exact, wide = begin(sample, 12, 1), begin(sample, 20, 1)
    assert wide.history.shape == wide.embedding.shape == (12, 20)
    np.testing.assert_allclose(wide.history @ wide.embedding.T, exact.history @ exact.embedding.T, atol=1e-4)


@pytest.mark.parametrize("begin", [lambda p, h, s: ridge_start(p, h, RIDGE, s), svd_start])
def test_an_item_of_nobody_and_a_user_of_nothing_do_no_harm(make_positives: Any, begin: Any) -> None:
    start = begin(make_positives([[0, 1], [], [1, 0], [0]], 3), 2, 1)
    assert np.isfinite(start.history).all() and np.isfinite(start.embedding).all()
