"""Intervals of means over users say how far chance goes, and paired ones see small gains."""

from __future__ import annotations

import numpy as np
import pytest

from recsys_batch.evaluation import bootstrap
from recsys_batch.evaluation.bootstrap import Interval, bootstrap_gains, bootstrap_intervals


def interval_of(values: np.ndarray, confidence: float = 0.95) -> Interval:
    return bootstrap_intervals({"metric": values}, confidence)["metric"]


@pytest.mark.parametrize("n_users", [50, 3_000, 40_000])
def test_an_interval_is_as_wide_as_the_central_limit_says(n_users: int) -> None:
    values = np.random.default_rng(n_users).beta(1, 3, n_users)
    error = values.std() / n_users**0.5
    interval = interval_of(values)
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_about_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    held = [(of := interval_of(rng.beta(1, 3, 300))).low <= 0.25 <= of.high for _ in range(200)]
    assert 0.90 <= np.mean(held) <= 0.99


def test_more_confidence_is_wider() -> None:
    values = np.random.default_rng(2).normal(size=400)
    narrow, wide = interval_of(values, 0.5), interval_of(values, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_groups_stand_for_users_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.sort(np.random.default_rng(3).normal(size=20_000))
    one_by_one = values.std() / len(values) ** 0.5 * 1.96 * 2
    monkeypatch.setattr(bootstrap, "MAX_GROUPS", 500)
    interval = interval_of(values)
    assert interval.high - interval.low == pytest.approx(one_by_one, rel=0.15)


def test_a_small_gain_of_everybody_is_seen_where_the_levels_are_not() -> None:
    rng = np.random.default_rng(4)
    before = {"metric": rng.normal(size=200)}
    after = {"metric": before["metric"] + 0.05 + rng.normal(scale=0.05, size=200)}
    now, then = interval_of(after["metric"]), interval_of(before["metric"])
    assert now.low < then.high
    assert bootstrap_gains(after, before)["metric"].low > 0


def test_a_difference_of_chance_alone_includes_zero() -> None:
    rng = np.random.default_rng(5)
    gain = bootstrap_gains({"metric": rng.normal(size=500)}, {"metric": rng.normal(size=500)})["metric"]
    assert not gain.excludes_zero


@pytest.mark.parametrize(("low", "high", "excluded"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False)])
def test_an_interval_that_touches_zero_does_not_exclude_it(low: float, high: float, excluded: bool) -> None:
    assert Interval(low, high).excludes_zero == excluded


def test_one_user_has_no_interval_and_the_same_users_give_the_same_one() -> None:
    assert bootstrap_intervals({"metric": np.array([0.5])}) == {}
    values = np.random.default_rng(6).random(100)
    assert interval_of(values) == interval_of(values)
