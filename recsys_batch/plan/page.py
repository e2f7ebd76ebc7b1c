"""Renders a plan as one self-contained HTML file, in the style of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from recsys_batch import __version__
from recsys_batch.config import Prices
from recsys_batch.plan import text
from recsys_batch.plan.claims import Claim
from recsys_batch.plan.modes import MODE_TITLES
from recsys_batch.plan.pictures import draw_cost, draw_latency
from recsys_batch.plan.recommendation import Recommendation
from recsys_batch.plan.unit_costs import UnitCosts


def render_plan(recommendations: Mapping[str, Recommendation], claims: Sequence[Claim], units: UnitCosts, prices: Prices) -> str:
    """Render the page of a plan."""
    loader = ChoiceLoader([PackageLoader("recsys_batch.plan", "."), PackageLoader("recsys_batch.report", ".")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"money": text.format_money, "age": text.format_age}
    pictures = {
        name: [draw_cost(name, against, one, units, prices) for against in ("requests_per_second", "active_share")]
        for name, one in recommendations.items()
    }
    return environment.get_template("plan.html").render(
        recommendations=recommendations,
        pictures=pictures,
        latency=draw_latency(units),
        claims=claims,
        units=units,
        prices=prices,
        titles=MODE_TITLES,
        describe=text,
        release=__version__,
    )
