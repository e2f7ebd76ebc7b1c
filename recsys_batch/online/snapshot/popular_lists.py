"""Popular lists by segment: the last rung of the ladder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys_batch.schemas import ALL_SEGMENTS


@dataclass(frozen=True)
class PopularLists:
    """Codes int32 and scores float32 of each segment's list, best first; ``ALL_SEGMENTS`` is everybody's."""

    lists: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def for_segment(self, segment: str | None) -> tuple[np.ndarray, np.ndarray]:
        """The segment's list, everybody's where it has none; empty where a run published none at all."""
        codes_and_scores = self.lists.get(segment or ALL_SEGMENTS) or self.lists.get(ALL_SEGMENTS)
        return codes_and_scores if codes_and_scores is not None else (np.zeros(0, np.int32), np.zeros(0, np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        """To be saved."""
        named = enumerate(self.lists.values())
        return {f"{name}_{n}": array for n, pair in named for name, array in zip(("codes", "scores"), pair, strict=True)}

    @classmethod
    def from_arrays(cls, segments: list[str], arrays: Mapping[str, np.ndarray]) -> PopularLists:
        """The inverse of ``arrays``, for the same segments in the same order."""
        return cls({segment: (arrays[f"codes_{n}"], arrays[f"scores_{n}"]) for n, segment in enumerate(segments)})
