"""Capacity of a night and of servers, by hand."""

from dataclasses import replace

import pytest

from recsys_batch.config import Prices
from recsys_batch.plan.capacity import plan_fleet, plan_night
from recsys_batch.plan.unit_costs import UnitCosts

PRICES = Prices(node_cores=16)


def test_a_night_by_hand(units: UnitCosts) -> None:
    night = plan_night(10_000_000, 100_000, 64, units, PRICES, hours=1.0, measured_users=1_000_000, measured_dim=64)
    # Search costs twice as much over twice the items: 40 + 1e7 x (0.1 + 0.8 + 0.2 + 0.2) ms.
    total = 40 + 1e7 * 1.3e-3
    assert (night.cores, night.executors, night.bottleneck) == (4, 1, "search")
    assert night.hours == pytest.approx(total / 4 / 3600) and night.hours <= 1.0
    assert night.disk_gb == pytest.approx(40.0) and night.shuffle_gb == pytest.approx(4.8)
    assert sum(share for _, share in night.shares) == pytest.approx(1.0)
    assert night.range_note == "measured on 1,000,000 users"


def test_what_is_far_from_what_was_measured_says_so(units: UnitCosts) -> None:
    night = plan_night(100_000_000, 100_000, 64, units, PRICES, hours=4.0, measured_users=1_000_000, measured_dim=64)
    assert "100 times as far, an extrapolation" in night.range_note


def test_wider_embeddings_cost_more(units: UnitCosts) -> None:
    narrow, wide = (
        plan_night(1_000_000, 50_000, dim, units, PRICES, hours=4.0, measured_users=10**6, measured_dim=64) for dim in (64, 256)
    )
    assert wide.hours > 2.5 * narrow.hours and wide.executor_memory_gb > narrow.executor_memory_gb


def test_a_fleet_has_the_workers_that_the_p99_takes(units: UnitCosts) -> None:
    fleet = plan_fleet(10_000, 20.0, units, PRICES)
    assert fleet is not None and 10 < fleet.workers <= 14 and fleet.machines == 1 and fleet.p99_ms <= 20
    strict = plan_fleet(10_000, 3.1, units, PRICES)
    assert strict is not None and strict.workers > fleet.workers
    assert plan_fleet(10_000, 2.0, units, PRICES) is None
    assert plan_fleet(10_000, 20.0, replace(units, rank=2e-3), PRICES).workers > 20  # type: ignore[union-attr]
