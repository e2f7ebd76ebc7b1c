"""plan: which surface is served how, and at what cost."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recsys_batch.commands.options import json_option, with_config_if_any
from recsys_batch.commands.output import print_result
from recsys_batch.config import Config
from recsys_batch.errors import UsageError

if TYPE_CHECKING:
    from recsys_batch.plan.installation import NightSample
    from recsys_batch.plan.recommendation import Recommendation
    from recsys_batch.plan.unit_costs import UnitCosts


_LISTS = ("candidates", "topk", "user_embeddings")
"""Tables of a night that grow with the users."""


@click.command("plan", help="Say which surface should be served how, what it costs, and what would change that.")
@click.option(
    "--surfaces", type=click.Path(path_type=Path), default="conf/surfaces.toml", show_default=True, help="TOML file: [surface.NAME] ..."
)
@click.option("--measure", is_flag=True, help="Time each piece of work on this machine first, in under two minutes.")
@click.option("--metrics", metavar="URL", help="A server's /metrics, whose ranked answers are taken for the trial's.")
@click.option("--night", is_flag=True, help="Plan a night's cluster instead, and servers with --rate.")
@click.option("--users", type=click.IntRange(1), help="--night: its users.")
@click.option("--items", type=click.IntRange(1), help="--night: items of the catalogue.")
@click.option("--dim", type=click.IntRange(4, 1024), default=64, show_default=True, help="--night: width of the embeddings.")
@click.option("--hours", type=click.FloatRange(0.1, 24), default=4.0, show_default=True, help="--night: that it may take.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="--night: ranked requests per second of the servers.")
@click.option("--p99-ms", type=click.FloatRange(0, min_open=True), default=50.0, show_default=True, help="--night: of an answer.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Also write a page of pictures.")
@json_option
@with_config_if_any
def plan_command(
    config: Config,
    surfaces: Path,
    measure: bool,
    metrics: str | None,
    night: bool,
    users: int | None,
    items: int | None,
    dim: int,
    hours: float,
    rate: float | None,
    p99_ms: float,
    out: Path | None,
    as_json: bool,
) -> None:
    if night and (users is None or items is None):
        raise UsageError("--night needs --users N and --items M")
    if not night and (users is not None or items is not None or rate is not None):
        raise UsageError("--users, --items and --rate are of --night: a surface's are in its file")
    units, samples = _unit_costs(config, measure, metrics)
    if night:
        assert users is not None and items is not None
        _plan_night(config, units, samples, users, items, dim, hours, rate, p99_ms, as_json)
    else:
        _plan_surfaces(config, surfaces, units, out, as_json)


def _unit_costs(config: Config, measure: bool, metrics: str | None) -> tuple[UnitCosts, list[NightSample]]:
    """Gather unit costs: a trial's, those of nights that ran here in place of them, and those of a server's metrics."""
    from recsys_batch.plan.cost_book import load_trial, save_trial, this_machine
    from recsys_batch.plan.installation import costs_of_nights, costs_of_server, costs_of_tables, fetch_metrics, night_samples

    state = Path(config.paths.state)
    if measure:
        from recsys_batch.plan.trial import measure_unit_costs

        trial = save_trial(state, measure_unit_costs(lambda what: click.echo(f"timing {what} ...", err=True)))
    else:
        trial = load_trial(state)
    if trial.machine != this_machine():
        click.echo(f"unit costs are of another machine ({trial.machine}): plan --measure times this one", err=True)
    units, samples = trial.costs, []
    with contextlib.suppress(ModuleNotFoundError):  # without the extra read no table tells more
        from recsys_batch.read import run_files, run_rows
        from recsys_batch.tables.run_manifest import latest_state_by_run, newest_published

        warehouse = config.paths.warehouse
        rows = run_rows(warehouse)
        samples = night_samples(latest_state_by_run(rows).values())
        units = costs_of_nights(samples, units)
        if (published := newest_published(rows)) is not None:
            files = (part for name in _LISTS for part in run_files(warehouse, name, published).parts)
            units = costs_of_tables(sum(part.n_bytes for part in files), published, units)
    if metrics is not None:
        units = costs_of_server(fetch_metrics(metrics), metrics, units)
    return units, samples


def _plan_surfaces(config: Config, path: Path, units: UnitCosts, out: Path | None, as_json: bool) -> None:
    from recsys_batch.plan.claims import check_claims
    from recsys_batch.plan.recommendation import recommend
    from recsys_batch.plan.surfaces import load_surfaces
    from recsys_batch.plan.text import format_plan

    surfaces, prices = load_surfaces(path), config.prices
    recommendations = {name: recommend(surface, units, prices) for name, surface in surfaces.items()}
    name = max(surfaces, key=lambda one: (surfaces[one].context == "none", surfaces[one].requests_per_second))
    claims = check_claims(surfaces[name], name, units, prices)
    if out is not None:
        from recsys_batch.plan.page import render_plan
        from recsys_batch.storage.atomic import write_file

        try:
            write_file(out, render_plan(recommendations, claims, units, prices))
        except OSError as error:
            raise UsageError(f"--out {out} cannot be written: {error.strerror}") from error
    result = {
        "surfaces": {name: _as_json(one) for name, one in recommendations.items()},
        "claims": [asdict(claim) for claim in claims],
        "unit_costs": asdict(units),
        "prices": prices.model_dump(),
        "out": None if out is None else str(out),
    }
    print_result(result, format_plan(recommendations, claims, prices), as_json=as_json)


def _as_json(recommendation: Recommendation) -> dict[str, Any]:
    plans: dict[str, Any] = {}
    for mode, plan in recommendation.plans.items():
        p99_ms = plan.p99_ms if math.isfinite(plan.p99_ms) else None
        plans[mode] = {**asdict(plan), "feasible": plan.is_feasible, "cost_per_day": plan.cost_per_day, "p99_ms": p99_ms}
    return {
        "mode": recommendation.mode,
        "ties": recommendation.ties,
        "flips": [asdict(flip) for flip in recommendation.flips],
        "sensitivities": [{"input": name, "doubled": up, "halved": down} for name, up, down in recommendation.sensitivities],
        "plans": plans,
    }


def _plan_night(
    config: Config,
    units: UnitCosts,
    samples: list[NightSample],
    users: int,
    items: int,
    dim: int,
    hours: float,
    rate: float | None,
    p99_ms: float,
    as_json: bool,
) -> None:
    from recsys_batch.plan import trial
    from recsys_batch.plan.capacity import plan_fleet, plan_night
    from recsys_batch.plan.installation import MIN_USERS
    from recsys_batch.plan.text import format_fleet, format_night

    known = [sample.users for sample in samples if sample.users >= MIN_USERS]
    night = plan_night(
        users, items, dim, units, config.prices, hours=hours, measured_users=max(known, default=trial.N_USERS), measured_dim=trial.DIM
    )
    sentence, result = format_night(night), {"night": {**asdict(night), "bottleneck": night.bottleneck}}
    if rate is not None:
        fleet = plan_fleet(rate, p99_ms, units, config.prices)
        sentence += "\n" + format_fleet(fleet, rate, p99_ms)
        result["fleet"] = {} if fleet is None else asdict(fleet)
    print_result(result, sentence, as_json=as_json)
