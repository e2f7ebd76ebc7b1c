"""Recent latency of a stage."""

from __future__ import annotations

import math

import numpy as np

_WINDOW, _RECOMPUTE_EVERY = 512, 32


class LatencyTracker:
    """The p99 of the last few hundred durations, worked out anew every few; cheap enough for every request."""

    def __init__(self) -> None:
        self._seconds = np.zeros(_WINDOW)
        self._n = 0
        self._p99 = 0.0
        self._of_lists: LatencyTracker | None = None

    def of_lists(self) -> LatencyTracker:
        """The tracker of lists that requests bring: they may be many times as long, and would tell a plain request nothing."""
        self._of_lists = self._of_lists or LatencyTracker()
        return self._of_lists

    def add(self, seconds: float) -> None:
        self._seconds[self._n % _WINDOW] = seconds
        self._n += 1
        if self._n % _RECOMPUTE_EVERY == 0 or self._n == 1:
            n = min(self._n, _WINDOW)
            position = math.ceil(0.99 * (n - 1))
            self._p99 = float(np.partition(self._seconds[:n], position)[position])

    def p99(self) -> float:
        """Seconds; 0 before anything was measured."""
        return self._p99
