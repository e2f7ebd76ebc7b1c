"""Waiting for a free core: how many cores answer within a time, with requests that come at random."""

import math

_TAIL = 0.01
_MANY_CORES = 1000


def waiting_probability(n_cores: int, load: float) -> float:
    """Compute the probability that a request waits: Erlang's C formula for M/M/c.

    Args:
        load: offered, in cores: requests per second times core-seconds of one. At n_cores or above it all wait: 1.

    Sources: A. K. Erlang, 1917, computed by the recursion of Erlang's B, which does not overflow; above _MANY_CORES, where that takes long,
    S. Halfin and W. Whitt's limit, 1981.
    """
    if load >= n_cores:
        return 1.0
    if n_cores > _MANY_CORES:
        beta = (n_cores - load) / math.sqrt(load)
        density = math.exp(-beta * beta / 2) / math.sqrt(2 * math.pi)
        below = (1 + math.erf(beta / math.sqrt(2))) / 2
        return density / (density + beta * below)
    blocked = 1.0
    for n in range(1, n_cores + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked / (1 - load / n_cores * (1 - blocked))


def p99_seconds(n_cores: int, rate: float, seconds: float, p99_alone: float, variation: float = 1.0) -> float:
    """Compute the 99th percentile of an answer's time, waiting included; infinite where the load is more than the cores.

    The wait is exponential for those who wait, with the M/M/c mean times (1 + variation) / 2 (Allen and Cunneen's approximation for M/G/c).
    The percentiles of waiting and service are added, which is never less than the percentile of their sum.

    Args:
        rate: requests per second. seconds: of a core, for one request. p99_alone: of an answer that does not wait.
        variation: squared coefficient of variation of the service time; 1 for exponential.
    """
    load = rate * seconds
    if load >= n_cores:
        return math.inf
    waiting = waiting_probability(n_cores, load)
    if waiting <= _TAIL:
        return p99_alone
    mean_of_waiting = seconds / (n_cores - load) * (1 + variation) / 2
    return p99_alone + mean_of_waiting * math.log(waiting / _TAIL)


def required_cores(rate: float, seconds: float, p99_alone: float, limit: float, variation: float = 1.0) -> int | None:
    """Find the fewest cores that answer 99 % within ``limit`` seconds; None where one answer alone takes longer."""
    if p99_alone > limit:
        return None
    fewest = max(1, math.floor(rate * seconds) + 1)
    n_cores, step = fewest, 1
    while p99_seconds(n_cores, rate, seconds, p99_alone, variation) > limit:
        n_cores, step = n_cores + step, 2 * step
    low, high = max(fewest, n_cores - step // 2), n_cores
    while low < high:
        middle = (low + high) // 2
        if p99_seconds(middle, rate, seconds, p99_alone, variation) <= limit:
            high = middle
        else:
            low = middle + 1
    return low
