"""A sample of users: bounded, in proportion in every stratum, whatever the users are like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.dataset.user_sample import ActivityCounts, choose_user_sample


def counts_of(events_by_user: list[int], n_buckets: int = 50) -> tuple[ActivityCounts, dict[tuple[int, int], int]]:
    """Counts of users who are in hash buckets by their number, and the events of each stratum and bucket."""
    cells: dict[tuple[int, int], list[int]] = {}
    for user, n in enumerate(events_by_user):
        cells.setdefault((n.bit_length() - 1, user * 7919 % n_buckets), []).append(n)
    columns = [(stratum, bucket, len(events), sum(events)) for (stratum, bucket), events in cells.items()]
    arrays = np.array(columns, dtype=np.int64).reshape(-1, 4).T
    return ActivityCounts(*arrays), {cell: sum(events) for cell, events in cells.items()}


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=200), st.integers(1, 100_000))
def test_there_are_never_more_events_than_asked_for_and_they_are_those_below_the_thresholds(users: list[int], limit: int) -> None:
    counts, events = counts_of(users)
    sample = choose_user_sample(counts, limit, seed=3)
    taken = sum(n for (stratum, bucket), n in events.items() if bucket < sample.thresholds.get(stratum, 0))
    assert sample.n_events == taken <= limit
    assert (sample.of_users, sample.of_events) == (len(users), sum(users))
    if limit >= sum(users):
        assert (sample.n_users, sample.n_events) == (len(users), sum(users))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_every_stratum_keeps_its_share_to_within_a_bucket(share: float) -> None:
    rng = np.random.default_rng(4)
    users = np.floor(1 + rng.pareto(1.2, 20_000) * 4).astype(int).clip(1, 500).tolist()
    counts, events = counts_of(users, n_buckets=1_000)
    sample = choose_user_sample(counts, int(share * sum(users)), seed=3)
    for stratum in range(8):
        whole = sum(n for (where, _), n in events.items() if where == stratum)
        kept = sum(n for (where, bucket), n in events.items() if where == stratum and bucket < sample.thresholds.get(stratum, 0))
        assert kept / whole == pytest.approx(share, abs=0.03)


def test_what_the_heaviest_leave_over_goes_to_the_next() -> None:
    """A user of 1,000 events is more than 10 % of them; the 100 of one event take its place."""
    counts, _ = counts_of([1_000] + [1] * 1_000, n_buckets=1_009)
    sample = choose_user_sample(counts, 200, seed=3)
    assert sample.n_users == sample.n_events == 200
    assert list(sample.thresholds) == [0]
    assert "a sample of 200 of 1,001 users with their whole histories, 200 of 2,000 positive events" in sample.describe()
