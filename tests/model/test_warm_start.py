"""Closed-form starts: against their formulas, by brute force on small matrices."""

from typing import Any

import numpy as np
import pytest
import torch

from recsys_batch.model import warm_start
from recsys_batch.model.training_data import Positives
from recsys_batch.model.warm_start import DROPOUT_ODDS, _orthonormalize, fit_low_rank_start, fit_ridge_start

RIDGE = 3.0


@pytest.fixture
def sample(make_positives: Any) -> Positives:
    rng = np.random.default_rng(2)
    return make_positives([rng.permutation(12)[: rng.integers(1, 9)].tolist() for _ in range(40)], 12)  # type: ignore[no-any-return]


def dense(positives: Positives) -> np.ndarray:
    X = np.zeros((positives.n_users, positives.n_items))
    X[positives.rows, positives.codes] = 1
    return X


def weights(X: np.ndarray) -> np.ndarray:
    root = 1 / np.sqrt(X.sum(1))
    return np.asarray(root / root.mean())


def item_item(X: np.ndarray, ridge: float, odds: float, user_weights: np.ndarray) -> np.ndarray:
    """The module's formula, with its matrices written out; odds 0 and weights 1 are EASE."""
    G = X.T @ np.diag(user_weights) @ X
    C = np.linalg.inv(G + ridge * np.eye(len(G)) + odds * np.diag(np.diag(G)))
    B = np.eye(len(C)) - C @ np.diag(1 / np.diag(C))
    np.fill_diagonal(B, 0)
    return B


def test_at_full_rank_the_ridge_start_is_the_item_item_model(sample: Positives) -> None:
    start = fit_ridge_start(sample, 12, RIDGE, seed=1)
    X = dense(sample)
    np.testing.assert_allclose(start.history @ start.embedding.T, item_item(X, RIDGE, DROPOUT_ODDS, weights(X)), atol=1e-4)


def test_without_dropout_and_weights_it_is_ease(sample: Positives, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Steck's own solution: the minimum of |X - XB|^2 + ridge |B|^2 with a zero diagonal, column by column."""
    monkeypatch.setattr(warm_start, "DROPOUT_ODDS", 0.0)
    monkeypatch.setattr(warm_start, "weight_users", lambda counts: np.ones(len(counts)))
    start = fit_ridge_start(sample, 12, RIDGE, seed=1)
    X = dense(sample)
    for item in range(12):
        others = np.delete(np.arange(12), item)
        A = X[:, others]
        column = np.linalg.solve(A.T @ A + RIDGE * np.eye(11), A.T @ X[:, item])
        np.testing.assert_allclose((start.history @ start.embedding.T)[others, item], column, atol=1e-4)


def test_at_lower_rank_the_ridge_start_scores_as_near_to_the_full_model_as_that_rank_can(sample: Positives) -> None:
    X = dense(sample)
    weighted = weights(X)[:, None] * X
    B = item_item(X, RIDGE, DROPOUT_ODDS, weights(X))
    start = fit_ridge_start(sample, 4, RIDGE, seed=1)
    best = np.sqrt((np.linalg.svd(weighted @ B, compute_uv=False)[4:] ** 2).sum())
    assert np.linalg.norm(weighted @ (start.history @ start.embedding.T - B)) == pytest.approx(best, rel=1e-3)


def test_at_full_rank_the_low_rank_start_is_the_item_item_model_too(sample: Positives) -> None:
    start = fit_low_rank_start(sample, 12, RIDGE, seed=1)
    X = dense(sample)
    np.testing.assert_allclose(start.history @ start.embedding.T, item_item(X, RIDGE, DROPOUT_ODDS, weights(X)), atol=1e-3)


def test_what_the_eigenpairs_leave_over_stays_on_the_diagonal(sample: Positives, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, rare items look as if nobody had taken them."""
    monkeypatch.setattr(warm_start, "MAX_RANK", 5)
    monkeypatch.setattr(warm_start, "OVERSAMPLING", 0)
    known = warm_start.compute_spectrum(sample, 5, seed=1)
    X = dense(sample)
    assert known.vectors.shape == (12, 5)
    np.testing.assert_allclose(known.diagonal, np.diag(X.T @ np.diag(weights(X)) @ X), rtol=1e-4)
    kept = np.diag((known.vectors * known.values @ known.vectors.T).numpy())
    np.testing.assert_allclose(kept + known.residual.numpy(), known.diagonal, rtol=1e-4)
    start = fit_low_rank_start(sample, 5, RIDGE, seed=1, spectrum=known)
    gram = (known.vectors * known.values @ known.vectors.T).numpy() + np.diag(known.residual.numpy())
    C = np.linalg.inv(gram + RIDGE * np.eye(12) + DROPOUT_ODDS * np.diag(known.diagonal.numpy()))
    B = np.eye(12) - C / np.diag(C)
    np.testing.assert_allclose(start.history, B @ start.embedding, atol=1e-3)


@pytest.mark.parametrize("begin", [lambda p, h, s: fit_ridge_start(p, h, RIDGE, s), lambda p, h, s: fit_low_rank_start(p, h, RIDGE, s)])
def test_more_dimensions_than_items_are_filled_with_zeros(sample: Positives, begin: Any) -> None:
    exact, wide = begin(sample, 12, 1), begin(sample, 20, 1)
    assert wide.history.shape == wide.embedding.shape == (12, 20)
    np.testing.assert_allclose(wide.history @ wide.embedding.T, exact.history @ exact.embedding.T, atol=1e-4)


@pytest.mark.parametrize("begin", [lambda p, h, s: fit_ridge_start(p, h, RIDGE, s), lambda p, h, s: fit_low_rank_start(p, h, RIDGE, s)])
def test_an_item_of_nobody_and_a_user_of_nothing_do_no_harm(make_positives: Any, begin: Any) -> None:
    start = begin(make_positives([[0, 1], [], [1, 0], [0]], 3), 2, 1)
    assert np.isfinite(start.history).all() and np.isfinite(start.embedding).all()


def test_a_large_catalogues_basis_is_orthonormal_and_spans_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of lengths from 1 to 1,000, then two that are the same, where Cholesky's factor does not exist."""
    monkeypatch.setattr(warm_start, "_CHOLESKY_MIN_ROWS", 100)
    Y = torch.randn(500, 8, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, 3, 8)
    for columns in (Y, torch.cat([Y, Y[:, :1]], dim=1)):
        Q = _orthonormalize(columns)
        torch.testing.assert_close(Q.T @ Q, torch.eye(columns.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(Q @ (Q.T @ columns), columns, atol=1e-2, rtol=1e-4)


def test_a_large_catalogues_start_is_the_one_of_householders_basis(sample: Positives, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit_low_rank_start(sample, 12, RIDGE, seed=1)
    monkeypatch.setattr(warm_start, "_CHOLESKY_MIN_ROWS", 0)
    start = fit_low_rank_start(sample, 12, RIDGE, seed=1)
    np.testing.assert_allclose(start.history @ start.embedding.T, expected.history @ expected.embedding.T, atol=1e-3)
