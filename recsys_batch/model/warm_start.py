"""Closed-form initial weights of the towers, which gradient steps then refine.

Small catalogues: the item-item model B = I - C diagMat(1 / diag C), C = (G + lambda I + p / (1 - p) diag G)^-1, G = X' W X. That is
EASE (Steck 2019, "Embarrassingly shallow autoencoders", eq. 8) with the diagonal of training by dropout p (Steck 2020,
"Autoencoders that don't overfit towards the identity", eq. 5) and users weighted by W = 1 / sqrt(their items), so that heavy users do
not dominate. B is then projected on the top right singular vectors V of sqrt(W') X B: H = BV, E = V.
Large catalogues avoid n x n matrices: G is approximated by its top r eigenpairs plus the residual diagonal, U diag(s) U' + R, and
C is applied by Woodbury's identity. Columns come by descending singular value, so a narrower start is a wider one's first columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from recsys_batch.model.training_data import Positives

RIDGE_MAX_ITEMS = 6_000
"""Largest catalogue whose n x n matrix is inverted, which costs n^3: 6,000 items take some seconds on two cores."""

DROPOUT_ODDS = 0.5
"""p / (1 - p) at p = 1/3. NDCG@20 of ML-100K, random split, lambda 150: 0.450 at 0, 0.451 at 0.25, 0.452 at 0.67."""

OVERSAMPLING, _ITERATIONS = 16, 5
MAX_RANK = 1_024
MAX_CELLS = 64_000_000  # of one [n, r] array: 256 MB, and about five of them live at once
_MAX_MULTIPLICATIONS = 4_000_000_000  # multiplications of one pass over X: some seconds
_CHOLESKY_MIN_ROWS = 200_000


@dataclass(frozen=True)
class WarmStart:
    """Initial tower vectors: history and embedding, float32 [n, h]."""

    history: np.ndarray
    embedding: np.ndarray


def make_start_fitter(positives: Positives, h: int, seed: int) -> Callable[[float], WarmStart]:
    """Make the function that fits a warm start for a ridge; the spectrum that all ridges of a large catalogue share is computed once."""
    if positives.n_items <= RIDGE_MAX_ITEMS:
        return lambda ridge: fit_ridge_start(positives, h, ridge, seed)
    spectrum = compute_spectrum(positives, h, seed)
    return lambda ridge: fit_low_rank_start(positives, h, ridge, seed, spectrum)


def fit_ridge_start(positives: Positives, h: int, ridge: float, seed: int) -> WarmStart:
    """Fit a warm start of width h from the item-item model; W' weighs users by 1 / their items, for the sake of short histories."""
    X = interaction_matrix(positives)
    gram = _weighted_gram(X, weight_users(positives.counts))
    C = torch.linalg.inv(gram + torch.diag(ridge + DROPOUT_ODDS * gram.diagonal()))
    B = C / -C.diagonal()
    B.fill_diagonal_(0.0)
    target = _weighted_gram(X, weight_users(positives.counts) ** 2)
    V = _top_eigenvectors(lambda Y: B.T @ (target @ (B @ Y)), len(gram), h, seed)
    return WarmStart((B @ V).numpy(), V.numpy())


def weight_users(counts: np.ndarray) -> np.ndarray:
    """Weigh users by 1 / sqrt(items), float64 [n_users], with mean 1 over users with items; 0 for the others."""
    weights = np.where(counts > 0, 1.0 / np.sqrt(np.maximum(counts, 1)), 0.0)
    return np.asarray(weights / max(weights.sum() / max(int((counts > 0).sum()), 1), 1e-12))


@dataclass(frozen=True)
class GramSpectrum:
    """Low-rank approximation of G, shared by all ridges: eigenvectors float32 [n, r], values [r], diagonals of G and its residual [n]."""

    vectors: torch.Tensor
    values: torch.Tensor
    diagonal: torch.Tensor
    residual: torch.Tensor


def compute_spectrum(positives: Positives, h: int, seed: int) -> GramSpectrum:
    """Compute the top eigenpairs of G, as many as memory and time allow, but enough for a start of width h."""
    X = interaction_matrix(positives)
    root = (sparse.diags(np.sqrt(weight_users(positives.counts)).astype(np.float32)) @ X).tocsr()
    n, by_memory, by_time = positives.n_items, MAX_CELLS // max(positives.n_items, 1), _MAX_MULTIPLICATIONS // max(len(positives.codes), 1)
    rank = min(int(np.clip(min(by_memory, by_time), h + OVERSAMPLING, MAX_RANK)), n)
    transposed = root.T.tocsr()
    U = _top_eigenvectors(lambda Y: torch.from_numpy(transposed @ (root @ Y.numpy())), n, rank, seed)
    values = (torch.from_numpy(root @ U.numpy()) ** 2).sum(dim=0)
    diagonal = torch.from_numpy(np.asarray(root.multiply(root).sum(axis=0), dtype=np.float32).ravel())
    return GramSpectrum(U, values, diagonal, torch.clamp(diagonal - (U**2) @ values, min=0.0))


def fit_low_rank_start(positives: Positives, h: int, ridge: float, seed: int, spectrum: GramSpectrum | None = None) -> WarmStart:
    """Fit a warm start as ``fit_ridge_start`` does, from a low-rank G: C = (D + U diag(s) U')^-1, D = lambda + p / (1 - p) diag G + R."""
    spectrum = spectrum or compute_spectrum(positives, h, seed)
    D = (ridge + DROPOUT_ODDS * spectrum.diagonal + spectrum.residual)[:, None]
    DU = spectrum.vectors / D
    core = torch.linalg.inv(torch.diag(1 / torch.clamp(spectrum.values, min=1e-6)) + spectrum.vectors.T @ DU)
    scale = 1 / (1 / D - ((DU @ core) * DU).sum(dim=1, keepdim=True))

    def times_c(Y: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = Y / D - DU @ (core @ (DU.T @ Y))
        return product

    weighted = (sparse.diags(weight_users(positives.counts).astype(np.float32)) @ interaction_matrix(positives)).tocsr()
    transposed = weighted.T.tocsr()

    def apply_operator(Y: torch.Tensor) -> torch.Tensor:
        projected = torch.from_numpy(transposed @ (weighted @ (Y - times_c(scale * Y)).numpy()))
        product: torch.Tensor = projected - scale * times_c(projected)
        return product

    V = _top_eigenvectors(apply_operator, positives.n_items, h, seed)
    return WarmStart((V - times_c(scale * V)).numpy(), V.numpy())


def interaction_matrix(positives: Positives) -> sparse.csr_matrix:
    """Arrange positives as a matrix of ones, float32 [n_users, n_items]."""
    ones = np.ones(len(positives.codes), dtype=np.float32)
    return sparse.csr_matrix((ones, positives.codes, positives.offsets), shape=(positives.n_users, positives.n_items))


def _weighted_gram(X: sparse.csr_matrix, weights: np.ndarray) -> torch.Tensor:
    """Compute X' diag(weights) X, float32 [n, n]."""
    return torch.from_numpy((X.T @ (sparse.diags(weights.astype(np.float32)) @ X)).toarray())


def _top_eigenvectors(apply: Callable[[torch.Tensor], torch.Tensor], n: int, h: int, seed: int) -> torch.Tensor:
    """Compute the top h eigenvectors [n, h] of a symmetric operator by subspace iteration (Halko et al. 2011, alg. 4.4)."""
    width = min(h + OVERSAMPLING, n)
    Y = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    for _ in range(_ITERATIONS):
        Y = _orthonormalize(apply(Y))
    _, rotation = torch.linalg.eigh(Y.T @ apply(Y))
    V = (Y @ rotation).flip(1)[:, :h]  # eigh is ascending
    return V if V.shape[1] == h else torch.nn.functional.pad(V, (0, h - V.shape[1]))


def _orthonormalize(Y: torch.Tensor) -> torch.Tensor:
    """Find an orthonormal basis of the columns of Y [n, k].

    Of a large catalogue by CholeskyQR2 (Fukaya et al. 2014), two products instead of Householder's reflections; by those where the
    columns are too near to dependent for it.
    """
    Q, failure = Y, int(len(Y) <= _CHOLESKY_MIN_ROWS)
    for _ in range(2):
        if not failure:
            factor, status = torch.linalg.cholesky_ex((Q.T @ Q).double())
            Q, failure = Q @ torch.linalg.inv_ex(factor).inverse.T.float(), int(status)
    basis: torch.Tensor = torch.linalg.qr(Y)[0] if failure else Q
    return basis
