"""Which mode a surface should use, the number that would change that, and what its cost depends on most."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recsys_batch.config import Prices
from recsys_batch.plan.modes import MODES, ModePlan, plan_mode
from recsys_batch.plan.surfaces import Surface
from recsys_batch.plan.unit_costs import UnitCosts

TIE = 0.02
"""Costs that differ by less are a tie, of which the simplest mode is taken: MODES are in that order."""
_LARGEST_FACTOR, _STEPS = 1000.0, 60


@dataclass(frozen=True)
class Flip:
    """The value of an input past which another mode is recommended.

    Attributes:
        name: of the input. value: at which it flips; above it where ``above``, else below it. mode: then; None where none is feasible.
    """

    name: str
    now: float
    value: float
    above: bool
    mode: str | None


@dataclass(frozen=True)
class Recommendation:
    """The mode that a surface should use, and what would change that.

    Attributes:
        plans: of all modes, by mode. mode: the one to use, None where none is feasible. ties: others that cost the same.
        flips: of each input that has one, the nearest first. sensitivities: by input, the cost with its double and its half over that of
            now, the greatest first.
    """

    surface: Surface
    plans: Mapping[str, ModePlan]
    mode: str | None
    ties: tuple[str, ...]
    flips: tuple[Flip, ...]
    sensitivities: tuple[tuple[str, float, float], ...]


_Case = tuple[Surface, Prices]
_Scale = Callable[[Surface, Prices, float], _Case | None]


def recommend(surface: Surface, units: UnitCosts, prices: Prices) -> Recommendation:
    """Recommend a mode for a surface."""
    case = (surface, prices)
    plans = _plan_all(case, units)
    mode = choose_mode(plans)
    ties: tuple[str, ...] = ()
    if mode is not None:
        ties = tuple(other for other in _tied(plans) if other != mode)
    flips = [flip for name in INPUTS for flip in _find_flips(name, case, units, mode)]
    flips.sort(key=lambda flip: abs(math.log(flip.value / flip.now)))
    return Recommendation(surface, plans, mode, ties, tuple(flips), _sensitivities(case, units, mode))


def _plan_all(case: _Case, units: UnitCosts) -> dict[str, ModePlan]:
    return {mode: plan_mode(mode, *case, units) for mode in MODES}


def choose_mode(plans: Mapping[str, ModePlan]) -> str | None:
    """Choose the cheapest feasible mode, of a tie the simplest; None where none is feasible."""
    return next(iter(_tied(plans)), None)


def _tied(plans: Mapping[str, ModePlan]) -> list[str]:
    """List the feasible modes that cost as little as any, the simplest first."""
    costs = {mode: plans[mode].cost_per_day for mode in MODES if plans[mode].is_feasible}
    limit = min(costs.values(), default=0.0) * (1 + TIE)
    return [mode for mode, cost in costs.items() if cost <= limit]


def _scale_surface(name: str) -> _Scale:
    def scale(surface: Surface, prices: Prices, factor: float) -> _Case | None:
        before = getattr(surface, name)
        value = max(1, round(before * factor)) if isinstance(before, int) else before * factor
        return (surface.model_copy(update={name: value}), prices) if before else None

    return scale


def _scale_price(name: str) -> _Scale:
    def scale(surface: Surface, prices: Prices, factor: float) -> _Case | None:
        return surface, prices.model_copy(update={name: getattr(prices, name) * factor})

    return scale


def _scale_active_share(surface: Surface, prices: Prices, factor: float) -> _Case | None:
    """Scale the share of users who come, and the requests and events with them."""
    if surface.active_share * factor > 1:
        return None
    names = ("active_share", "requests_per_second", "events_per_second")
    return surface.model_copy(update={name: getattr(surface, name) * factor for name in names}), prices


def _scale_users(surface: Surface, prices: Prices, factor: float) -> _Case | None:
    """Scale the users, and the requests and events with them."""
    names = ("requests_per_second", "events_per_second")
    changed: dict[str, float] = {name: getattr(surface, name) * factor for name in names}
    return surface.model_copy(update={**changed, "users": max(1, round(surface.users * factor))}), prices


INPUTS: dict[str, _Scale] = {
    "active_share": _scale_active_share,
    "requests_per_second": _scale_surface("requests_per_second"),
    "users": _scale_users,
    "items": _scale_surface("items"),
    "staleness_hours": _scale_surface("staleness_hours"),
    "candidates_change_hours": _scale_surface("candidates_change_hours"),
    "p99_ms": _scale_surface("p99_ms"),
    "events_per_second": _scale_surface("events_per_second"),
    "core_hour": _scale_price("core_hour"),
    "gb_month": _scale_price("gb_month"),
    "gb_read": _scale_price("gb_read"),
}
"""What is varied: ``active_share`` and ``users`` with the requests and events of those users."""


def scale_input(name: str, surface: Surface, prices: Prices, factor: float) -> _Case:
    """Scale one of INPUTS, to a value that it can have."""
    scaled = INPUTS[name](surface, prices, factor)
    assert scaled is not None
    return scaled


def input_value(name: str, surface: Surface, prices: Prices) -> float:
    """Take the value of one of INPUTS."""
    return float(getattr(surface, name) if name in Surface.model_fields else getattr(prices, name))


def _find_flips(name: str, case: _Case, units: UnitCosts, mode: str | None) -> list[Flip]:
    """Find where an input flips the recommendation: the nearest value above, and the nearest below."""
    now = input_value(name, *case)
    found = []
    for above in (True, False):
        if now > 0 and (factor := _search(INPUTS[name], case, units, mode, above)) is not None:
            beyond = _mode_at(INPUTS[name], case, units, factor * (1.001 if above else 1 / 1.001))
            found.append(Flip(name, now, now * factor, above, None if beyond == "none" else beyond))
    return found


def _mode_at(scale: _Scale, case: _Case, units: UnitCosts, factor: float) -> str | None:
    """Give the mode that is recommended then; "none" where none is feasible, None where the input cannot have that value."""
    scaled = scale(*case, factor)
    if scaled is None or scaled[0].network_ms >= scaled[0].p99_ms:
        return None
    return choose_mode(_plan_all(scaled, units)) or "none"


def _search(scale: _Scale, case: _Case, units: UnitCosts, mode: str | None, above: bool) -> float | None:
    """Search the factor at which another mode is recommended: by steps to the first change, then by halves. None where there is none."""
    current, step = mode or "none", _LARGEST_FACTOR ** ((1 if above else -1) / _STEPS)
    same: float = 1.0
    other: float = step
    for n in range(1, _STEPS + 1):
        other = step**n
        reached = _mode_at(scale, case, units, other)
        if reached is None:
            return None
        if reached != current:
            break
        same = other
    else:
        return None
    while max(same, other) / min(same, other) > 1.0005:
        middle = math.sqrt(same * other)
        if _mode_at(scale, case, units, middle) == current:
            same = middle
        else:
            other = middle
    return other


def _sensitivities(case: _Case, units: UnitCosts, mode: str | None) -> tuple[tuple[str, float, float], ...]:
    if mode is None:
        return ()
    now = plan_mode(mode, *case, units).cost_per_day
    ratios = []
    for name, scale in INPUTS.items():
        doubled, halved = (
            plan_mode(mode, *scaled, units).cost_per_day / now if (scaled := scale(*case, factor)) else 1.0 for factor in (2.0, 0.5)
        )
        ratios.append((name, doubled, halved))
    return tuple(sorted(ratios, key=lambda one: -max(abs(math.log(one[1])), abs(math.log(one[2]))))[:3])
