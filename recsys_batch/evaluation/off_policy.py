"""Value of a policy that was not in use, from places that were swapped at random with a known propensity.

Each shown item is a row of its own: whether it is a hit is taken to depend on the user, the item and its place, and not on the items
beside it (the item-position model of Li et al. 2018, "Offline Evaluation of Ranking Policies with Click Models").
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Z_95 = NormalDist().inv_cdf(0.975)
"""Half the width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class PolicyValue:
    """Estimate of a policy's hits per shown item, or of a difference of two.

    Attributes:
        value: None where no row is what the policy would show. low, high: of the 95 % interval.
        n_matches: rows that are what the policy would show. effective_sample_size: rows of equal weight that would say as much.
    """

    value: float | None
    low: float | None
    high: float | None
    n_matches: int | None = None
    effective_sample_size: float | None = None


def compare_policies(
    positions: dict[str, np.ndarray], position: np.ndarray, propensity: np.ndarray, hits: np.ndarray, users: np.ndarray
) -> tuple[dict[str, PolicyValue], dict[str, PolicyValue]]:
    """Estimate each policy's hits per shown item, and the difference of each from the first, by the self-normalised estimator (SNIPS).

    A row weighs w = 1 / propensity where the policy has its item at the place where it was shown, else 0. The value is
    sum(w r) / sum(w) (Swaminathan and Joachims 2015, "The Self-Normalized Estimator for Counterfactual Learning"), the effective sample
    size sum(w)^2 / sum(w^2) (Kish 1965, "Survey Sampling"). The standard error is the delta method's, with the rows of a user taken
    together: sqrt(sum over users of (sum of the user's w (r - value))^2) / sum(w); the interval is the normal one. A difference has the
    difference of the two influences.

    Args:
        positions: policy -> float64 [n], the place that it gives the row's item; NaN for none.
        position, propensity: float64 [n], as shown. hits: bool [n]. users: int [n], codes from 0.
    Returns:
        (values, differences from the first policy), by policy.
    """
    values, influences = {}, {}
    for policy, its_position in positions.items():
        weights = np.where(its_position == position, 1 / propensity, 0.0)
        values[policy], influences[policy] = _self_normalised(weights, hits, users)
    first, *others = positions
    differences = {}
    for policy in others:
        one, base = values[policy].value, values[first].value
        difference = None if one is None or base is None else one - base
        differences[policy] = PolicyValue(difference, *_interval(difference, influences[policy] - influences[first]))
    return values, differences


def _self_normalised(weights: np.ndarray, hits: np.ndarray, users: np.ndarray) -> tuple[PolicyValue, np.ndarray]:
    """(the estimate, influence of each user on it, float64 [number of users])."""
    total = float(weights.sum())
    if total == 0:
        return PolicyValue(None, None, None, 0, 0.0), np.zeros(int(users.max(initial=-1)) + 1)
    value = float((weights * hits).sum()) / total
    influence = np.bincount(users, weights * (hits - value)) / total
    effective = total**2 / float((weights**2).sum())
    return PolicyValue(value, *_interval(value, influence), int((weights > 0).sum()), effective), influence


def _interval(value: float | None, influence: np.ndarray) -> tuple[float | None, float | None]:
    if value is None:
        return None, None
    half = Z_95 * math.sqrt(float((influence**2).sum()))
    return value - half, value + half
