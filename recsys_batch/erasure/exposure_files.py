"""Log files of the online side without erased users: whole ones, and those that a server is still writing, once they are whole."""

import time
from collections.abc import Iterator
from pathlib import Path

from recsys_batch.erasure.data_files import find_rows, replace_in_place
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.storage.file_lock import acquire_flock

_KINDS = ("exposures-", "feedback-")
WAIT_SECONDS = 90.0
"""A server closes a file a minute after its first row."""
_POLL_SECONDS = 0.5
_YOUNG_SECONDS = 60.0
"""A file this young may not be locked by its writer yet."""


def list_log_files(folder: Path) -> list[str]:
    """List the whole files."""
    return sorted(path.name for path in folder.glob("*.parquet") if path.name.startswith(_KINDS))


def find_in_log_files(folder: Path, users: ErasedUsers) -> dict[str, int]:
    """Count the rows of these users by file."""
    return find_rows(str(folder), list_log_files(folder), users)


def erase_from_log_files(folder: Path, users: ErasedUsers, wait_seconds: float = WAIT_SECONDS) -> int:
    """Write the files again without these users; returns how many are still being written after the wait.

    Each keeps its name, as ingest goes by rows. What writers that died left is removed: nobody can read it.
    """
    until = time.monotonic() + wait_seconds
    while drafts := list(list_drafts(folder)):
        if time.monotonic() > until:
            break
        time.sleep(_POLL_SECONDS)
    for path in find_in_log_files(folder, users):
        replace_in_place(str(folder), path, users)
    return len(drafts)


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
