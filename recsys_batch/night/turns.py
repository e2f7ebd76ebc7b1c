"""Who may work when: one night of a date at a time, and one change of what readers see at a time."""

from __future__ import annotations

import datetime as dt
from contextlib import AbstractContextManager

from recsys_batch.artifacts import artifact_root
from recsys_batch.config import Config
from recsys_batch.locks import held

_CHANGE_SECONDS = 60.0
"""A publish or a rollback is a commit or two; one that takes longer than this hangs."""


def one_night(config: Config, run_date: dt.date) -> AbstractContextManager[None]:
    """For everything that writes rows of a date's run.

    Raises:
        Busy: another process computes the date.
    """
    return held(artifact_root(config.paths.warehouse) / "locks" / f"{run_date}.lock", f"the night of {run_date}")


def what_readers_see(config: Config) -> AbstractContextManager[None]:
    """For whoever reads which run is current and acts on it: publish, rollback, maintain. Waits for another one for a minute.

    Raises:
        Busy: another process still had it then.
    """
    path = artifact_root(config.paths.warehouse) / "locks" / "current.lock"
    return held(path, "what readers see", "is being changed", _CHANGE_SECONDS)
