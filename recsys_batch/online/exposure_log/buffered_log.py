"""The logs of a worker: ``BufferedLog`` takes rows from its event loop without waiting, and a thread appends them to segment files.

A request pays for one row in MessagePack. The thread takes all rows of 20 ms at once: compressing and writing them is outside the
interpreter's lock. Nothing here raises into a request: what cannot be logged is counted, by its reason. The caller is
online/serving/exposure_recorder.py.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.dataset.log_rows import Exposure, FeedbackEvent, encode_row
from recsys_batch.online.exposure_log.segment_writer import RotationPolicy, SegmentWriter

logger = logging.getLogger(__name__)

QUEUE_ROWS = 10_000
_FRAME_ROWS, _FRAME_BYTES = 500, 1_000_000
_FLUSH_SECONDS = 0.02
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0


@dataclass(frozen=True)
class LogStats:
    """Rows of one log: recorded == written + waiting + full + invalid + lost.

    Attributes:
        recorded: rows that came to the log. written: in files. waiting: taken, and not written yet.
        full: refused, as too many waited. invalid: refused, as they cannot be encoded. lost: taken, but the disk refused them to the end.
        removed_files: old ones that retention removed. write_errors: times that the disk refused.
    """

    recorded: int
    written: int
    waiting: int
    full: int
    invalid: int
    lost: int
    removed_files: int
    write_errors: int


class BufferedLog:
    """Exposures and feedback of a worker, for one event loop. It never waits and never raises.

    Args:
        folder: of the files, which several processes may share. max_mb: bound on the files of each kind in it.
        queue_rows: rows of each kind that may wait for the disk.
    """

    def __init__(self, folder: Path, max_mb: float, queue_rows: int = QUEUE_ROWS) -> None:
        policy = RotationPolicy(max_mb=max_mb)
        self._logs = {kind: RowLog(SegmentWriter(folder, kind, os.getpid(), policy), queue_rows) for kind in (EXPOSURES, FEEDBACK)}
        self._exposures, self._feedback = self._logs[EXPOSURES], self._logs[FEEDBACK]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def log_exposure(self, row: Exposure) -> None:
        """Log an answer; it is dropped and counted where the log is full, or the row cannot be encoded."""
        self._exposures.record(row)

    def count_unloggable(self, error: Exception) -> None:
        """Count an answer of which no row can be made."""
        self._exposures.count_invalid(error)

    def log_feedback(self, events: Sequence[FeedbackEvent]) -> int | None:
        """Log events of users, none of them where not all have room; returns how many were taken, or None where there was no room."""
        if not self._feedback.has_room(len(events)):
            self._feedback.count_full(len(events))
            return None
        return sum(map(self._feedback.take, events))

    def stats(self) -> dict[str, LogStats]:
        """Count the rows of each kind up to now."""
        return {kind: log.stats() for kind, log in self._logs.items()}

    def close(self, seconds: float = 10.0) -> bool:
        """Have everything written, and return whether that was done within ``seconds``."""
        self._ending.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._ending.wait(_FLUSH_SECONDS):
            for log in self._logs.values():
                log.flush()
        for log in self._logs.values():
            log.close()


class RowLog:
    """A queue of one kind of rows and the files that they go to. ``flush`` and ``close`` are for one thread, the rest for one other."""

    def __init__(self, files: SegmentWriter, queue_rows: int = QUEUE_ROWS) -> None:
        self._files, self._queue_rows = files, queue_rows
        self._queue: deque[bytes] = deque()
        self._taken = self._full = self._invalid = self._lost = self._errors = 0
        self._pause = self._resume_at = 0.0

    def has_room(self, n_rows: int) -> bool:
        """Say whether so many rows can be taken; an empty log takes any number."""
        return not self._queue or len(self._queue) + n_rows <= self._queue_rows

    def count_full(self, n_rows: int) -> None:
        """Count rows that found no room."""
        self._full += n_rows

    def count_invalid(self, error: Exception) -> None:
        """Count a row that cannot be encoded."""
        if not self._invalid:
            logger.warning("a row cannot be logged, others like it are only counted: %s: %s", type(error).__name__, error)
        self._invalid += 1

    def record(self, row: Exposure | FeedbackEvent) -> bool:
        """Take a row if there is room for one; whether it was taken."""
        if len(self._queue) >= self._queue_rows:
            self._full += 1
            return False
        return self.take(row)

    def take(self, row: Exposure | FeedbackEvent) -> bool:
        """Encode and queue a row; whether it was taken. A row that cannot be encoded is counted, whatever the reason."""
        try:
            self._queue.append(encode_row(row))
        except Exception as error:  # the answer was made: nothing in it may fail for the log's sake
            self.count_invalid(error)
            return False
        self._taken += 1
        return True

    def flush(self) -> None:
        """Write queued rows, and close the file if it is old enough. A disk that refuses keeps them waiting, and is asked again later."""
        if time.monotonic() < self._resume_at:
            return
        if self._write_queue():
            self._files.tick()
            self._pause = 0.0
        else:
            self._pause = min(2 * self._pause or _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
            self._resume_at = time.monotonic() + self._pause

    def close(self) -> None:
        """Write everything, without a pause, and close the file; what the disk refuses now is lost."""
        self._write_queue()
        n_lost = len(self._queue)
        self._queue.clear()
        self._lost += n_lost
        if n_lost:
            logger.warning("%d rows of a log are lost: the disk refused them", n_lost)
        self._files.rotate()

    def stats(self) -> LogStats:
        """Count rows and files up to now."""
        full, invalid, lost, written, taken = self._full, self._invalid, self._lost, self._files.written, self._taken
        return LogStats(
            recorded=taken + full + invalid,
            written=written,
            waiting=taken - written - lost,
            full=full,
            invalid=invalid,
            lost=lost,
            removed_files=self._files.removed,
            write_errors=self._errors,
        )

    def _write_queue(self) -> bool:
        while self._queue:
            rows = self._take_frame()
            try:
                self._files.append(rows)
            except Exception as error:  # whatever it is, the thread goes on, and the rows wait
                self._queue.extendleft(reversed(rows))
                self._files.abandon()
                self._errors += 1
                if not self._pause:
                    logger.warning("the log cannot be written, %d rows wait: %s", len(self._queue), error)
                return False
        return True

    def _take_frame(self) -> list[bytes]:
        rows, n_bytes = list[bytes](), 0
        while self._queue and len(rows) < _FRAME_ROWS and n_bytes < _FRAME_BYTES:
            rows.append(self._queue.popleft())
            n_bytes += len(rows[-1])
        return rows
