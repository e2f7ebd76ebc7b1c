"""The recommended mode is the cheapest that is feasible, and crossing the printed number changes it."""

import math
from typing import Any

import pytest

from recsys_batch.config import Prices
from recsys_batch.plan.modes import MODES, TWO_STAGE, plan_mode
from recsys_batch.plan.recommendation import INPUTS, Recommendation, choose_mode, input_value, recommend, scale_input
from recsys_batch.plan.unit_costs import UnitCosts

PRICES = Prices()
SURFACES: list[dict[str, Any]] = [
    {},
    {"context": "session", "events_per_second": 20.0, "requests_per_second": 200.0},
    {"p99_ms": 1000.0, "requests_per_second": 3.0, "active_share": 0.1},
    {"users": 10_000, "active_share": 0.5, "requests_per_second": 0.5, "items": 2000, "p99_ms": 200.0},
    {"staleness_hours": 2.0, "candidates_change_hours": 2.0},
    {"context": "query", "items": 5000, "p99_ms": 100.0},
]


@pytest.mark.parametrize("changes", SURFACES)
def test_the_cheapest_feasible_mode_is_taken_and_of_a_tie_the_simplest(units: UnitCosts, surface: Any, changes: dict[str, Any]) -> None:
    found = recommend(surface(**changes), units, PRICES)
    costs = {mode: plan.cost_per_day for mode, plan in found.plans.items() if plan.is_feasible}
    as_cheap = [mode for mode in MODES if mode in costs and costs[mode] <= min(costs.values()) * 1.02]
    assert set(found.plans) == set(MODES) and (found.mode, *found.ties) == tuple(as_cheap)


def mode_at(found: Recommendation, units: UnitCosts, name: str, value: float) -> str | None:
    factor = value / input_value(name, found.surface, PRICES)
    surface, prices = scale_input(name, found.surface, PRICES, factor)
    return recommend_mode(surface, prices, units)


def recommend_mode(surface: Any, prices: Prices, units: UnitCosts) -> str | None:
    return choose_mode({mode: plan_mode(mode, surface, prices, units) for mode in MODES})


@pytest.mark.parametrize("changes", SURFACES)
def test_crossing_a_printed_number_changes_the_recommendation_and_not_crossing_it_does_not(
    units: UnitCosts, surface: Any, changes: dict[str, Any]
) -> None:
    found = recommend(surface(**changes), units, PRICES)
    assert found.flips
    for flip in found.flips:
        beyond, before = (1.01, 1 / 1.01) if flip.above else (1 / 1.01, 1.01)
        assert mode_at(found, units, flip.name, flip.value * before) == found.mode, flip
        assert mode_at(found, units, flip.name, flip.value * beyond) == flip.mode != found.mode, flip
        assert (flip.value > flip.now) == flip.above
    distances = [abs(math.log(flip.value / flip.now)) for flip in found.flips]
    assert distances == sorted(distances)


def test_what_no_mode_can_do_is_said_with_what_would_help(units: UnitCosts, surface: Any) -> None:
    found = recommend(surface(context="query", p99_ms=50.0), units, PRICES)
    assert found.mode is None and not any(plan.is_feasible for plan in found.plans.values()) and found.sensitivities == ()
    assert {flip.name for flip in found.flips} >= {"items", "p99_ms"}


def test_the_cost_depends_most_on_what_is_said(units: UnitCosts, surface: Any) -> None:
    found = recommend(surface(requests_per_second=20_000.0, context="session"), units, PRICES)
    assert found.mode == TWO_STAGE
    (name, doubled, halved), *others = found.sensitivities
    assert (
        name in ("requests_per_second", "users", "core_hour")
        and doubled == pytest.approx(2, abs=0.1)
        and halved == pytest.approx(0.5, abs=0.05)
    )
    assert len(others) == 2 and set(INPUTS) > {one[0] for one in found.sensitivities}
