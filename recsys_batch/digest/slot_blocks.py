"""Slots with the words that go with them: titles, and reasons by the user's history, ready for the output file and the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_batch.digest.output import OutputBlock
from recsys_batch.digest.slot_choosers import DigestRun
from recsys_batch.digest.slot_selection import ChosenSlots
from recsys_batch.ranking.vector_lengths import normalise_rows
from recsys_batch.schemas import ALL_SEGMENTS

REASON_LENGTH = 20
"""Newest items of a history that are looked at for a reason."""
_USERS_PER_BLOCK = 8_192
_USERS_PER_SEARCH = 2_048  # at a time, so that their vectors are some tens of megabytes


@dataclass(frozen=True)
class SlotBlock:
    """Slots of some users, with titles and reasons.

    Attributes:
        because: int64 [slots], code of the item of the history that explains the slot, -1 for none.
        wanted: slots asked for.
    """

    users: pa.Array
    segments: list[str | None]
    chosen: ChosenSlots
    because: np.ndarray
    run: DigestRun
    wanted: int

    def split(self) -> Iterator[SlotBlock]:
        """Split into blocks of some thousand users: words take many times the memory of numbers."""
        for first in range(0, len(self.users), _USERS_PER_BLOCK):
            last = min(first + _USERS_PER_BLOCK, len(self.users))
            slots = slice(*np.searchsorted(self.chosen.owner, [first, last]))
            chosen = self.chosen
            part_chosen = ChosenSlots(chosen.owner[slots] - first, chosen.codes[slots], chosen.scores[slots], chosen.popular[slots])
            yield SlotBlock(self.users[first:last], self.segments[first:last], part_chosen, self.because[slots], self.run, self.wanted)

    def user_ids(self) -> pa.Array:
        """Look up the user_id of every slot."""
        return self.users.take(pa.array(self.chosen.owner))

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """Columns of the slots, as ``output_schema`` names them."""
        chosen, run = self.chosen, self.run
        first = np.searchsorted(chosen.owner, chosen.owner)
        because = run.catalogue.item_ids.take(pa.array(self.because, mask=self.because < 0))
        return {
            "slot": (np.arange(len(chosen)) - first + 1).tolist(),
            "item_id": run.catalogue.ids(chosen.codes).to_pylist(),
            "title": run.titles.take(pa.array(chosen.codes)).to_pylist(),
            "score": np.round(chosen.scores.astype(np.float64), 6).tolist(),
            "source": ["popular" if is_popular else "model" for is_popular in chosen.popular.tolist()],
            "reason": self._reasons(),
            "because_item_id": because.to_pylist(),
        }

    def to_output(self) -> OutputBlock:
        """Convert to what the file takes, of the users who have a slot."""
        counts = np.bincount(self.chosen.owner, minlength=len(self.users))
        users = self.users.filter(pa.array(counts > 0)).to_pylist()
        return OutputBlock(users, [0, *np.cumsum(counts[counts > 0]).tolist()], self.columns)

    def _reasons(self) -> list[str]:
        titles = self.run.titles.take(pa.array(np.maximum(self.because, 0))).to_pylist() if len(self.because) else []
        ids = self.run.catalogue.ids(np.maximum(self.because, 0)).to_pylist() if len(self.because) else []
        in_segment = {name: set(codes.tolist()) for name, (codes, _) in self.run.popular.items() if name != ALL_SEGMENTS}
        reasons, columns = [], (self.chosen.owner.tolist(), self.chosen.codes.tolist(), self.chosen.popular.tolist())
        for slot, (owner, code, popular) in enumerate(zip(*columns, strict=True)):
            segment = self.segments[owner]
            if popular:
                reasons.append(f"popular in {segment}" if segment and code in in_segment.get(segment, ()) else "popular now")
            elif self.because[slot] == code:
                reasons.append("you liked it before")
            elif self.because[slot] >= 0:
                reasons.append(f"because you liked {titles[slot] or ids[slot]}")
            else:
                reasons.append("picked for you")
        return reasons


def find_reasons(chosen: ChosenSlots, n_users: int, liked: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Find the item of the owner's history nearest to each slot, by cosine of the model's item vectors: int64 [slots] codes.

    -1 where no cosine is above 0, and for popular slots.

    Args:
        liked: int64 [n_users, REASON_LENGTH] codes, newest first, padded with -1.
        vectors: float32 [n_items, d], the run's item vectors.
    """
    result = np.full(len(chosen), -1, dtype=np.int64)
    bounds = np.searchsorted(chosen.owner, np.arange(n_users + 1))
    width = int(np.diff(bounds).max(initial=0))
    for first in range(0, n_users, _USERS_PER_SEARCH):
        last = min(first + _USERS_PER_SEARCH, n_users)
        part = slice(bounds[first], bounds[last])
        if part.start == part.stop:
            continue
        rows = chosen.owner[part] - first
        column = np.arange(part.start, part.stop) - bounds[chosen.owner[part]]
        slots = np.zeros((last - first, width), dtype=np.int64)
        slots[rows, column] = chosen.codes[part]
        history = liked[first:last]
        near = np.matmul(normalise_rows(vectors[slots]), normalise_rows(vectors[np.maximum(history, 0)]).transpose(0, 2, 1))
        near[np.broadcast_to((history < 0)[:, None, :], near.shape)] = -np.inf
        best = near.argmax(axis=2)[rows, column]
        nearest = history[rows, best]
        nearest[near[rows, column, best] <= 0] = -1
        result[part] = np.where(chosen.popular[part], -1, nearest)
    return result
