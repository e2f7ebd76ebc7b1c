"""Closed-form starting points of the towers, so that gradient steps only have to polish.

Small catalogues: the item-item model B = I - C diagMat(1 / diag C), C = (G + lambda I + p / (1 - p) diag G)^-1, G = X' W X. That is
EASE (Steck 2019, "Embarrassingly shallow autoencoders", eq. 8) with the diagonal of training by dropout p (Steck 2020,
"Autoencoders that don't overfit towards the identity", eq. 5) and users weighted by W = 1 / sqrt(their items), so that the heavy ones do
not speak for everybody. B is then projected on the top right singular vectors V of sqrt(W') X B: H = BV, E = V.
Larger ones never form an n x n matrix: G is taken as its top r eigenpairs plus the diagonal that they leave over, U diag(s) U' + R, and
C is applied by Woodbury's identity. Columns come by descending singular value, so a narrower start is a wider one's first columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from recsys_batch.model.training_data import Positives

RIDGE_MAX_ITEMS = 6_000
"""Inverting n x n takes n^3: 6,000 items are some seconds on two cores."""

DROPOUT_ODDS = 0.5
"""p / (1 - p) at p = 1/3. NDCG@20 of ML-100K, random split, lambda 150: 0.450 at 0, 0.451 at 0.25, 0.452 at 0.67."""

_OVERSAMPLE, _ITERATIONS = 16, 5
_MAX_RANK = 1_024
_CELLS = 64_000_000  # of one [n, r] array: 256 MB, and about five of them live at once
_PRODUCTS = 4_000_000_000  # multiplications of one pass over X: some seconds


@dataclass(frozen=True)
class WarmStart:
    """history float32 [n, h], embedding float32 [n, h], and where they come from."""

    history: np.ndarray
    embedding: np.ndarray
    kind: str


def fit_ridge_start(positives: Positives, h: int, ridge: float, seed: int) -> WarmStart:
    """From the item-item model; W' weighs users by 1 / their items, so that the projection is fair to short histories too."""
    X = _matrix(positives)
    gram = _gram(X, weight_users(positives.counts))
    C = torch.linalg.inv(gram + torch.diag(ridge + DROPOUT_ODDS * gram.diagonal()))
    B = C / -C.diagonal()
    B.fill_diagonal_(0.0)
    target = _gram(X, weight_users(positives.counts) ** 2)
    V = _top_directions(lambda Y: B.T @ (target @ (B @ Y)), len(gram), h, seed)
    return WarmStart((B @ V).numpy(), V.numpy(), f"ridge {ridge:g}")


def weight_users(counts: np.ndarray) -> np.ndarray:
    """float64 [n_users]: 1 / sqrt(items), mean 1 over the users who have any; 0 for the others."""
    weights = np.where(counts > 0, 1.0 / np.sqrt(np.maximum(counts, 1)), 0.0)
    return np.asarray(weights / max(weights.sum() / max(int((counts > 0).sum()), 1), 1e-12))


@dataclass(frozen=True)
class Spectrum:
    """What every ridge shares in a large catalogue: vectors float32 [n, r], values [r], the diagonals of G and of what is left over [n]."""

    vectors: torch.Tensor
    values: torch.Tensor
    diagonal: torch.Tensor
    left: torch.Tensor


def compute_spectrum(positives: Positives, h: int, seed: int) -> Spectrum:
    """Top eigenpairs of G, as many as memory and time allow, but enough for a start of width h."""
    X = _matrix(positives)
    root = (sparse.diags(np.sqrt(weight_users(positives.counts)).astype(np.float32)) @ X).tocsr()
    n, by_memory, by_time = positives.n_items, _CELLS // max(positives.n_items, 1), _PRODUCTS // max(len(positives.codes), 1)
    rank = min(int(np.clip(min(by_memory, by_time), h + _OVERSAMPLE, _MAX_RANK)), n)
    transposed = root.T.tocsr()
    U = _top_directions(lambda Y: torch.from_numpy(transposed @ (root @ Y.numpy())), n, rank, seed)
    values = (torch.from_numpy(root @ U.numpy()) ** 2).sum(dim=0)
    diagonal = torch.from_numpy(np.asarray(root.multiply(root).sum(axis=0), dtype=np.float32).ravel())
    return Spectrum(U, values, diagonal, torch.clamp(diagonal - (U**2) @ values, min=0.0))


def truncate_start(positives: Positives, h: int, ridge: float, seed: int, spectrum: Spectrum | None = None) -> WarmStart:
    """As ``ridge_start``, from a spectrum: C = (D + U diag(s) U')^-1 with D = lambda + p / (1 - p) diag G + R."""
    known = spectrum or compute_spectrum(positives, h, seed)
    D = (ridge + DROPOUT_ODDS * known.diagonal + known.left)[:, None]
    DU = known.vectors / D
    core = torch.linalg.inv(torch.diag(1 / torch.clamp(known.values, min=1e-6)) + known.vectors.T @ DU)
    scale = 1 / (1 / D - ((DU @ core) * DU).sum(dim=1, keepdim=True))

    def times_c(Y: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = Y / D - DU @ (core @ (DU.T @ Y))
        return product

    weighted = (sparse.diags(weight_users(positives.counts).astype(np.float32)) @ _matrix(positives)).tocsr()
    transposed = weighted.T.tocsr()

    def objective(Y: torch.Tensor) -> torch.Tensor:
        hit = torch.from_numpy(transposed @ (weighted @ (Y - times_c(scale * Y)).numpy()))
        carried: torch.Tensor = hit - scale * times_c(hit)
        return carried

    V = _top_directions(objective, positives.n_items, h, seed)
    return WarmStart((V - times_c(scale * V)).numpy(), V.numpy(), f"low-rank ridge {ridge:g}")


def _matrix(positives: Positives) -> sparse.csr_matrix:
    ones = np.ones(len(positives.codes), dtype=np.float32)
    return sparse.csr_matrix((ones, positives.codes, positives.offsets), shape=(positives.n_users, positives.n_items))


def _gram(X: sparse.csr_matrix, weights: np.ndarray) -> torch.Tensor:
    """float32 [n, n]: X' diag(weights) X."""
    return torch.from_numpy((X.T @ (sparse.diags(weights.astype(np.float32)) @ X)).toarray())


def _top_directions(apply: Callable[[torch.Tensor], torch.Tensor], n: int, h: int, seed: int) -> torch.Tensor:
    """Orthonormal [n, h] that spans the top eigenvectors of a symmetric operator, by subspace iteration (Halko et al. 2011, alg. 4.4)."""
    width = min(h + _OVERSAMPLE, n)
    Y = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    for _ in range(_ITERATIONS):
        Y, _ = torch.linalg.qr(apply(Y))
    _, rotation = torch.linalg.eigh(Y.T @ apply(Y))
    V = (Y @ rotation).flip(1)[:, :h]  # eigh is ascending
    return V if V.shape[1] == h else torch.nn.functional.pad(V, (0, h - V.shape[1]))
