"""Locks between processes: one run of a date at a time, and one change of what readers see at a time."""

import datetime as dt
from contextlib import AbstractContextManager

from recsys_batch.config import Config
from recsys_batch.storage.file_lock import file_lock, lock_file

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
