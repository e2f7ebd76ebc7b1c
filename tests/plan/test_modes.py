"""Modes by hand: what each costs from the unit costs, and why one is not feasible."""

import math
from typing import Any

import pytest

from recsys_batch.config import Prices
from recsys_batch.plan.modes import BATCH, MODES, ONLINE, STREAMING, TWO_STAGE, plan_mode
from recsys_batch.plan.unit_costs import UnitCosts

PRICES = Prices(core_hour=0.036, gb_month=0.03, gb_read=0.02, node_cores=16, node_memory_gb=64)
"""A core-second is 1e-5."""


def test_batch_by_hand(units: UnitCosts, surface: Any) -> None:
    plan = plan_mode(BATCH, surface(), PRICES, units)
    # A night of 40 + 1e6 x 1 ms = 1,040 core-seconds once a day; 36 hours leave 4 for it and 24 between two.
    assert plan.costs["night"] == pytest.approx(1040 * 1e-5)
    assert (plan.night_cores, plan.freshness_seconds) == (1, 28 * 3600)
    # 80 requests a second at peak x 0.5 ms are 0.04 cores.
    assert plan.serving_cores == 1 and plan.costs["serving"] == pytest.approx(86_400 * 1e-5)
    # Two runs of lists, and ten items of 100 bytes to read; the catalogue.
    stored = 1e6 * (2 * 2000 + 1000) + 50_000 * 400
    assert plan.costs["storage"] == pytest.approx(stored / 1e9 * 0.03 / 30)
    assert plan.costs["reads"] == pytest.approx(20 * 86_400 * 1000 / 1e9 * 0.02)
    assert plan.cost_per_million == pytest.approx(plan.cost_per_day / (20 * 86_400) * 1e6)
    assert plan.is_feasible and plan.p99_ms < 50


def test_online_by_hand(units: UnitCosts, surface: Any) -> None:
    # 50,000 items x 1 us, the user's embedding and the request itself: 50.6 ms; its p99 is three times that.
    plan = plan_mode(ONLINE, surface(p99_ms=200), PRICES, units)
    assert plan.is_feasible and plan.serving_cores >= math.ceil(80 * 0.0506) and plan.costs["night"] == 0.0
    refused = plan_mode(ONLINE, surface(p99_ms=100), PRICES, units)
    assert refused.reasons == ("one answer takes 151.8 ms (p99), 100 ms are there for it",)


def test_network_is_taken_off_the_budget(units: UnitCosts, surface: Any) -> None:
    assert plan_mode(ONLINE, surface(p99_ms=200, network_ms=30), PRICES, units).is_feasible
    assert not plan_mode(ONLINE, surface(p99_ms=200, network_ms=60), PRICES, units).is_feasible


@pytest.mark.parametrize(
    ("changes", "feasible"),
    [
        ({}, {BATCH, TWO_STAGE, STREAMING, ONLINE}),
        ({"context": "session"}, {TWO_STAGE, STREAMING, ONLINE}),
        ({"context": "query"}, {ONLINE}),
        ({"staleness_hours": 0.1, "events_per_second": 5}, {STREAMING, ONLINE}),
        ({"staleness_hours": 0.0005, "events_per_second": 5}, {ONLINE}),
        ({"context": "session", "staleness_hours": 0.01}, {TWO_STAGE, STREAMING, ONLINE}),
        ({"candidates_change_hours": 0.5}, {STREAMING, ONLINE}),
        ({"p99_ms": 100}, {BATCH, TWO_STAGE, STREAMING}),
        ({"p99_ms": 2}, {BATCH}),
        ({"p99_ms": 0.5}, set()),
    ],
)
def test_what_rules_a_mode_out(units: UnitCosts, surface: Any, changes: dict[str, Any], feasible: set[str]) -> None:
    asked = surface(**{"p99_ms": 500, **changes})
    plans = {mode: plan_mode(mode, asked, PRICES, units) for mode in MODES}
    assert {mode for mode, plan in plans.items() if plan.is_feasible} == feasible
    assert all(plan.reasons for mode, plan in plans.items() if mode not in feasible)


def test_lists_that_may_be_six_hours_old_take_a_night_every_four(units: UnitCosts, surface: Any) -> None:
    plan = plan_mode(BATCH, surface(staleness_hours=6), PRICES, units)
    assert plan.freshness_seconds == pytest.approx(6 * 3600) and plan.costs["night"] == pytest.approx(6 * 1040 * 1e-5)


def test_streaming_costs_by_events(units: UnitCosts, surface: Any) -> None:
    quiet, busy = (plan_mode(STREAMING, surface(events_per_second=rate), PRICES, units) for rate in (0, 1000))
    assert quiet.costs["stream"] == pytest.approx(0.5 * 86_400 * 1e-5)
    assert busy.costs["stream"] == pytest.approx(1.5 * 86_400 * 1e-5)
    assert busy.freshness_seconds == 2.5


def test_users_that_one_machine_cannot_hold_are_divided(units: UnitCosts, surface: Any) -> None:
    plan = plan_mode(TWO_STAGE, surface(users=100_000_000, active_share=0.01), PRICES, units)
    assert plan.memory_gb == pytest.approx(250.02) and plan.nodes >= 4 + 1
    assert plan.costs["serving"] == pytest.approx(4 * 16 * 86_400 * 1e-5)
