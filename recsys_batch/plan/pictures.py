"""Pictures of a plan: cost against requests and active share with the points where modes cross, and latency against load."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from recsys_batch.config import Prices
from recsys_batch.plan.modes import MODE_TITLES, MODES, plan_mode
from recsys_batch.plan.queueing import p99_seconds
from recsys_batch.plan.recommendation import INPUTS, Recommendation, input_value, scale_input
from recsys_batch.plan.text import format_input
from recsys_batch.plan.unit_costs import UnitCosts
from recsys_batch.report.drawing import FIRST, INK, MUTED, SECOND, THIRD, WARN, make_axes, to_svg

_COLOURS = dict(zip(MODES, (FIRST, SECOND, THIRD, INK), strict=True))
_LABELS = {"requests_per_second": "requests per second (mean)", "active_share": "share of users who come on a day"}
_POINTS = 61


def draw_cost(name: str, against: str, recommendation: Recommendation, units: UnitCosts, prices: Prices) -> str:
    """Draw a surface's cost per day by mode against one of INPUTS, a hundredth to a hundredfold of now. Dashed where it is not feasible."""
    surface = recommendation.surface
    now = input_value(against, surface, prices)
    factors = [factor for factor in np.geomspace(0.01, 100, _POINTS) if INPUTS[against](surface, prices, factor) is not None]
    with make_axes(2.9) as (figure, axes):
        for mode in MODES:
            plans = [plan_mode(mode, *scale_input(against, surface, prices, factor), units) for factor in factors]
            values, costs = now * np.array(factors), np.array([plan.cost_per_day for plan in plans])
            feasible = np.array([plan.is_feasible for plan in plans])
            axes.plot(values, np.where(feasible, costs, np.nan), color=_COLOURS[mode], label=MODE_TITLES[mode])
            axes.plot(values, np.where(feasible, np.nan, costs), color=_COLOURS[mode], linestyle=":", linewidth=1.2)
        axes.axvline(now, color=MUTED, linewidth=1.0)
        axes.text(now, 0.97, "  now", transform=axes.get_xaxis_transform(), color=MUTED, fontsize=8.5, va="top")
        for flip in recommendation.flips:
            if flip.name == against and values[0] <= flip.value <= values[-1]:
                axes.axvline(flip.value, color=WARN, linewidth=1.2, linestyle="--")
                shown = f"  {format_input(against, flip.value)}"
                axes.text(flip.value, 0.5, shown, transform=axes.get_xaxis_transform(), color=WARN, fontsize=8.5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _write_plain_numbers(axes)
        axes.set_xlabel(_LABELS[against])
        axes.set_ylabel(f"{prices.currency} a day")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 1.32), ncols=2)
        return to_svg(figure, f"{name}-{against}")


def draw_latency(units: UnitCosts) -> str:
    """Draw the 99th percentile of an answer against the load of the cores, ranked and read, for few cores and many."""
    loads = np.linspace(0.05, 0.97, _POINTS)
    with make_axes(2.9) as (figure, axes):
        for (label, seconds, alone), colour in zip(
            (("ranked", units.rank, units.rank_p99), ("read", units.lookup, units.lookup_p99)), (FIRST, SECOND), strict=True
        ):
            for cores, style in ((2, "-"), (16, "--")):
                times = [1000 * p99_seconds(cores, load * cores / seconds, seconds, alone) for load in loads]
                axes.plot(100 * loads, times, color=colour, linestyle=style, label=f"{label}, {cores} cores")
        axes.set_yscale("log")
        _write_plain_numbers(axes)
        axes.set_xlabel("load of the cores, %")
        axes.set_ylabel("p99, ms")
        axes.legend(fontsize=8)
        return to_svg(figure, "latency")


def _write_plain_numbers(axes: Axes) -> None:
    """Write 0.1, 1, 1,000 at the ticks, not powers of ten."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_formatter(NullFormatter())
