"""Split positives into what a model learns from and what it is measured on: by one time for everybody, as a night is used.

A split never cuts through equal times or a session. Validation that knows part of a basket rewards completing it, and the model that
does so best knows less of the next month. Where too few users have positives on both sides of one time, the newest sessions of each
user are held out; where users have one session each, or no times, a part at random.
"""

from typing import NamedTuple

import numpy as np

from recsys_batch.dataset.future_split import MAX_SESSION_SHARE, MIN_KNOWN_SHARE, MIN_USERS_ON_BOTH_SIDES
from recsys_batch.dataset.histories import NO_TIME
from recsys_batch.model.training_data import Positives, group_by_user
from recsys_batch.tables.list_columns import sorted_unique

_MIN_USER_SHARE = 0.5  # of the users with three positives or more, who must have two sessions for a split per user
_MICROSECONDS_PER_MINUTE = 60_000_000


class ValidationSplit(NamedTuple):
    """Positives before and after a split.

    Attributes:
        held_out: positives of items that their user has none of in ``train``. kind: "time", "user" or "random".
    """

    train: Positives
    held_out: Positives
    kind: str

    @property
    def n_users(self) -> int:
        """Number of users with both a history and held-out positives."""
        return int(np.count_nonzero((self.train.counts > 0) & (self.held_out.counts > 0)))

    @property
    def known_share(self) -> float:
        """Share of the held-out positives whose users have a history."""
        counts = self.held_out.counts
        return int(counts[self.train.counts > 0].sum()) / max(int(counts.sum()), 1)


def split_positives(positives: Positives, fraction: float, session_gap: float = 30.0, seed: int = 17) -> ValidationSplit:
    """Split off about the newest ``fraction`` of positives.

    Args:
        session_gap: minutes without a positive that end a session. seed: of a split at random.
    """
    rows = np.concatenate([positives.rows, positives.repeats.rows])
    codes = np.concatenate([positives.codes, positives.repeats.codes])
    event_us = np.concatenate([positives.event_us, positives.repeats.event_us])
    order = np.lexsort((codes, event_us, rows))
    rows, codes, event_us = rows[order], codes[order], event_us[order]
    is_known = event_us != NO_TIME
    if is_known.any():
        starts = _session_starts(rows, event_us, session_gap)
        after = np.quantile(event_us[is_known], 1 - fraction, method="lower")
        by_time = _split(positives, rows, codes, event_us, starts > after, "time")
        if by_time.n_users >= MIN_USERS_ON_BOTH_SIDES and by_time.known_share >= MIN_KNOWN_SHARE:
            return by_time
        by_user = _split(positives, rows, codes, event_us, _newest_sessions(rows, starts, fraction), "user")
        if by_user.n_users >= min(MIN_USERS_ON_BOTH_SIDES, _MIN_USER_SHARE * np.count_nonzero(positives.counts >= 3)) > 0:
            return by_user
    return _split_at_random(positives, fraction, seed, is_ordered=not is_known.any())


def _session_starts(rows: np.ndarray, event_us: np.ndarray, session_gap: float) -> np.ndarray:
    """Find when the session of each event began, int64; events are in order of user and time. NO_TIME is a session of its own."""
    begins = np.ones(len(rows), dtype=bool)
    seconds = np.where(event_us == NO_TIME, -np.inf, event_us.astype(np.float64))
    with np.errstate(invalid="ignore"):
        gap = np.diff(seconds)
    begins[1:] = (np.diff(rows) != 0) | (gap > session_gap * _MICROSECONDS_PER_MINUTE)
    return np.asarray(event_us[np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))])


def _newest_sessions(rows: np.ndarray, starts: np.ndarray, fraction: float) -> np.ndarray:
    """Mask the newest sessions of each user that are within ``fraction`` of the events, or the newest one of at most half of them."""
    counts = np.bincount(rows, minlength=1)
    ends = np.cumsum(counts)
    newest_start = starts[ends[rows] - 1]
    # Events of the user that began in this session or a later one.
    session = np.concatenate([[0], np.cumsum((np.diff(rows) != 0) | (np.diff(starts) != 0))])
    first_of_session = np.searchsorted(session, session)
    n_newer = ends[rows] - first_of_session
    is_newest = (starts == newest_start) & (n_newer <= counts[rows] * MAX_SESSION_SHARE)
    return np.asarray(is_newest | (n_newer <= counts[rows] * fraction))


def _split(
    positives: Positives, rows: np.ndarray, codes: np.ndarray, event_us: np.ndarray, is_held_out: np.ndarray, kind: str
) -> ValidationSplit:
    n_users, n_items = positives.n_users, positives.n_items
    train = group_by_user(rows[~is_held_out], codes[~is_held_out], event_us[~is_held_out], n_users, n_items)
    known = sorted_unique(train.rows * n_items + train.codes)
    keys = rows[is_held_out] * n_items + codes[is_held_out]
    # By search, of the held-out ones alone: np.isin of all took 5.6 s of a core for 4,700,000 events, this takes 0.6.
    is_known = np.append(known, -1)[np.searchsorted(known, keys)] == keys
    is_new = np.zeros(len(rows), dtype=bool)
    is_new[is_held_out] = ~is_known
    held_out = group_by_user(rows[is_new], codes[is_new], event_us[is_new], n_users, n_items)
    return ValidationSplit(train, held_out, kind)


def _split_at_random(positives: Positives, fraction: float, seed: int, *, is_ordered: bool) -> ValidationSplit:
    """Hold out ``fraction`` of each user's positives, one or more where a user has three.

    Args:
        is_ordered: whether the order within a user is arbitrary already, as it is where there is no time.
    """
    positions = positives.positions
    if not is_ordered:
        shuffled = np.lexsort((np.random.default_rng(seed).permutation(len(positives.codes)), positives.rows))
        positions = np.empty(len(shuffled), dtype=np.int64)
        positions[shuffled] = positives.positions
    n_held = np.maximum(np.floor(positives.counts * fraction), positives.counts >= 3)
    is_held_out = positions < np.repeat(n_held, positives.counts)
    return ValidationSplit(positives.where(~is_held_out), positives.where(is_held_out), "random")
