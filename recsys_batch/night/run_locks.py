"""Locks between processes: one run of a date at a time, and one change of what readers see at a time."""

import datetime as dt
import hashlib
from contextlib import AbstractContextManager
from pathlib import Path

from recsys_batch.config import Config
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.storage.file_lock import file_lock
from recsys_batch.storage.filesystems import absolute, is_remote

_CHANGE_SECONDS = 60.0
"""A publish or a rollback is a commit or two; one that takes longer than this hangs."""


def run_date_lock(config: Config, run_date: dt.date) -> AbstractContextManager[None]:
    """Hold the lock of a date, for everything that writes rows of its run.

    Raises:
        Busy: another process computes the date.
    """
    return file_lock(lock_file(config.paths.warehouse, config.paths.state, f"{run_date}.lock"), f"the night of {run_date}")


def publish_lock(config: Config) -> AbstractContextManager[None]:
    """Hold the lock of the warehouse under which publish, rollback and maintenance change what readers see; waits a minute for it.

    Raises:
        Busy: another process still holds it then.
    """
    path = lock_file(config.paths.warehouse, config.paths.state, "current.lock")
    return file_lock(path, "what readers see", "is being changed", _CHANGE_SECONDS)


def lock_file(warehouse: str, state: str, name: str) -> Path:
    """Name the file of a lock: beside the tables, or for a warehouse in a store under ``state``, by the warehouse's name.

    A store has no flock: there the lock holds between processes that have the same ``state``, so on the one host that starts nights.
    """
    root = artifact_root(warehouse)
    if not is_remote(root):
        return Path(root) / "locks" / name
    return Path(state).absolute() / "locks" / hashlib.sha256(absolute(warehouse).encode()).hexdigest()[:16] / name
