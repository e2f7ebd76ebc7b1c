"""Selects a range's slots: the first items of each list that may be sent, and popular ones where these are too few."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys_batch.schemas import ALL_SEGMENTS

PopularItems = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""segment -> (codes, scores) of its popular list."""
NO_ITEMS = (np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True)
class ChosenSlots:
    """Slots of users 0 to n - 1, those of a user together and in order.

    Attributes:
        owner: int64 [slots], the user; codes: int64 [slots]; scores: float32 [slots].
        popular: bool [slots], from a popular list, not from the model.
    """

    owner: np.ndarray
    codes: np.ndarray
    scores: np.ndarray
    popular: np.ndarray

    def __len__(self) -> int:
        return len(self.owner)


def choose_slots(lists: ChosenSlots, n_users: int, slots: int, sendable: np.ndarray, sent: np.ndarray) -> ChosenSlots:
    """Choose the first ``slots`` items of each list that may be sent.

    Args:
        lists: whole lists.
        sendable: bool [n_items].
        sent: int64, owner * n_items + code of what the users were sent lately.
    """
    keep = sendable[lists.codes] & ~np.isin(lists.owner * len(sendable) + lists.codes, sent)
    n_kept = np.cumsum(keep)
    before = np.concatenate([[0], n_kept])[np.searchsorted(lists.owner, np.arange(n_users))]
    keep &= n_kept - before[lists.owner] <= slots
    return ChosenSlots(lists.owner[keep], lists.codes[keep], lists.scores[keep], lists.popular[keep])


def fill_slots(
    chosen: ChosenSlots, segments: Sequence[str | None], slots: int, popular: PopularItems, sendable: np.ndarray, barred: np.ndarray
) -> ChosenSlots:
    """Fill users with fewer than ``slots`` up with popular items of their segment, then of all users, behind what they have.

    Args:
        segments: of each user, None without one.
        barred: int64, owner * n_items + code of what users have seen, or were sent lately.
    """
    n_items = len(sendable)
    counts = np.bincount(chosen.owner, minlength=len(segments))
    added: list[tuple[int, int, float]] = []
    barred = np.sort(np.concatenate([barred, chosen.owner * n_items + chosen.codes]))
    for user in np.flatnonzero(counts < slots).tolist():
        missing, taken = slots - int(counts[user]), set[int]()
        for segment in dict.fromkeys((segments[user] or ALL_SEGMENTS, ALL_SEGMENTS)):
            codes, scores = popular.get(segment, NO_ITEMS)
            keys = user * n_items + codes
            positions = np.minimum(np.searchsorted(barred, keys), max(len(barred) - 1, 0))
            free = sendable[codes] & ~(barred[positions] == keys if len(barred) else np.zeros(len(keys), bool))
            for code, score in zip(codes[free].tolist(), scores[free].tolist(), strict=True):
                if missing and code not in taken:
                    added.append((user, code, score))
                    taken.add(code)
                    missing -= 1
    if not added:
        return chosen
    owner, codes, scores = (np.array(column) for column in zip(*added, strict=True))
    order = np.argsort(np.concatenate([chosen.owner, owner]), kind="stable")
    columns = (
        np.concatenate([chosen.owner, owner]).astype(np.int64),
        np.concatenate([chosen.codes, codes]).astype(np.int64),
        np.concatenate([chosen.scores, scores]).astype(np.float32),
        np.concatenate([chosen.popular, np.ones(len(owner), bool)]),
    )
    return ChosenSlots(*(column[order] for column in columns))
