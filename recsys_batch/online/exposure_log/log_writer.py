"""The log of a kind of rows: encoded in batches, written to rotating Parquet files, every row counted.

writer_process.py runs these in the process beside a worker. Nothing here knows of pipes, snapshots or requests.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import pyarrow as pa

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK, exposure_schema, feedback_schema
from recsys_batch.online.exposure_log.log_rows import Exposure, FeedbackEvent, encode_exposures, encode_feedback
from recsys_batch.online.exposure_log.rotating_parquet import RotatingParquet, RotationPolicy
from recsys_batch.schemas import IdTypes

logger = logging.getLogger(__name__)

BATCH_ROWS = 500
"""The most rows of a message, and the rows that are made Arrow at once: 0.2 ms of a batch are the same for any number of rows."""
QUEUE_ROWS = 10_000
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0

Row = TypeVar("Row")


class LogKind(NamedTuple):
    """A kind of rows.

    Attributes:
        tag: the first byte of a message with such rows.
        encode: rows to a record batch of ``schema(ids)``; whatever it raises means that one of the rows is invalid.
    """

    tag: bytes
    row_type: type
    schema: Callable[[IdTypes], pa.Schema]
    encode: Callable[[Sequence[Any], IdTypes, pa.Schema], pa.RecordBatch]


LOG_KINDS = {
    EXPOSURES: LogKind(b"e", Exposure, exposure_schema, encode_exposures),
    FEEDBACK: LogKind(b"f", FeedbackEvent, feedback_schema, encode_feedback),
}
"""By the beginning of the files' names."""


@dataclass(frozen=True)
class LogStats:
    """Rows of one log: recorded == written + lost + invalid + pending + queued.

    Attributes:
        recorded: rows that were taken.
        written: in files that readers see. pending: encoded, in no such file yet. queued: waiting to be encoded.
        lost: taken, but the disk refused them. invalid: taken, but of the wrong types.
        files: written by this process. removed_files: old ones that retention removed. write_errors: times that the disk refused.
    """

    recorded: int
    written: int
    pending: int
    queued: int
    lost: int
    invalid: int
    files: int
    removed_files: int
    write_errors: int


class LogWriter(Generic[Row]):
    """Encodes rows of one kind and writes them to rotating Parquet files. A disk that refuses costs rows, which are counted, and is asked
    again after a pause; no method raises. For one thread.

    Args:
        encode: rows to a record batch of the files' schema; whatever it raises means that one of the rows is invalid.
        queue_rows: rows that may wait while the disk refuses before ``has_room`` is false.
    """

    def __init__(self, files: RotatingParquet, encode: Callable[[Sequence[Row]], pa.RecordBatch], queue_rows: int = QUEUE_ROWS) -> None:
        self._files, self._encode, self._queue_rows = files, encode, queue_rows
        self._queue: deque[Row] = deque()
        self._recorded = self._invalid = self._errors = 0
        self._pause = self._resume_at = 0.0

    @property
    def has_room(self) -> bool:
        """Whether rows can be recorded; a log whose disk refuses has none after a while."""
        return len(self._queue) < self._queue_rows

    def record(self, rows: Sequence[Row], n_invalid: int = 0) -> None:
        """Take rows, and write as soon as they are a batch. ``n_invalid`` more are only counted."""
        self._recorded += len(rows) + n_invalid
        self._invalid += n_invalid
        self._queue.extend(rows)
        if len(self._queue) >= BATCH_ROWS:
            self.write()

    def write(self) -> None:
        """Write all queued rows and close the file if it is old enough, unless the disk has refused a moment ago."""
        if time.monotonic() < self._resume_at:
            return
        if self._attempt(self._write_queue):
            self._pause = 0.0
        else:
            self._pause = min(2 * self._pause or _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
            self._resume_at = time.monotonic() + self._pause

    def close(self) -> None:
        """Write everything, without a pause, and close the file."""
        while self._queue:
            self._attempt(self._write_queue)
        self._attempt(self._files.rotate)

    def stats(self) -> LogStats:
        """Count rows and files up to now."""
        files = self._files
        return LogStats(
            recorded=self._recorded,
            written=files.written,
            pending=files.pending,
            queued=len(self._queue),
            lost=files.lost,
            invalid=self._invalid,
            files=files.files,
            removed_files=files.removed,
            write_errors=self._errors,
        )

    def _attempt(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # whatever it is, the process goes on
            self._errors += 1
            logger.warning("rows of a log could not be written, %d are lost so far: %s", self._files.lost, error)
            return False
        return True

    def _write_queue(self) -> None:
        while self._queue:
            rows = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_ROWS))]
            self._files.append(self._encode_valid(rows))
        self._files.tick()

    def _encode_valid(self, rows: Sequence[Row]) -> list[pa.RecordBatch]:
        """Encode the rows that can be; the others are found by halving, so that one of them does not cost its neighbours."""
        try:
            return [self._encode(rows)]
        except Exception:
            if len(rows) == 1:
                self._invalid += 1
                return []
        half = len(rows) // 2
        return self._encode_valid(rows[:half]) + self._encode_valid(rows[half:])


def open_log(kind: str, folder: Path, ids: IdTypes, worker: int, policy: RotationPolicy | None = None) -> LogWriter[Any]:
    """Open a log of ``LOG_KINDS`` in a folder, which several processes may share and which is made when the first rows come.

    Args:
        worker: process id for the names of the files. policy: bounds; None for the usual ones.
    """
    _, _, schema_of, encode = LOG_KINDS[kind]
    schema = schema_of(ids)
    return LogWriter(RotatingParquet(folder, kind, schema, worker, policy or RotationPolicy()), lambda rows: encode(rows, ids, schema))
