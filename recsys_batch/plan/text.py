"""A plan as plain text of 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping

from recsys_batch.config import Prices
from recsys_batch.plan.capacity import FleetCapacity, NightCapacity
from recsys_batch.plan.claims import Claim
from recsys_batch.plan.modes import MODE_TITLES, ModePlan
from recsys_batch.plan.recommendation import Flip, Recommendation

_COLUMNS = 80
_INPUT_TITLES = {
    "active_share": "the share of users who come on a day",
    "requests_per_second": "the rate of requests per second",
    "users": "the number of users",
    "items": "the number of items",
    "staleness_hours": "the tolerated staleness in hours",
    "candidates_change_hours": "the time for a new item to appear, in hours,",
    "p99_ms": "the p99 in ms",
    "events_per_second": "the rate of events per second",
    "core_hour": "the price of a core-hour",
    "gb_month": "the price of a GB-month",
    "gb_read": "the price of a GB read",
}


def format_plan(recommendations: Mapping[str, Recommendation], claims: Iterable[Claim], prices: Prices) -> str:
    """Format the recommendation for each surface, the claims, and what the money is in."""
    lines: list[str] = []
    for name, recommendation in recommendations.items():
        lines += [*_format_surface(name, recommendation, prices), ""]
    lines.append("What people say, here:")
    for claim in claims:
        lines += _wrap(f'"{claim.said}": {claim.here} ({claim.compared})', "  ")
    lines += ["", *_wrap(f"Prices in {prices.currency}, yours to set in [prices], as of {prices.as_of}: {_price_line(prices)}.", "")]
    return "\n".join(lines)


def _price_line(prices: Prices) -> str:
    return f"core-hour {prices.core_hour:g}, GB-month {prices.gb_month:g}, GB read {prices.gb_read:g}"


def _format_surface(name: str, recommendation: Recommendation, prices: Prices) -> list[str]:
    lines = _wrap(f"{name}: {describe_choice(recommendation, prices)}", "")
    for sentence in (describe_flip(recommendation), describe_sensitivity(recommendation)):
        lines += _wrap(sentence, "  ") if sentence else []
    header = f"  {'':<29}{prices.currency + '/day':>10}{'/million':>10}{'cores':>7}{'nodes':>7}{'p99 ms':>8}{'age':>7}"
    lines.append(header.rstrip())
    for plan in recommendation.plans.values():
        mark = "*" if plan.mode == recommendation.mode else " "
        if plan.is_feasible:
            lines.append(f" {mark}{MODE_TITLES[plan.mode]:<29}{_row(plan)}")
        else:
            lines += _wrap(f"{MODE_TITLES[plan.mode]}: no, {'; '.join(plan.reasons)}", "  ", "    ")
    return lines


def _row(plan: ModePlan) -> str:
    money = f"{format_money(plan.cost_per_day):>10}{format_money(plan.cost_per_million):>10}"
    machines = f"{shorten_count(plan.serving_cores):>7}{shorten_count(plan.nodes):>7}"
    return f"{money}{machines}{plan.p99_ms:>8.1f}{format_age(plan.freshness_seconds):>7}"


def describe_choice(recommendation: Recommendation, prices: Prices) -> str:
    """Say which mode is recommended, and what it costs."""
    if recommendation.mode is None:
        return "no mode does this; each says why below."
    plan = recommendation.plans[recommendation.mode]
    tie = f", a tie with {' and '.join(MODE_TITLES[other] for other in recommendation.ties)}" if recommendation.ties else ""
    return f"{MODE_TITLES[plan.mode]}, {format_money(plan.cost_per_day)} {prices.currency} a day{tie}."


def describe_flip(recommendation: Recommendation) -> str:
    """Say the one number that would change the recommendation: the input that is nearest to it."""
    if not recommendation.flips:
        return "Nothing within a thousandfold of an input changes that." if recommendation.mode else ""
    return format_flip(recommendation.flips[0], recommendation.mode)


def format_flip(flip: Flip, mode: str | None) -> str:
    """Say where an input flips the recommendation."""
    before, after = (MODE_TITLES[one] if one else "nothing" for one in (mode, flip.mode))
    change = "rises above" if flip.above else "falls below"
    value, now = format_input(flip.name, flip.value), format_input(flip.name, flip.now)
    return f"{before[0].upper()}{before[1:]} unless {_INPUT_TITLES[flip.name]} {change} {value} (now {now}): then {after}."


def describe_sensitivity(recommendation: Recommendation) -> str:
    """Say what the cost depends on most."""
    parts = [f"{_INPUT_TITLES[name]} x2: cost x{doubled:.2f}, /2: x{halved:.2f}" for name, doubled, halved in recommendation.sensitivities]
    return f"Its cost depends most on: {'; '.join(parts)}." if parts else ""


def format_night(night: NightCapacity) -> str:
    """Format the capacity of a night."""
    lines = _wrap(f"A night of {night.users:,} users x {night.items:,} items x {night.dim} ({night.range_note}):", "")
    figures = {
        "cores": f"{night.cores:,} in {night.executors:,} executors, {night.executor_memory_gb:,.1f} GB of memory each",
        "time": f"{night.hours:.2f} h",
        "disk": f"{night.disk_gb:,.1f} GB for two runs, {night.shuffle_gb:,.1f} GB shuffled",
        "core-seconds": ", ".join(f"{name} {share:.0%}" for name, share in night.shares),
        "bottleneck": night.bottleneck,
    }
    return "\n".join([*lines, *(line for name, value in figures.items() for line in _wrap(f"{name}: {value}", "  ", "    "))])


def format_fleet(fleet: FleetCapacity | None, rate: float, p99_ms: float) -> str:
    """Format the capacity of a fleet of servers."""
    if fleet is None:
        return f"No number of servers ranks with a p99 of {p99_ms:g} ms: one answer alone takes longer."
    return "\n".join(
        _wrap(
            f"{rate:,.0f} ranked requests/s at a p99 of {p99_ms:g} ms: {fleet.workers:,} workers on {fleet.machines:,} machines "
            f"(p99 {fleet.p99_ms:.1f} ms).",
            "",
        )
    )


def format_input(name: str, value: float) -> str:
    """Format the value of an input."""
    if name == "active_share":
        return f"{value:.3%}" if value < 0.01 else f"{value:.1%}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def shorten_count(n: int) -> str:
    """Shorten a number of cores or machines to six columns: 12,345, 123k, 3.5M."""
    return f"{n / 1e6:.1f}M" if n >= 1_000_000 else f"{n / 1e3:.0f}k" if n >= 100_000 else f"{n:,}"


def format_money(value: float) -> str:
    """Format an amount."""
    return "never" if math.isinf(value) else f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def format_age(seconds: float) -> str:
    """Format an age: 0, 2.5 s, 14 h."""
    if seconds == 0:
        return "0"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _wrap(text: str, indent: str, following: str | None = None) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, initial_indent=indent, subsequent_indent=indent if following is None else following)
