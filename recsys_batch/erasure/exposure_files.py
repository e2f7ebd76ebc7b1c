"""Log files of the online side without erased users: segments, those that a server still appends to once it closes them, and the Parquet
files of older releases."""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.dataset.log_rows import decode_rows
from recsys_batch.dataset.log_segments import SUFFIX, pack_segment, read_frames, unpack_rows
from recsys_batch.erasure.data_files import find_rows, replace_in_place
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.errors import UsageError
from recsys_batch.storage.atomic import replace_file
from recsys_batch.storage.file_lock import acquire_flock

_KINDS = (f"{EXPOSURES}-", f"{FEEDBACK}-")
WAIT_SECONDS = 90.0
_FLUSH_SECONDS = 1.0
"""A server appends rows within milliseconds; until then they are in its memory alone."""
_POLL_SECONDS = 0.5
_YOUNG_SECONDS = 60.0
"""A Parquet file this young may not be locked by its writer yet."""
_IDLE_SECONDS = 24 * 3600.0
"""No server logs to a folder any more whose newest file is this old."""


def list_log_files(folder: Path) -> list[str]:
    """List the files that readers see."""
    return sorted(path.name for path in folder.iterdir() if _is_log_file(path.name)) if folder.exists() else []


def find_in_log_files(folder: Path, users: ErasedUsers) -> dict[str, int]:
    """Count the rows of these users by file."""
    names = list_log_files(folder)
    segments = {name: _count_in_segment(folder / name, users) for name in names if name.endswith(SUFFIX)}
    return find_rows(str(folder), [name for name in names if name not in segments], users) | {name: n for name, n in segments.items() if n}


def erase_from_log_files(folder: Path, users: ErasedUsers, wait_seconds: float = WAIT_SECONDS, since: float | None = None) -> int:
    """Write the files again without these users; returns how many are still being written, with rows of theirs, after the wait.

    Each keeps its name, as ingest goes by rows. What is torn, and what writers of older releases left, is removed: nobody can read it.

    Args:
        since: of time.monotonic(); rows that servers had in memory then are waited for.
    """
    now = time.monotonic()
    until, flushed = now + wait_seconds, (now if since is None else since) + _FLUSH_SECONDS
    while (n_open := _count_open(folder, users)) or (_is_in_use(folder) and time.monotonic() < flushed):
        if time.monotonic() >= until:
            break
        time.sleep(_POLL_SECONDS)
    for name in list_log_files(folder):
        with contextlib.suppress(FileNotFoundError):  # no row is left, or a server removed the file, as one of its oldest
            times = (folder / name).stat()
            _erase_from_file(folder, name, users)
            os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))  # no server wrote it now
    return n_open


def list_drafts(folder: Path) -> Iterator[Path]:
    """List the Parquet files that a process of an older release is writing, and remove those whose writer has died."""
    for path in folder.glob(".*.parquet"):
        if not path.name[1:].startswith(_KINDS):
            continue
        try:
            with path.open("r+b") as file:
                is_old = time.time() - path.stat().st_mtime > _YOUNG_SECONDS
                if is_old and acquire_flock(file.fileno()):
                    path.unlink()
                else:
                    yield path
        except FileNotFoundError:  # it has its name now
            continue


def _count_open(folder: Path, users: ErasedUsers) -> int:
    """Count the files that are being written and hold rows of these users, or may hold some."""
    segments = (folder / name for name in list_log_files(folder) if name.endswith(SUFFIX))
    return len(list(list_drafts(folder))) + sum(_is_open(path) and _count_in_segment(path, users) > 0 for path in segments)


def _is_open(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not acquire_flock(file.fileno(), shared=True)
    except FileNotFoundError:
        return False


def _is_in_use(folder: Path) -> bool:
    """Say whether servers have logged to the folder of late, and may have rows in memory."""
    return any(_age_seconds(folder / name) < _IDLE_SECONDS for name in list_log_files(folder))


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _erase_from_file(folder: Path, name: str, users: ErasedUsers) -> None:
    if name.endswith(SUFFIX):
        _erase_from_segment(folder / name, users)
    elif find_rows(str(folder), [name], users):
        replace_in_place(str(folder), name, users)


def _count_in_segment(path: Path, users: ErasedUsers) -> int:
    try:
        arrays, _ = _read_segment(path, path.read_bytes())
    except FileNotFoundError:
        return 0
    return sum(_is_users(bytes(raw), path, users) for array in arrays for raw in unpack_rows(array))


def _erase_from_segment(path: Path, users: ErasedUsers) -> None:
    """Write a closed segment again without these users' rows and its torn end; remove it where no row is left."""
    with path.open("rb") as file:
        if not acquire_flock(file.fileno()):  # until this is done, so that no server begins a file of that name
            return
        arrays, n_torn = _read_segment(path, file.read())
        frames = [[bytes(raw) for raw in unpack_rows(array)] for array in arrays]
        kept = [[row for row in rows if not _is_users(row, path, users)] for rows in frames]
        if kept == frames and not n_torn:
            return
        replace_file(path, pack_segment(kept)) if any(kept) else path.unlink()


def _read_segment(path: Path, content: bytes) -> tuple[list[bytes], int]:
    try:
        return read_frames(content)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read: {error}. Look at what it is, and move it out of the log's folder") from None


def _is_users(row: bytes, path: Path, users: ErasedUsers) -> bool:
    rows, unreadable = decode_rows(b"\x91" + row, EXPOSURES if path.name.startswith(EXPOSURES) else FEEDBACK)
    return users.is_in_text(unreadable[0]) if unreadable else users.has_id(rows[0].user_id)


def _is_log_file(name: str) -> bool:
    return name.startswith(_KINDS) and name.endswith((SUFFIX, ".parquet"))
