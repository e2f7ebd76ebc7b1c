"""Locks between processes, which their holder's death releases."""

import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys_batch.errors import Busy
from recsys_batch.storage.artifacts import artifact_root, state_file
from recsys_batch.storage.filesystems import is_remote


def lock_file(warehouse: str, state: str, name: str) -> Path:
    """Name the file of a lock: beside the tables, or for a warehouse in a store under ``state``, by the warehouse's name.

    A store has no flock: there the lock holds between processes that have the same ``state``, so on the one host that starts nights.
    """
    root = artifact_root(warehouse)
    if not is_remote(root):
        return Path(root) / "locks" / name
    return state_file(warehouse, state, "locks", name)


@contextmanager
def file_lock(
    path: Path, what: str, doing: str = "is being computed", wait_seconds: float = 0.0, *, shared: bool = False
) -> Iterator[None]:
    """Hold the lock of that file for the ``with`` block, or fail; at once, unless ``wait_seconds`` are given.

    By flock, which the system releases when the process ends in whatever way; the file stays, and says who held it last. On a shared
    file system it holds between machines as far as that passes flock on, as NFS 4 and most cluster file systems do.

    Args:
        what, doing: "a night of 2026-11-24", "is being computed", for the message.
        shared: against those alone who do not share it.

    Raises:
        Busy: somebody else holds it; says who.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not acquire_flock(file.fileno(), wait_seconds, shared=shared):
            file.seek(0)
            raise Busy(f"{what} {doing} already{_by(file.read())}: wait for it, or end that process first")
        file.seek(0)
        file.truncate()
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": int(time.time())}, file)
        file.flush()
        yield


def acquire_flock(handle: int, wait_seconds: float = 0.0, *, shared: bool = False) -> bool:
    """Lock an open file until it is closed, against every other process; whether that was had in ``wait_seconds`` (also math.inf).

    Args:
        shared: with others who share it.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if wait_seconds == math.inf:
        fcntl.flock(handle, kind)
        return True
    until = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)


def _by(text: str) -> str:
    try:
        holder = json.loads(text)
        since = time.strftime("%H:%M:%S UTC", time.gmtime(holder["since"]))
        return f" by process {holder['pid']} on {holder['host']} since {since}"
    except (ValueError, KeyError, TypeError):
        return ""
