"""Explains a recommended item by the nearest item of the user's history, by cosine of the model's item vectors."""

import numpy as np

from recsys_batch.digest.slot_selection import ChosenSlots

REASON_LENGTH = 20
"""Newest items of a history that are looked at."""
_USERS_PER_BLOCK = 2_048  # at a time, so that their vectors are some tens of megabytes


def find_reasons(chosen: ChosenSlots, n_users: int, liked: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Find the item of the owner's history nearest to each slot: int64 [slots] codes.

    -1 where no cosine is above 0, and for popular slots.

    Args:
        liked: int64 [n_users, REASON_LENGTH] codes, newest first, padded with -1.
        vectors: float32 [n_items, d], the run's item vectors.
    """
    result = np.full(len(chosen), -1, dtype=np.int64)
    bounds = np.searchsorted(chosen.owner, np.arange(n_users + 1))
    width = int(np.diff(bounds).max(initial=0))
    for first in range(0, n_users, _USERS_PER_BLOCK):
        last = min(first + _USERS_PER_BLOCK, n_users)
        part = slice(bounds[first], bounds[last])
        if part.start == part.stop:
            continue
        rows = chosen.owner[part] - first
        column = np.arange(part.start, part.stop) - bounds[chosen.owner[part]]
        slots = np.zeros((last - first, width), dtype=np.int64)
        slots[rows, column] = chosen.codes[part]
        history = liked[first:last]
        near = np.matmul(_unit(vectors[slots]), _unit(vectors[np.maximum(history, 0)]).transpose(0, 2, 1))
        near[np.broadcast_to((history < 0)[:, None, :], near.shape)] = -np.inf
        best = near.argmax(axis=2)[rows, column]
        nearest = history[rows, best]
        nearest[near[rows, column, best] <= 0] = -1
        result[part] = np.where(chosen.popular[part], -1, nearest)
    return result


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
