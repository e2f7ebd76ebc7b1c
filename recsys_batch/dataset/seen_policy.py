"""Which of a user's events keep an item out of that user's lists: the one place that says what ``retrieval.seen`` means.

An item is seen where one of the user's events with it counts as seen. Nights, the audit, the stream, digests and evaluation all ask here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.schemas import ALL_SEGMENTS

if TYPE_CHECKING:
    from recsys_batch.config import SeenSetting

_DAY_US = 86_400_000_000
_ALWAYS, _NEVER = int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class SeenPolicy:
    """Says which events count as seen for one run date. Small, as it travels to executors.

    Attributes:
        limits_us: segment -> microseconds since 1970, UTC: its users' events later than this count as seen, and those without a time,
            unless none does at all; has ALL_SEGMENTS, which stands for segments that are not named and for users without one.
    """

    limits_us: Mapping[str, int]

    @property
    def needs_times(self) -> bool:
        """Say whether some rule depends on an event's time."""
        return any(limit not in (_ALWAYS, _NEVER) for limit in self.limits_us.values())

    @property
    def needs_segments(self) -> bool:
        """Say whether rules differ by the user's segment."""
        return len(set(self.limits_us.values())) > 1

    @property
    def excludes_all(self) -> bool:
        """Whether every event of everybody counts as seen."""
        return set(self.limits_us.values()) == {_ALWAYS}

    def allows_all(self, segment: str | None) -> bool:
        """Say whether users of a segment may always get what they have seen, however lately."""
        return self.limits_us.get(segment or ALL_SEGMENTS, self.limits_us[ALL_SEGMENTS]) == _NEVER

    def mark_seen(self, segments: pa.Array, owner: np.ndarray, event_us: pa.Array | pa.ChunkedArray | None) -> np.ndarray:
        """Mark the events that count as seen: bool [n_events].

        Args:
            segments: string [n_users], null for users without one.
            owner: int64 [n_events], whose event it is: a place in ``segments``.
            event_us: int64 [n_events], null for an event without a time; not looked at unless ``needs_times``.
        """
        limits = self._limits_of(segments)[owner]
        is_seen = np.asarray(limits != _NEVER)
        if self.needs_times:
            assert event_us is not None
            # An event without a time is taken for the newest: nobody can say that it is long ago.
            is_seen &= np.asarray(pc.fill_null(event_us, _NEVER).to_numpy()) > limits
        return is_seen

    def _limits_of(self, segments: pa.Array) -> np.ndarray:
        """Look up the limit of each user's segment: int64 [n_users]."""
        names, limits = list(self.limits_us), np.array(list(self.limits_us.values()), dtype=np.int64)
        rules = pc.fill_null(pc.index_in(segments, value_set=pa.array(names, pa.string())), names.index(ALL_SEGMENTS))
        return limits[np.asarray(rules.to_numpy(zero_copy_only=False), dtype=np.int64)]


def make_seen_policy(setting: SeenSetting, run_date: dt.date) -> SeenPolicy:
    """Resolve ``retrieval.seen`` for the night of a date; ``after_days`` counts back from the end of that date, UTC."""
    midnight = dt.datetime.combine(run_date + dt.timedelta(days=1), dt.time(), dt.UTC)
    end_us = round(midnight.timestamp()) * 1_000_000
    rules = {ALL_SEGMENTS: setting} if isinstance(setting, str) or "after_days" in setting else {ALL_SEGMENTS: "exclude", **setting}
    return SeenPolicy({segment: _find_limit(rule, end_us) for segment, rule in rules.items()})


def _find_limit(rule: SeenSetting, end_us: int) -> int:
    if isinstance(rule, str):
        return _ALWAYS if rule == "exclude" else _NEVER
    return end_us - int(rule["after_days"]) * _DAY_US
