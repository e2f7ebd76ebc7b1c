"""Log files of the online side without erased users: whole ones, and those that a server is still writing, once they are whole."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from recsys_batch.erasure.data_files import find_rows, replace_in_place
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.storage.file_lock import acquire_flock

_KINDS = ("exposures-", "feedback-")
WAIT_SECONDS = 90.0
_ROTATION_SECONDS = 65.0
"""A server closes a file a minute after its first row; until then some rows are in its memory alone."""
_POLL_SECONDS = 0.5
_YOUNG_SECONDS = 60.0
"""A file this young may not be locked by its writer yet."""
_IDLE_SECONDS = 24 * 3600.0
"""No server logs to a folder any more whose newest file is this old."""


def list_log_files(folder: Path) -> list[str]:
    """List the whole files."""
    return sorted(path.name for path in folder.glob("*.parquet") if path.name.startswith(_KINDS))


def find_in_log_files(folder: Path, users: ErasedUsers) -> dict[str, int]:
    """Count the rows of these users by file."""
    return find_rows(str(folder), list_log_files(folder), users)


def erase_from_log_files(folder: Path, users: ErasedUsers, wait_seconds: float = WAIT_SECONDS, since: float | None = None) -> int:
    """Write the files again without these users; returns how many are still being written after the wait.

    Each keeps its name, as ingest goes by rows. What writers that died left is removed: nobody can read it.

    Args:
        since: of time.monotonic(); rows that servers had in memory then are waited for.
    """
    now = time.monotonic()
    until, closed = now + wait_seconds, (now if since is None else since) + _ROTATION_SECONDS
    while (drafts := list(list_drafts(folder))) or (_is_in_use(folder) and time.monotonic() < closed):
        if time.monotonic() >= until:
            break
        time.sleep(_POLL_SECONDS)
    for name in find_in_log_files(folder, users):
        times = (folder / name).stat()
        replace_in_place(str(folder), name, users)
        with contextlib.suppress(FileNotFoundError):  # no row is left
            os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))  # no server wrote it now
    return len(drafts)


def _is_in_use(folder: Path) -> bool:
    """Say whether servers have logged to the folder of late, and may have rows in memory."""
    return any(time.time() - (folder / name).stat().st_mtime < _IDLE_SECONDS for name in list_log_files(folder))


def list_drafts(folder: Path) -> Iterator[Path]:
    """List the files that a process is writing, and remove those whose writer has died."""
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
