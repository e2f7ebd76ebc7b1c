"""A bounded queue: how many requests of a worker wait or are worked on.

The server takes connections faster than requests are answered, and each waits in the event loop. A request is counted when it is here
with its body, not when its turn comes, so past the bound it is refused at once, at the price of a few microseconds.
"""


class Admission:
    """Counts of one worker's event loop; no lock, as only its thread counts."""

    __slots__ = ("bound", "waiting")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether ``enter`` would say no."""
        return self.waiting >= self.bound

    def enter(self) -> bool:
        """Whether there is room; then ``leave`` has to follow."""
        if self.waiting >= self.bound:
            return False
        self.waiting += 1
        return True

    def leave(self) -> None:
        self.waiting -= 1

    @property
    def is_idle(self) -> bool:
        """Whether nobody but the caller is being worked on."""
        return self.waiting <= 1
