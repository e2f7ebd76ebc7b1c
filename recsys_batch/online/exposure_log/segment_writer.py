"""Segment files of one kind of rows: appended frame by frame, rotated by rows, bytes and time, bounded in number and size.

Called by buffered_log.py; nothing here knows what the rows are. A row that was appended is the kernel's: it outlives the process, and
readers see it at once. See docs/decisions/0220-exposure-log.md.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys_batch.dataset.log_segments import MAGIC, SUFFIX, pack_frame
from recsys_batch.errors import UsageError
from recsys_batch.storage.file_lock import acquire_flock

logger = logging.getLogger(__name__)

_PARTS_OF_BOUND = 8
"""A file is at most this part of all that a folder may hold, so that the oldest that goes is no more."""


@dataclass(frozen=True)
class RotationPolicy:
    """Bounds on a log file, and on all of a folder.

    Attributes:
        rotate_rows, rotate_seconds: a file is closed at so many rows, or so long after its first one.
        max_files, max_mb: of the files of this kind in the folder, those of other processes among them.

    Raises:
        UsageError: one of them is not above zero.
    """

    rotate_rows: int = 100_000
    rotate_seconds: float = 60.0
    max_files: int = 2_000
    max_mb: float = 2_048.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"{name} of a log is {value}: expected more than 0")


class SegmentWriter:
    """Writes files ``KIND-STAMP-HOST-WORKER-N.segment`` to a folder, which is made when the first rows come. For one thread.

    Attributes:
        written: rows that were appended. files: opened by this writer. removed: old files that retention took away.
    """

    def __init__(
        self, folder: Path, kind: str, worker: int, policy: RotationPolicy | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._kind, self._worker, self._policy, self._clock = folder, kind, worker, policy or RotationPolicy(), clock
        self._host = re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname()) or "host"
        self._numbers = itertools.count(1)
        self._segment: _Segment | None = None
        self._n_rows, self._began_at = 0, 0.0
        self.written = self.files = self.removed = 0

    def append(self, rows: Sequence[bytes]) -> None:
        """Append rows as one frame: all of them, or none.

        Raises:
            OSError: the disk refused. What is open is closed, and the next call begins a file of its own.
        """
        frame = pack_frame(rows)
        if not self._open_segment().append(frame):  # somebody removed the file, or the folder
            self._close_segment()
            if not self._open_segment().append(frame):
                raise FileNotFoundError(f"files in {self._folder} are removed as soon as they are made")
        self.written += len(rows)
        self._n_rows += len(rows)
        if self._n_rows >= self._policy.rotate_rows or self._open_segment().n_bytes >= self._policy.max_mb * 1e6 / _PARTS_OF_BOUND:
            self.rotate()

    def tick(self) -> None:
        """Close the file if it is old enough."""
        if self._segment is not None and self._clock() - self._began_at >= self._policy.rotate_seconds:
            self.rotate()

    def rotate(self) -> None:
        """Close the file, so that the next rows begin another, and remove the oldest files beyond the bounds."""
        if self._segment is not None:
            self._close_segment()
            with contextlib.suppress(OSError):  # a disk that refuses this is asked again at the next file
                self._remove_old()

    def abandon(self) -> None:
        """Close the file after an error."""
        if self._segment is not None:
            self._close_segment()

    def _open_segment(self) -> _Segment:
        if self._segment is None:
            stamp = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S.%fZ}"
            name = f"{self._kind}-{stamp}-{self._host}-{self._worker}-{next(self._numbers)}{SUFFIX}"
            self._segment = _Segment(self._folder / name)
            self._n_rows, self._began_at = 0, self._clock()
            self.files += 1
        return self._segment

    def _close_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None and not segment.close():
            self.files -= 1

    def _remove_old(self) -> None:
        names = sorted(entry.name for entry in os.scandir(self._folder) if _is_log_file(entry.name, self._kind))
        sizes = {name: _size(self._folder / name) for name in names}
        n_bytes, n_files = sum(sizes.values()), len(names)
        for name in names:
            if n_files <= self._policy.max_files and n_bytes <= self._policy.max_mb * 1e6:
                break
            with contextlib.suppress(FileNotFoundError):  # another process of this folder was faster, and counts it
                (self._folder / name).unlink()
                self.removed += 1
            n_files, n_bytes = n_files - 1, n_bytes - sizes[name]


class _Segment:
    """A file that is being appended to, locked as long as its writer lives."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self.n_bytes = path, 0
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if not acquire_flock(self._handle):
            self.close()
            raise BlockingIOError(f"{path} is locked by another process")

    def append(self, frame: bytes) -> bool:
        """Append a frame, whole or not at all; whether the file still has its name afterwards. Raises OSError."""
        content = memoryview(frame if self.n_bytes else MAGIC + frame)
        at = 0
        try:
            while at < len(content):
                at += os.write(self._handle, content[at:])
        except OSError:
            with contextlib.suppress(OSError):  # readers skip what cannot be taken back
                os.ftruncate(self._handle, self.n_bytes)
            raise
        self.n_bytes += at
        return os.fstat(self._handle).st_nlink > 0

    def close(self) -> bool:
        """Sync and close the file, or remove it where it has no frame; returns whether it stays."""
        try:
            if self.n_bytes:
                os.fsync(self._handle)
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s could not be synced: %s", self._path, error)
        os.close(self._handle)
        return self.n_bytes > 0


def _is_log_file(name: str, kind: str) -> bool:
    return name.startswith(f"{kind}-") and name.endswith((SUFFIX, ".parquet"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
