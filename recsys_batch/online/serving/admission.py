"""A bounded queue: how much of a worker's work waits or is under way, in requests, rows or bytes.

The server takes connections faster than requests are answered, and each waits in the event loop. A request is counted when it is here
with its body, not when its turn comes, so past the bound it is refused at once, at the price of a few microseconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Overloaded(Exception):
    """Too much waits already; the message says how much."""


class Admission:
    """Counts of one event loop; no lock, as only its thread counts. What is heavier than the bound is let in where nothing else waits."""

    __slots__ = ("bound", "waiting")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether ``enter`` would say no."""
        return self.waiting >= self.bound

    def enter(self, weight: int = 1) -> bool:
        """Whether there is room for that weight; then ``leave`` has to follow."""
        if self.waiting and self.waiting + weight > self.bound:
            return False
        self.waiting += weight
        return True

    def leave(self, weight: int = 1) -> None:
        self.waiting -= weight

    @contextmanager
    def hold(self, weight: int, unit: str) -> Iterator[None]:
        """Take room during the ``with`` block; ``unit`` is what the weight counts. Raises Overloaded: there is none."""
        if not self.enter(weight):
            raise Overloaded(f"{self.waiting} {unit} wait or are worked on, and {weight} more are too many at once: try again")
        try:
            yield
        finally:
            self.leave(weight)

    @property
    def is_idle(self) -> bool:
        """Whether nobody but the caller is being worked on."""
        return self.waiting <= 1
