"""Who may work when: one night of a date at a time, and one change of what readers see at a time."""

from __future__ import annotations

import datetime as dt
from contextlib import AbstractContextManager
from pathlib import Path

from recsys_batch.config import Config
from recsys_batch.storage.file_lock import file_lock, lock_file

_CHANGE_SECONDS = 60.0
"""A publish or a rollback is a commit or two; one that takes longer than this hangs."""


def run_date_lock(config: Config, run_date: dt.date) -> AbstractContextManager[None]:
    """For everything that writes rows of a date's run.

    Raises:
        Busy: another process computes the date.
    """
    return file_lock(_lock(config, f"{run_date}.lock"), f"the night of {run_date}")


def publish_lock(config: Config) -> AbstractContextManager[None]:
    """For whoever reads which run is current and acts on it: publish, rollback, maintain. Waits for another one for a minute.

    Raises:
        Busy: another process still had it then.
    """
    return file_lock(_lock(config, "current.lock"), "what readers see", "is being changed", _CHANGE_SECONDS)


def _lock(config: Config, name: str) -> Path:
    return lock_file(config.paths.warehouse, config.paths.state, name)
