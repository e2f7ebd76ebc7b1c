"""Limits on the age of a snapshot, and on that of what is known of live lists."""

import datetime as dt
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recsys_batch.online.settings import LIVE_MARK

Freshness = Literal["fresh", "stale", "too_old"]


@dataclass(frozen=True)
class FreshnessPolicy:
    """Limits in hours since the night began: past ``stale`` answers say so, past ``hard`` the server is not ready any more."""

    stale: float
    hard: float | None

    def status(self, generated_at: dt.datetime, now: dt.datetime | None = None) -> Freshness:
        hours = ((now or dt.datetime.now(dt.UTC)) - generated_at).total_seconds() / 3600
        if self.hard is not None and hours > self.hard:
            return "too_old"
        return "stale" if hours > self.stale else "fresh"


@dataclass(frozen=True)
class LiveLag:
    """Limit on the time since a server's follower last had all live lists, as the mark in the server's folder says.

    Attributes:
        limit: seconds.
    """

    state: Path
    limit: float

    def seconds(self) -> float:
        """Measure the time since then."""
        try:
            return max(time.time() - (self.state / LIVE_MARK).stat().st_mtime, 0.0)
        except FileNotFoundError:  # the server is ending
            return 0.0

    def status(self) -> Literal["following", "behind"]:
        return "behind" if self.seconds() > self.limit else "following"
