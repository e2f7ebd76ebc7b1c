"""Exploration: a share of an answer's places is filled at random, with the probability of everything that is shown known exactly.

Each of the k places is chosen independently with probability e. The chosen places are filled with a uniform random sample without
replacement from a pool: their own items and the n - k items behind the answer. The others keep theirs. See docs/decisions/0222.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, slots=True)
class Exploration:
    """Odds and orders of an answer's places, for the log, all of length k.

    Attributes:
        propensities: float64, the probability that the place showed the item that it shows.
        ranker_positions: int64, the item's place without exploration, from 1; beyond k where it would not have been shown.
        batch_positions: int64, the item's place among the published items that the request allows, from 1; 0 where it is not one.
    """

    propensities: np.ndarray
    ranker_positions: np.ndarray
    batch_positions: np.ndarray

    @property
    def n_changed(self) -> int:
        """Number of places whose item is another one than without exploration."""
        return int((self.ranker_positions != np.arange(1, len(self.ranker_positions) + 1)).sum())


class Explorer:
    """Swaps places of one worker's answers.

    Args:
        share: probability e that a place is chosen, 0 < e < 1.
        seed: of the random numbers; None for another one in every process.
    """

    def __init__(self, share: float, seed: int | None = None) -> None:
        self._share, self._random = share, np.random.default_rng(seed)

    def swap_places(self, k: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Fill k places from an order of n >= k items: (places in that order int64 [k], from 0, and propensities float64 [k])."""
        places = np.arange(k)
        chosen = np.flatnonzero(self._random.random(k) < self._share)
        if len(chosen):
            pool = np.concatenate([chosen, np.arange(k, n)])
            places[chosen] = self._random.choice(pool, len(chosen), replace=False)
        return places, propensities_of(places, n, self._share)


def propensities_of(places: np.ndarray, n: int, share: float) -> np.ndarray:
    """Compute the probability that each of k places shows the item that it shows: float64 [k].

    With t = n - k, B(m) binomial of m trials with probability e, a1 = E[1 / (1 + B(k - 1) + t)] and a2 = E[1 / (2 + B(k - 2) + t)]: the
    item of that place itself 1 - e + e a1 (left alone, or drawn from a pool of 1 + B(k - 1) + t); an item from behind the answer e a1;
    the item of another place e^2 a2 (both chosen). Over all n items a place's probabilities add up to 1.

    Args:
        places: int [k], from 0, of what is shown in the order of n items. share: e, 0 < e < 1.
    """
    k = len(places)
    own, behind, other = _marginals(k, n, share)
    return np.where(places == np.arange(k), own, np.where(places >= k, behind, other))


@lru_cache(maxsize=4096)
def _marginals(k: int, n: int, share: float) -> tuple[float, float, float]:
    behind = share * _mean_reciprocal(1 + n - k, k - 1, share)
    return 1 - share + behind, behind, share**2 * _mean_reciprocal(2 + n - k, k - 2, share)


def _mean_reciprocal(constant: int, trials: int, share: float) -> float:
    """Compute E[1 / (constant + B)], B binomial(trials, share); by logarithms, as a binomial coefficient may be beyond a float."""
    trials = max(trials, 0)  # of no place, or no other one, nothing is asked
    hit, miss = math.log(share), math.log1p(-share)
    return math.fsum(
        math.exp(math.lgamma(trials + 1) - math.lgamma(b + 1) - math.lgamma(trials - b + 1) + b * hit + (trials - b) * miss)
        / (constant + b)
        for b in range(trials + 1)
    )
