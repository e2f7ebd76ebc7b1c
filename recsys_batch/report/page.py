"""Renders a run as one self-contained HTML file: plots, tables and some users' lists."""

import math
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from recsys_batch import __version__
from recsys_batch.report.facts import RunFacts
from recsys_batch.report.plots import draw_plots

Verdicts = Mapping[str, Mapping[str, Any]]
"""gate -> value, limit, passed."""


def render_report(facts: RunFacts, gates: Verdicts, seen: bool) -> str:
    """Render the page of one run; ``seen``: readers follow it now."""
    environment = Environment(
        loader=PackageLoader("recsys_batch.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": format_figure, "percent": format_percent}
    return environment.get_template("page.html").render(
        facts=facts,
        run=facts.run,
        metrics=facts.run.metrics,
        plots=draw_plots(facts),
        gates=gates,
        refused=[name for name, gate in gates.items() if not gate["passed"]],
        seen=seen,
        release=__version__,
    )


def format_figure(value: float | None) -> str:
    """Format a number: 1,234,567, 0.0123; "unknown" where there is none."""
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"


def format_percent(value: float | None) -> str:
    """Format a share as a percentage; "unknown" where there is none."""
    return "unknown" if value is None or math.isnan(value) else f"{value:.1%}"
