"""Sample of users with whole histories, stratified by activity: which of a user's hash buckets are in, by the user's number of events.

The stratum of a user with n events is floor(log2 n); the bucket is a hash of (user_id, seed). Every stratum keeps the same share of its
events, to within a bucket, so a sample has the heavy and the light users of the whole (stratified sampling with proportional allocation:
Cochran 1977, "Sampling Techniques", 5.5).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

N_BUCKETS = 65_536
"""Hash buckets per stratum: the smallest share of its users that can be taken."""


@dataclass(frozen=True)
class ActivityCounts:
    """Users and their events by stratum and hash bucket: int64 arrays of one length, a pair of stratum and bucket once."""

    stratum: np.ndarray
    bucket: np.ndarray
    users: np.ndarray
    events: np.ndarray

    @property
    def n_events(self) -> int:
        """Number of events of all users."""
        return int(self.events.sum())


@dataclass(frozen=True)
class TrainingSample:
    """Which users a sample takes: those of a stratum whose bucket is below its threshold.

    Attributes:
        thresholds: stratum -> buckets taken, of N_BUCKETS; a stratum that is not in it has no user.
        n_users, n_events: of the sample. of_users, of_events: of the whole.
    """

    seed: int
    max_events: int
    thresholds: Mapping[int, int]
    n_users: int
    n_events: int
    of_users: int
    of_events: int

    def describe(self) -> str:
        """Say in a sentence what was sampled from what."""
        return (
            f"a sample of {self.n_users:,} of {self.of_users:,} users with their whole histories, {self.n_events:,} of "
            f"{self.of_events:,} positive events (training.max_events = {self.max_events:,}, seed {self.seed})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to what a bundle's manifest says of it."""
        names = ("seed", "max_events", "n_users", "n_events", "of_users", "of_events")
        return {name: getattr(self, name) for name in names}


def choose_user_sample(counts: ActivityCounts, max_events: int, seed: int) -> TrainingSample:
    """Choose how many buckets of each stratum are taken, so that together they have at most ``max_events`` events.

    What a stratum cannot use, as its next bucket would be too much, goes to the next lower one: a few very heavy users leave no gap.
    """
    share = min(max_events / max(counts.n_events, 1), 1.0)
    thresholds, n_users, n_events, left_over = {}, 0, 0, 0.0
    for stratum in np.unique(counts.stratum)[::-1]:
        rows = np.flatnonzero(counts.stratum == stratum)
        rows = rows[np.argsort(counts.bucket[rows])]
        budget = share * float(counts.events[rows].sum()) + left_over
        taken = rows[np.cumsum(counts.events[rows]) <= budget + 1e-6]
        left_over = budget - float(counts.events[taken].sum())
        if len(taken):
            thresholds[int(stratum)] = int(counts.bucket[taken[-1]]) + 1
            n_users, n_events = n_users + int(counts.users[taken].sum()), n_events + int(counts.events[taken].sum())
    return TrainingSample(seed, max_events, thresholds, n_users, n_events, int(counts.users.sum()), counts.n_events)
