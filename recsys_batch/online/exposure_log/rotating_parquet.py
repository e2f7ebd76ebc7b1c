"""Parquet files of a folder that are whole or not there: a reader never sees one that is still being written, and the folder never
outgrows its bounds.

A file is written under a hidden name, closed, synced and renamed. Old files go when there are too many or they are too large. Called by
writer_process.py; nothing here knows what the rows are.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_batch.errors import UsageError
from recsys_batch.storage.atomic import publish
from recsys_batch.storage.file_lock import acquire_flock

_YOUNG_SECONDS = 60
"""Another writer's draft this young is left alone: it may not be locked yet."""


@dataclass(frozen=True)
class RotationPolicy:
    """Bounds on a log file, and on all of a folder.

    Attributes:
        rotate_rows, rotate_seconds: a file is closed at so many rows, or so long after its first one.
        group_rows: rows of a row group.
        max_files, max_mb: of the whole files of this kind in the folder, those of other processes among them.

    Raises:
        UsageError: one of them is not above zero.
    """

    rotate_rows: int = 100_000
    rotate_seconds: float = 60.0
    group_rows: int = 500
    max_files: int = 2_000
    max_mb: float = 2_048.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"{name} of a log is {value}: expected more than 0")


class RotatingParquet:
    """Writes files ``KIND-STAMP-HOST-WORKER-N.parquet`` to a folder. For one thread; nothing touches the disk before the first row.

    Attributes:
        written, files: rows and files that readers can see. pending: rows in memory and in the draft.
        lost: rows of drafts that could not be written. removed: old files that retention took away.
    """

    def __init__(
        self, folder: Path, kind: str, schema: pa.Schema, worker: int, policy: RotationPolicy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._kind, self._schema, self._worker, self._policy, self._clock = folder, kind, schema, worker, policy, clock
        self._host = re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname()) or "host"
        self._number = 0
        self._draft: _Draft | None = None
        self._batches: list[pa.RecordBatch] = []
        self._n_rows = 0
        self._began_at = 0.0
        self.written = self.files = self.pending = self.lost = self.removed = 0

    def append(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Take rows; at ``group_rows`` they go to the draft, at ``rotate_rows`` the draft becomes a file.

        Raises:
            OSError, pa.ArrowException: the disk refused; the draft and its rows are gone and counted in ``lost``.
        """
        if not self.pending:
            self._began_at = self._clock()
        n_rows = sum(batch.num_rows for batch in batches)
        self.pending += n_rows
        self._n_rows += n_rows
        self._batches += batches
        if self.pending >= self._policy.rotate_rows:
            self.rotate()
        elif self._n_rows >= self._policy.group_rows:
            with self._lost_on_error():
                self._flush()

    def tick(self) -> None:
        """Close the file if it is old enough. Raises what ``append`` does."""
        if self.pending and self._clock() - self._began_at >= self._policy.rotate_seconds:
            self.rotate()

    def rotate(self) -> None:
        """Make the pending rows a file that readers see; without rows, nothing. Raises what ``append`` does."""
        if not self.pending:
            return
        with self._lost_on_error():
            self._flush().publish()
        self._draft = None
        self.written += self.pending
        self.files += 1
        self.pending = 0
        self._apply_retention()

    def _flush(self) -> _Draft:
        """Write all rows in memory to the draft, and return it."""
        if self._draft is None:
            self._number += 1
            stamp = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S.%fZ}"
            name = f"{self._kind}-{stamp}-{self._host}-{self._worker}-{self._number}.parquet"
            self._draft = _Draft(self._folder, name, self._schema)
        if self._batches:
            self._draft.write(pa.Table.from_batches(self._batches, self._schema).combine_chunks())
        self._batches, self._n_rows = [], 0
        return self._draft

    @contextlib.contextmanager
    def _lost_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self._draft is not None:
                self._draft.discard()
            self._draft, self._batches, self._n_rows = None, [], 0
            self.lost += self.pending
            self.pending = 0
            raise

    def _apply_retention(self) -> None:
        """Remove the oldest files beyond the bounds, and what writers that died left behind. A disk that refuses this is asked again."""
        with contextlib.suppress(OSError):
            self._remove_old()
            _remove_dead_drafts(self._folder, self._kind)

    def _remove_old(self) -> None:
        names = sorted(entry.name for entry in os.scandir(self._folder) if _is_whole(entry.name, self._kind))
        sizes = {name: _size(self._folder / name) for name in names}
        n_bytes, n_files = sum(sizes.values()), len(names)
        for name in names:
            if n_files <= self._policy.max_files and n_bytes <= self._policy.max_mb * 1e6:
                break
            with contextlib.suppress(FileNotFoundError):  # another process of this folder was faster, and counts it
                (self._folder / name).unlink()
                self.removed += 1
            n_files, n_bytes = n_files - 1, n_bytes - sizes[name]


class _Draft:
    """A Parquet file under its hidden name, locked as long as its writer lives."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._final = folder / f".{name}", folder / name
        with contextlib.ExitStack() as undo:
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            undo.callback(os.close, self._handle)
            undo.callback(self._path.unlink, missing_ok=True)
            if not acquire_flock(self._handle):
                raise BlockingIOError(f"{self._path} is locked by another process")
            # Not a Python file: it is written without the interpreter's lock.
            self._file = undo.enter_context(pa.OSFile(str(self._path), "wb"))
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd", compression_level=1)
            self._undo = undo.pop_all()

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, row_group_size=rows.num_rows)

    def publish(self) -> None:
        """Close, sync, rename, sync the folder: whoever sees the name sees the rows, also after a power cut."""
        self._writer.close()
        self._file.close()
        publish(self._path, self._final)
        self._undo.close()

    def discard(self) -> None:
        """Remove the draft. What fails here has failed before."""
        self._writer.is_open = False  # else its __del__ tries a footer
        with contextlib.suppress(OSError, pa.ArrowException):
            self._undo.close()


def _remove_dead_drafts(folder: Path, kind: str) -> None:
    for entry in os.scandir(folder):
        if entry.name.startswith(".") and _is_whole(entry.name[1:], kind) and time.time() - entry.stat().st_mtime > _YOUNG_SECONDS:
            with open(entry.path, "r+b") as draft:
                if acquire_flock(draft.fileno()):  # else its writer lives
                    os.unlink(entry.path)


def _is_whole(name: str, kind: str) -> bool:
    return name.startswith(f"{kind}-") and name.endswith(".parquet")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
