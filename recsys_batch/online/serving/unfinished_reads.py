"""Requests that are still being read, of one event loop: each within a time, and all within a bound in which the oldest gives way.

A request takes its place in a queue once it is here, so senders who never finish keep nobody out: past a bound it is the oldest unfinished
one that is refused, not the one that comes. One timer looks after all of them. Used by http/connection.py and oip/grpc_handlers.py.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol


class Cancellable(Protocol):
    """Something that can be cancelled: what a read waits for, or the task that waits."""

    def cancel(self) -> object:
        """Have the waiting end with CancelledError."""


@dataclass(slots=True, eq=False)
class UnfinishedRead:
    """A request that is being read.

    Attributes:
        awaited: what is cancelled where it is refused. refusal: why; empty while it is not. is_late: whether it took too long; else it gave
            way to others, and may have been here already.
    """

    arrived: float
    n_bytes: int
    awaited: Cancellable | None = None
    refusal: str = ""
    is_late: bool = False


class UnfinishedReads:
    """Bounds the reads of one event loop.

    Args:
        what: is read, for sentences. seconds: that one may take from its arrival. max_reads, max_bytes: of all together.
    """

    def __init__(self, what: str, seconds: float, max_reads: int, max_bytes: float) -> None:
        self._what, self._seconds, self._max_reads, self._max_bytes = what, seconds, max_reads, max_bytes
        self._reads: dict[UnfinishedRead, None] = {}
        self._n_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._reads)

    @property
    def n_bytes(self) -> int:
        """Bytes that the unfinished ones have announced, or that have come of them."""
        return self._n_bytes

    def add(self, read: UnfinishedRead) -> None:
        """Count a read that begins; ``remove`` has to follow."""
        self._reads[read] = None
        self._n_bytes += read.n_bytes
        self._make_room(read)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds / 4, self._refuse_late)

    def grow(self, read: UnfinishedRead, n_bytes: int) -> None:
        """Count further bytes of a read."""
        read.n_bytes += n_bytes
        self._n_bytes += n_bytes
        self._make_room(read)

    def remove(self, read: UnfinishedRead) -> None:
        """Count a read no more, however it ended."""
        if read in self._reads:
            del self._reads[read]
            self._n_bytes -= read.n_bytes

    def refuse_oldest(self, why: str) -> bool:
        """Refuse the read that began first; False where there is none."""
        if not self._reads:
            return False
        self._refuse(next(iter(self._reads)), why)
        return True

    def _make_room(self, newest: UnfinishedRead) -> None:
        while self._n_bytes > self._max_bytes or len(self._reads) > self._max_reads:
            oldest = next(iter(self._reads))
            if oldest is newest:
                break
            self._refuse(oldest, f"the {self._what} did not arrive, and too many others wait for theirs")

    def _refuse(self, read: UnfinishedRead, refusal: str) -> None:
        self.remove(read)
        read.refusal = refusal
        if read.awaited is not None:
            read.awaited.cancel()

    def _refuse_late(self) -> None:
        late = time.perf_counter() - self._seconds
        while self._reads and (oldest := next(iter(self._reads))).arrived <= late:
            oldest.is_late = True
            self._refuse(oldest, f"the {self._what} did not arrive within {self._seconds:g} s")
        self._timer = asyncio.get_running_loop().call_later(self._seconds / 4, self._refuse_late) if self._reads else None
