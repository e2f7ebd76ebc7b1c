"""A circuit breaker: a remote that failed several times in a row is left alone for a while; then one call tries it."""

import time
from collections.abc import Callable
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """Decides whether a remote is called. Used by one event loop.

    Args:
        max_failures: failures in a row that open it. rest_seconds: that it stays open; after each trial that fails, as long again.
    """

    def __init__(self, max_failures: int, rest_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_failures, self._rest_seconds, self._clock = max_failures, rest_seconds, clock
        self._failures = 0
        self._opened_at: float | None = None
        self._is_trying = False

    @property
    def state(self) -> BreakerState:
        if self._opened_at is None:
            return "closed"
        return "open" if self._clock() < self._opened_at + self._rest_seconds else "half_open"

    def allow(self) -> bool:
        """Tell whether a call may go out; where it is half open, one at a time. After True, ``record`` or ``abandon`` has to follow."""
        state = self.state
        if state == "open" or (state == "half_open" and self._is_trying):
            return False
        self._is_trying = state == "half_open"
        return True

    def record(self, *, failed: bool) -> None:
        """Note what became of a call."""
        self._is_trying = False
        self._failures = self._failures + 1 if failed else 0
        if not failed:
            self._opened_at = None
        elif self._opened_at is not None or self._failures >= self._max_failures:
            self._opened_at = self._clock()

    def abandon(self) -> None:
        """Note that a call was given up before it said anything of the remote."""
        self._is_trying = False
