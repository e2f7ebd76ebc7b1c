"""Intervals of metrics averaged over users, by resampling the users. Called by evaluate and training; numpy alone.

Percentile bootstrap of the mean (Efron and Tibshirani 1993, "An introduction to the bootstrap", 13.3), paired where two systems are
compared on the same users. Above ``MAX_GROUPS`` users, random groups of equal size are resampled instead of single users, which says the
same of a mean and costs as little as ``MAX_GROUPS`` users do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
N_RESAMPLES = 1_000
MAX_GROUPS = 5_000
MIN_USERS = 2  # a single user says nothing of others


@dataclass(frozen=True)
class Interval:
    """Interval that holds the mean over all such users with the given confidence."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is one of direction and not of chance."""
        return self.low > 0 or self.high < 0


def bootstrap_intervals(per_user: Mapping[str, np.ndarray], confidence: float = CONFIDENCE, seed: int = 0) -> dict[str, Interval]:
    """Compute the interval of each mean over users from the same resamples.

    Args:
        per_user: name -> float64 [n_users], the same users in the same order under each name; n_users >= 1.
        confidence: between 0 and 1, of two sides.

    Returns {} for fewer than MIN_USERS users.
    """
    values = np.stack(list(per_user.values()), axis=1)
    if len(values) < MIN_USERS:
        return {}
    rng = np.random.default_rng(seed)
    n_groups = min(len(values), MAX_GROUPS)
    group_of_user = np.arange(len(values)) % n_groups
    if n_groups < len(values):
        group_of_user = rng.permutation(group_of_user)
    sums = np.stack([np.bincount(group_of_user, column, minlength=n_groups) for column in values.T], axis=1)
    sizes = np.bincount(group_of_user, minlength=n_groups)
    drawn = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=N_RESAMPLES)
    means = drawn @ sums / (drawn @ sizes)[:, None]
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(means, [tail, 1 - tail], axis=0)
    return {name: Interval(float(low), float(high)) for name, low, high in zip(per_user, lows, highs, strict=True)}


def bootstrap_gains(
    per_user: Mapping[str, np.ndarray], baseline: Mapping[str, np.ndarray], confidence: float = CONFIDENCE, seed: int = 0
) -> dict[str, Interval]:
    """Compute the interval of the mean difference to a baseline on the same users, of each metric."""
    return bootstrap_intervals({name: values - baseline[name] for name, values in per_user.items()}, confidence, seed)
