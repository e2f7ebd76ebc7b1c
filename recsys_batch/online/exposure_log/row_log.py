"""A log on a request's path: recording appends to a bounded queue, a thread of its own encodes and writes.

What the thread does under the interpreter's lock delays the event loop, so it works in small portions and rests between them;
compression and files need no lock. A disk that fails costs rows, which are counted, and never an answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import pyarrow as pa

from recsys_batch.errors import UsageError
from recsys_batch.online.exposure_log.rotating_parquet import RotatingParquet

_LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_PORTION_ROWS = 64
"""Rows that are made Arrow at once: less than 1 ms under the interpreter's lock with 10 items each, of which 0.2 ms are the same for any
number of rows, so that fewer would delay the loop more often and no less."""
_REST_SECONDS = 0.0005
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0

Row = TypeVar("Row")


@dataclass(frozen=True)
class LogStats:
    """Rows: recorded == written + lost + invalid + pending + queued, but for those that the thread has in hand.

    Attributes:
        recorded: rows that were taken. dropped: rows that were not, as the queue was full or the log closed.
        written: in files that readers see. pending: encoded, in no such file yet. queued: waiting.
        lost: taken, but the disk refused them. invalid: taken, but of the wrong types.
        files: written by this process. removed_files: old ones that retention removed. write_errors: times that the disk refused.
    """

    recorded: int
    dropped: int
    written: int
    pending: int
    queued: int
    lost: int
    invalid: int
    files: int
    removed_files: int
    write_errors: int


class RowLog(Generic[Row]):
    """Rows of one kind, recorded by one event loop. Made after a fork, not before: it has a thread.

    Args:
        encode: rows to a record batch of the writer's schema; whatever it raises means that a row is invalid.
        queue_rows: rows that may wait.

    Raises:
        UsageError: queue_rows is not above 0.
    """

    def __init__(self, writer: RotatingParquet, encode: Callable[[Sequence[Row]], pa.RecordBatch], queue_rows: int) -> None:
        if queue_rows < 1:
            raise UsageError(f"queue_rows of a log is {queue_rows}: expected 1 or more")
        pa.array([0])  # imports pandas where it is installed, 0.3 s: now, not beside the first requests
        self._writer, self._encode, self._bound = writer, encode, queue_rows
        self._queue: deque[Row] = deque()
        self._closed = False
        self._recorded = self._dropped = self._invalid = self._errors = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="row-log", daemon=True)
        self._thread.start()

    def record(self, row: Row) -> bool:
        """Take the row, or say False at once. Its lists must not be changed afterwards."""
        if self._closed or len(self._queue) >= self._bound:
            self._dropped += 1
            return False
        self._recorded += 1
        self._queue.append(row)
        return True

    def stats(self) -> LogStats:
        """Counts so far."""
        writer = self._writer
        return LogStats(
            recorded=self._recorded,
            dropped=self._dropped,
            written=writer.written,
            pending=writer.pending,
            queued=len(self._queue),
            lost=writer.lost,
            invalid=self._invalid,
            files=writer.files,
            removed_files=writer.removed,
            write_errors=self._errors,
        )

    def close(self, timeout: float = 10.0) -> bool:
        """Take no more, write what there is; whether that was done within ``timeout`` seconds."""
        self._closed = True
        self._stop.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause or _POLL_SECONDS):
            pause = 0.0 if self._tried(self._work) else min(2 * pause or _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        while self._queue:
            self._tried(self._work)
        self._tried(self._writer.rotate)

    def _tried(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # whatever it is, the thread goes on: without it nothing would be logged until a restart
            self._errors += 1
            _LOG.warning("rows of a log could not be written, %d are lost so far: %s", self._writer.lost, error)
            return False
        return True

    def _work(self) -> None:
        while self._queue:
            rows = [self._queue.popleft() for _ in range(min(len(self._queue), _PORTION_ROWS))]
            self._writer.append(self._encoded(rows))
            if not self._stop.is_set():
                time.sleep(_REST_SECONDS)
        self._writer.tick()

    def _encoded(self, rows: Sequence[Row]) -> list[pa.RecordBatch]:
        """Rows that cannot be encoded are found by halving, so that one of them does not cost the others."""
        try:
            return [self._encode(rows)]
        except Exception:
            if len(rows) == 1:
                self._invalid += 1
                return []
        half = len(rows) // 2
        return self._encoded(rows[:half]) + self._encoded(rows[half:])
