"""Items near a vector: candidates for somebody of whom only the session is known.

Up to EXACT_ITEMS one product with all embeddings. Beyond, k-means lists: spherical k-means on a sample, every item in the list of its
nearest centroid, and the lists nearest to the vector are searched, which is a few thousand products instead of a million.
"""

from dataclasses import dataclass

import numpy as np

EXACT_ITEMS = 50_000
_SAMPLE_PER_LIST = 64
_KMEANS_ROUNDS = 8
_ASSIGN_ROWS = 65_536
_MIN_SCANNED = 8_000  # items whose products are taken, at least, whatever the lists' sizes


@dataclass(frozen=True)
class KMeansLists:
    """Inverted lists of items: centroids float32 [L, d] of length 1; codes int32 [n] list by list; offsets int64 [L + 1]."""

    centroids: np.ndarray
    codes: np.ndarray
    offsets: np.ndarray


def build_kmeans_lists(embeddings: np.ndarray, allowed: np.ndarray, seed: int = 17) -> KMeansLists | None:
    """Cluster the allowed items (bool [n]; embeddings float32 [n, d]) by spherical k-means; None where all of them are searched."""
    codes = np.flatnonzero(allowed).astype(np.int32)
    if len(codes) <= EXACT_ITEMS:
        return None
    n_lists = int(2 * np.sqrt(len(codes)))
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(codes, min(len(codes), n_lists * _SAMPLE_PER_LIST), replace=False))
    vectors = l2_normalise(np.asarray(embeddings[sample]))
    centroids = vectors[rng.choice(len(vectors), n_lists, replace=False)]
    for _ in range(_KMEANS_ROUNDS):
        owner = _nearest_centroid(vectors, centroids)
        order = np.argsort(owner, kind="stable")
        filled, starts = np.unique(owner[order], return_index=True)
        # Centroids are directions: the sum is as good as the mean, and an empty list keeps its own.
        centroids[filled] = l2_normalise(np.add.reduceat(vectors[order], starts, axis=0))
    blocks = (codes[start : start + _ASSIGN_ROWS] for start in range(0, len(codes), _ASSIGN_ROWS))
    owner = np.concatenate([_nearest_centroid(l2_normalise(np.asarray(embeddings[block])), centroids) for block in blocks])
    order = np.argsort(owner, kind="stable")
    return KMeansLists(centroids, codes[order], np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n_lists))]).astype(np.int64))


def search_nearest(
    vector: np.ndarray, embeddings: np.ndarray, allowed: np.ndarray, lists: KMeansLists | None, n: int, *, cosine: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Find the n allowed items of largest retrieval score among those searched: (codes int32, scores float32), best first.

    Ties go to the smaller code.

    Args:
        vector: float32 [d]. embeddings: float32 [n_items, d]. allowed: bool [n_items].
        cosine: the score is the cosine, not the inner product.
    """
    codes = np.flatnonzero(allowed).astype(np.int32) if lists is None else _scan_lists(vector, lists, n)
    if lists is not None:
        codes = codes[allowed[codes]]
    vectors = embeddings[codes]
    if cosine:
        vectors, vector = l2_normalise(vectors), l2_normalise(vector)
    products = vectors @ vector
    if len(codes) > n:
        best = np.argpartition(-products, n - 1)[:n]
        codes, products = codes[best], products[best]
    order = np.lexsort((codes, -products))
    return codes[order], products[order].astype(np.float32)


def _scan_lists(vector: np.ndarray, lists: KMeansLists, n: int) -> np.ndarray:
    order = np.argsort(-(lists.centroids @ vector), kind="stable")
    sizes = np.diff(lists.offsets)[order]
    needed = int(np.searchsorted(np.cumsum(sizes), max(_MIN_SCANNED, 4 * n))) + 1
    return np.concatenate([lists.codes[lists.offsets[row] : lists.offsets[row + 1]] for row in order[:needed]])


def _nearest_centroid(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.concatenate([(vectors[at : at + 4096] @ centroids.T).argmax(axis=1) for at in range(0, len(vectors), 4096)])


def l2_normalise(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, float32 (a row of zeros stays)."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12), dtype=np.float32)
