"""Selection of lists by scores: what a request rules out, and the k best of the rest, for requests of equally many candidates."""

from collections.abc import Sequence

import numpy as np

from recsys_batch.online.snapshot.item_table import ItemTable
from recsys_batch.ranking.business_rules import ItemRules, select_with_rules
from recsys_batch.ranking.top_k import order_pairs

_MAX_COMPARED = 32


def candidate_mask(
    items: ItemTable, codes: np.ndarray, excluded_codes: Sequence[Sequence[int]], categories: Sequence[Sequence[str]]
) -> np.ndarray | None:
    """Mark the candidates that a request lets stay, bool [B, C]; None where all of them may.

    Args:
        codes: int [B, C]. excluded_codes: per row, codes that must not come back. categories: per row, names of which an item needs one;
            none for any item.
    """
    keep = not_excluded(codes, excluded_codes) if any(excluded_codes) else None
    if any(categories):
        keep = np.ones(codes.shape, bool) if keep is None else keep
        for row, names in enumerate(categories):
            if names:
                keep[row] &= items.in_categories(codes[row], names)
    return keep


def not_excluded(codes: np.ndarray, excluded_codes: Sequence[Sequence[int]]) -> np.ndarray:
    """Mark codes that are not in their row's ``excluded_codes``, bool [B, C] (none is negative); few are compared one by one, for less than
    np.isin takes.
    """
    longest = max(map(len, excluded_codes))
    if longest > _MAX_COMPARED:
        return np.stack([np.isin(row, np.array(out, np.int64), invert=True) for row, out in zip(codes, excluded_codes, strict=True)])
    padded = np.array([[*row, *[-1] * (longest - len(row))] for row in excluded_codes], dtype=codes.dtype)
    return np.asarray(~(codes[:, None, :] == padded[:, :, None]).any(axis=1))


def select_top_k(scores: np.ndarray, codes: np.ndarray, k: int, rules: ItemRules) -> tuple[np.ndarray, np.ndarray]:
    """Select the k best that the rules allow: (places int64 [B, k'], scores float32 [B, k']), k' = min(k, C); ties go to the smaller code.

    -inf is out, and comes last: of such a place nothing else counts. Every rule takes from the top, so a shorter list is the beginning
    of a longer one.

    Args:
        scores: float32 [B, C], no NaN. codes: int [B, C].
    """
    if rules.active:
        picked = select_with_rules(scores, codes, k, rules)
        return picked.columns, picked.values
    columns = (-scores).argsort(axis=1)[:, : k + 1]
    values = scores.take(columns + row_offsets(scores))
    if (values[:, 1:] == values[:, :-1]).any():
        # Equals come in any order, up to the one behind the last: sorted with their codes, and the places of those found again.
        values, chosen = order_pairs(scores, codes, k)
        columns = (codes[:, None, :] == chosen[:, :, None]).argmax(axis=2)
    return columns[:, :k], values[:, :k]


def select_allowed(
    items: ItemTable, codes: np.ndarray, scores: np.ndarray, excluded_codes: Sequence[int], categories: Sequence[str], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Select the k best of one list that a request and the rules allow: (places int64 [k'], scores float32 [k']), best first, k' <= k.

    Args:
        codes: int64 [C]. scores: float32 [C], no NaN. excluded_codes, categories: as of a row in ``candidate_mask``.
    """
    keep = candidate_mask(items, codes[None], [excluded_codes], [categories])
    ruled = scores[None] if keep is None else np.where(keep, scores, np.float32(-np.inf))
    ((places,), (values,)) = select_top_k(ruled, codes[None], k, items.catalogue.item_rules)
    is_allowed = np.isfinite(values)
    return places[is_allowed], values[is_allowed]


def row_offsets(array: np.ndarray) -> np.ndarray:
    """Compute int64 [B, 1] that makes places in the rows of [B, C] places in all of it: for ``take``, at a fifth of take_along_axis."""
    rows, columns = array.shape
    return np.arange(0, rows * columns, columns)[:, None] if columns else np.zeros((rows, 1), np.int64)
