"""Locks between processes: one run of a date at a time, one change of what readers see, and nobody who writes users' rows beside an
erasure.
"""

import datetime as dt
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from recsys_batch.config import Config
from recsys_batch.storage.file_lock import file_lock, lock_file

_CHANGE_SECONDS = 60.0
"""A publish or a rollback is a commit or two; one that takes longer than this hangs."""


@contextmanager
def run_date_lock(config: Config, run_date: dt.date) -> Iterator[None]:
    """Hold the lock of a date, for everything that writes rows of its run.

    Raises:
        Busy: another process computes the date, or users are being erased.
    """
    path = lock_file(config.paths.warehouse, config.paths.state, f"{run_date}.lock")
    with file_lock(path, f"the night of {run_date}"), user_rows_lock(config):
        yield


def user_rows_lock(config: Config) -> AbstractContextManager[None]:
    """Hold, with others who do, the lock of everything that writes or copies rows of users: no erasure goes on meanwhile.

    Raises:
        Busy: users are being erased.
    """
    return file_lock(_user_rows(config), "a user of this warehouse", "is being erased", shared=True)


def erasure_lock(config: Config) -> AbstractContextManager[None]:
    """Hold the lock under which users are erased.

    Raises:
        Busy: a night, an ingest, a stream or whatever else writes rows of users is at work, or another erasure.
    """
    return file_lock(_user_rows(config), "users' rows", "are being written by a night, an ingest, a stream, an export or an erasure")


def _user_rows(config: Config) -> Path:
    return lock_file(config.paths.warehouse, config.paths.state, "users.lock")


def publish_lock(config: Config) -> AbstractContextManager[None]:
    """Hold the lock of the warehouse under which publish, rollback and maintenance change what readers see; waits a minute for it.

    Raises:
        Busy: another process still holds it then.
    """
    path = lock_file(config.paths.warehouse, config.paths.state, "current.lock")
    return file_lock(path, "what readers see", "is being changed", _CHANGE_SECONDS)
