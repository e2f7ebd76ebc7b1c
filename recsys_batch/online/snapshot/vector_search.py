"""Items near a vector: candidates for somebody of whom only the session is known.

Where the night's index has inverted lists, those nearest to the vector are searched, which is a few thousand products instead of a
million; else one product with all embeddings. faiss is the night's dependency: the lists are arrays here, searched by numpy.
"""

from dataclasses import dataclass

import numpy as np

from recsys_batch.ranking.top_k import select_top_k_per_row
from recsys_batch.ranking.vector_lengths import SMALLEST_LENGTH, normalise_rows

EXACT_ITEMS = 50_000
"""Up to so many items (of 64 dimensions) all of them are searched in the time that their lists would take, 0.7 ms."""

_MIN_SCANNED = 8_000  # items whose products are taken, at least, whatever the lists' sizes


@dataclass(frozen=True)
class IvfLists:
    """Inverted lists of items: centroids float32 [L, d]; codes int32 [n] list by list; offsets int64 [L + 1]."""

    centroids: np.ndarray
    codes: np.ndarray
    offsets: np.ndarray


def search_nearest(
    vector: np.ndarray, embeddings: np.ndarray, allowed: np.ndarray, lists: IvfLists | None, n: int, norms: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the n allowed items of largest retrieval score among those searched: (codes int32, scores float32), best first.

    Ties go to the smaller code.

    Args:
        vector: float32 [d]. embeddings: float32 [n_items, d]. allowed: bool [n_items].
        lists: None searches all items.
        norms: float32 [n_items], lengths of the embeddings where the score is the cosine; None: it is the inner product.
    """
    codes = None if lists is None else _scan_lists(vector, lists, n)
    if codes is not None:  # take: a third of the time of embeddings[codes]
        embeddings, allowed, norms = embeddings.take(codes, axis=0), allowed[codes], None if norms is None else norms[codes]
    scores = score_items(vector, embeddings, norms)
    # Masked afterwards: to gather the allowed of all embeddings first takes three times as long as the product with all.
    best_scores, best = select_top_k_per_row(np.where(allowed, scores, np.float32(-np.inf))[None], n)
    found = best[best_scores > -np.inf]
    return (found if codes is None else codes[found]).astype(np.int32), best_scores[0, : len(found)]


def score_items(vector: np.ndarray, embeddings: np.ndarray, norms: np.ndarray | None) -> np.ndarray:
    """Score items for a vector, float32 [n]: by the cosine where their lengths are given, else by the inner product.

    An item's score does not depend on the others: einsum takes each row by itself, where BLAS takes several at once. Lengths are divided by
    one after the other: their product may be out of range where neither of them is.
    """
    scores = np.asarray(np.einsum("nd,d->n", embeddings, vector if norms is None else normalise_rows(vector)))
    return scores if norms is None else scores / np.maximum(norms, SMALLEST_LENGTH)


def _scan_lists(vector: np.ndarray, lists: IvfLists, n: int) -> np.ndarray:
    """Select the codes, ascending, of the lists of largest centroid inner product that together have items enough for n."""
    order = np.argsort(-(lists.centroids @ vector))
    sizes = np.diff(lists.offsets)[order]
    needed = int(np.searchsorted(np.cumsum(sizes), max(_MIN_SCANNED, 4 * n))) + 1
    return np.sort(np.concatenate([lists.codes[lists.offsets[row] : lists.offsets[row + 1]] for row in order[:needed]]))
