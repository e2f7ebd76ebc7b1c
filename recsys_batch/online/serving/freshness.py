"""Limits on the age of a snapshot."""

import datetime as dt
from dataclasses import dataclass
from typing import Literal

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
