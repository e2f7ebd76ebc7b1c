"""Loops that go on for as long as their process: a round that fails is logged, counted and done again."""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType

from recsys_batch.errors import RecsysBatchError

logger = logging.getLogger("recsys_batch.online")

failed_rounds: Counter[str] = Counter()
"""Rounds that failed in this process, by loop; metrics.py takes them to the metrics page."""
_LOG_AGAIN_SECONDS = 300.0
"""The same failure is logged no more often, with the number of failures since."""
_EXPECTED = (OSError, RecsysBatchError)
"""Say all in their text; of others the log has the stack."""


class LoopMonitor:
    """Watches one loop of a process, which may be of an event loop or a thread.

    Args:
        name: of the loop: in log lines, and the label of its failures.

    Attributes:
        failure: the error of the newest round in one line; None where that succeeded, or none has ended.
        looked_at: time.monotonic() at the end of the newest round, failed or not; of making this before the first one.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failure: str | None = None
        self.looked_at = time.monotonic()
        self._n_failures, self._streak, self._is_streak_logged = 0, 0, False
        self._logged: dict[object, tuple[float, int]] = {}

    @property
    def seconds_since_look(self) -> float:
        return time.monotonic() - self.looked_at

    @contextlib.contextmanager
    def round(self) -> Iterator[None]:
        """Do a round of the loop: what it raises is logged and counted, and goes no further."""
        try:
            yield
        except Exception as error:
            self._count_failure(error)
        else:
            self._count_success()
        self.looked_at = time.monotonic()

    async def repeat(self, do: Callable[[], Awaitable[object]], pause_seconds: float) -> None:
        """Do a round after each pause, until the task is cancelled."""
        while True:
            await asyncio.sleep(pause_seconds)
            with self.round():
                await do()

    def _count_failure(self, error: Exception) -> None:
        failed_rounds[self.name] += 1
        self._n_failures, self._streak = self._n_failures + 1, self._streak + 1
        first_line = (str(error).splitlines() or [""])[0]
        self.failure = f"{type(error).__name__}: {first_line}".rstrip(": ")
        # By where it was raised, not by its text, which may have another number in it each time.
        key = (type(error), _raised_at(error.__traceback__))
        logged_at, n_before = self._logged.get(key, (-math.inf, 0))
        if time.monotonic() - logged_at < _LOG_AGAIN_SECONDS:
            return
        self._logged[key], self._is_streak_logged = (time.monotonic(), self._n_failures), True
        often = f"failed {self._n_failures - n_before} more times" if n_before else "failed, and is done again"
        logger.error("%s %s: %s", self.name, often, self.failure, exc_info=None if isinstance(error, _EXPECTED) else error)

    def _count_success(self) -> None:
        if self._is_streak_logged:
            logger.warning("%s works again, after %d failed rounds", self.name, self._streak)
        self.failure, self._streak, self._is_streak_logged = None, 0, False


def _raised_at(traceback: TracebackType | None) -> tuple[str, int]:
    """Tell (file, line) of the innermost frame."""
    if traceback is None:
        return "", 0
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
