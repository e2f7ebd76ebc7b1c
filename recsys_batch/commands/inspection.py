"""evaluate, changes and show: how good the published lists are, what changed, and what they look like."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from recsys_batch.commands.ingest import read_truth
from recsys_batch.commands.options import DATE, ParsedType, json_option, with_config
from recsys_batch.commands.output import format_count, print_json, print_table
from recsys_batch.commands.source_options import source_options
from recsys_batch.config import Config
from recsys_batch.errors import UsageError

if TYPE_CHECKING:
    from recsys_batch.evaluation.bootstrap import Interval
    from recsys_batch.evaluation.evaluate import Evaluation, PreviousRun
    from recsys_batch.evaluation.exposure_evaluation import ExposureEvaluation
    from recsys_batch.evaluation.run_diff import ItemChanges, UserChanges


def _parse_list_lengths(text: str) -> tuple[int, ...]:
    ks = tuple(int(part) for part in text.split(","))
    if min(ks) < 1:
        raise ValueError(text)
    return ks


_LIST_LENGTHS = ParsedType("K[,K...]", _parse_list_lengths, "a list of positive whole numbers like 10,20")


@click.command("evaluate", help="Compare the published top-K, or what was shown online, with true later interactions.")
@click.option("--truth", metavar="PATH", help="Later interactions, in any format that ingest reads.")
@click.option("--holdout", is_flag=True, help="Interactions that ingest --holdout held out, or that arrived after the run.")
@click.option("--k", "ks", type=_LIST_LENGTHS, default=(10, 20), show_default="10,20", help="List lengths.")
@click.option("--run-id", help="A published run other than the current one.")
@click.option("--exposures", is_flag=True, help="What was shown (table exposures), and where places were swapped SNIPS of both orders.")
@click.option("--from", "first", type=DATE, help="--exposures: first UTC date of showing.")
@click.option("--to", "last", type=DATE, help="--exposures: last UTC date of showing.")
@click.option("--within", type=click.FloatRange(0, 24 * 366, min_open=True), default=24.0, show_default=True, help="--exposures: hours.")
@json_option
@source_options
@with_config
def evaluate_command(
    config: Config,
    truth: str | None,
    holdout: bool,
    exposures: bool,
    ks: tuple[int, ...],
    run_id: str | None,
    first: dt.date | None,
    last: dt.date | None,
    within: float,
    as_json: bool,
    **source: Any,
) -> None:
    from recsys_batch.dataset.seen_policy import make_seen_policy
    from recsys_batch.evaluation.evaluate import evaluate_run, read_holdout_truth
    from recsys_batch.read import published_run, run_rows
    from recsys_batch.tables.run_manifest import published_previously

    if (truth is not None) + holdout + exposures != 1:
        raise UsageError("pass either --truth PATH or --holdout or --exposures")
    warehouse = config.paths.warehouse
    if exposures:
        _evaluate_exposures(config, first, last, within, as_json=as_json)
        return
    run = published_run(warehouse, run_id)
    if truth is None:
        interactions, origin = read_holdout_truth(warehouse, run)
    else:
        interactions, origin = read_truth(config, truth, source), truth
    policy = make_seen_policy(config.retrieval.seen, run.run_date)
    previous = published_previously(run_rows(warehouse), run)
    result = evaluate_run(warehouse, run, interactions, origin, ks, config.data.min_weight, policy, previous)
    print_json(asdict(result)) if as_json else _print_evaluation(result)


def _evaluate_exposures(config: Config, first: dt.date | None, last: dt.date | None, within: float, *, as_json: bool) -> None:
    from recsys_batch.evaluation.exposure_evaluation import evaluate_exposures

    result = evaluate_exposures(config.paths.warehouse, first, last, dt.timedelta(hours=within), config.data.min_weight)
    print_json(asdict(result)) if as_json else _print_exposures(result)


@click.command("changes", help="Show what changed for a user or an item between two published nights, and why.")
@click.option("--user-id", help="Compare this user's lists.")
@click.option("--item-id", help="Compare this item's ranks in all lists.")
@click.option("--from", "before", metavar="RUN_ID", help="The earlier run.  [default: the one published before the later run]")
@click.option("--to", "now", metavar="RUN_ID", help="The later run.  [default: the current one]")
@click.option("--n", default=10, show_default=True, type=click.IntRange(1), help="Compare the first N items of the lists.")
@json_option
@with_config
def changes_command(
    config: Config, user_id: str | None, item_id: str | None, before: str | None, now: str | None, n: int, as_json: bool
) -> None:
    from recsys_batch.evaluation.run_diff import diff_item, diff_user
    from recsys_batch.read import published_before, published_run

    if (user_id is None) == (item_id is None):
        raise UsageError("pass either --user-id or --item-id")
    warehouse = config.paths.warehouse
    later = published_run(warehouse, now)
    earlier = published_run(warehouse, before) if before else published_before(warehouse, later)
    if user_id is not None:
        changes = diff_user(warehouse, user_id, earlier, later, n, config.retrieval.seen)
        print_json(asdict(changes)) if as_json else _print_user_changes(changes, n)
        return
    of_item = diff_item(warehouse, item_id, earlier, later)
    print_json(asdict(of_item)) if as_json else _print_item_changes(of_item)


def _print_user_changes(changes: UserChanges, n: int) -> None:
    rows = [
        (change.title, *("" if rank is None else str(rank) for rank in (change.before, change.now)), change.why)
        for change in (*changes.came, *changes.went)
    ]
    title = f"user {changes.user_id}: top {n} of {changes.now} against {changes.before}"
    models = changes.models[0] if changes.models[0] == changes.models[1] else " then ".join(changes.models)
    note = f"{changes.n_kept} items stayed; {changes.n_new_events} new interactions of the user; model version {models}"
    print_table(title, ("item", "rank before", "now", "why"), rows, left=(0, 3), note=note)


def _print_item_changes(changes: ItemChanges) -> None:
    medians = ["" if value is None else f"{value:g}" for value in changes.median_rank]
    available = ["not in the catalogue" if value is None else "yes" if value else "no" for value in changes.available]
    rows = [("lists with it", *map(format_count, changes.n_lists)), ("median rank there", *medians), ("available", *available)]
    note = f"{format_count(changes.n_new_events)} new interactions with it between the two"
    print_table(f"item {changes.item_id}: {changes.title}", ("", changes.before, changes.now), rows, note=note)


def _print_evaluation(result: Evaluation) -> None:
    """Print each metric of the model with its interval, beside popularity's; and the gain over the lists published before."""
    rows = [
        (
            name,
            f"{value:.4f}",
            _format_interval(result.intervals.get(name)),
            f"{result.popularity[name]:.4f}",
            _format_interval(result.gain_over_popularity.get(name), signed=True),
        )
        for name, value in result.model.items()
    ]
    left_out = [f"{format_count(result.n_seen)} relevant items that users had seen before"] if result.n_seen else []
    left_out += [f"{format_count(result.n_users_without_list)} users without a list"] if result.n_users_without_list else []
    counts = (
        f"{format_count(result.n_users)} users, {format_count(result.n_relevant)} relevant items; intervals of 95 % by resampling users"
    )
    note = f"{counts}; left out: {', '.join(left_out)}" if left_out else counts
    headings = ("metric", "model", "interval", "popularity", "gain")
    print_table(f"run {result.run_id} against {result.truth}", headings, rows, note=note)
    if result.previous is not None:
        _print_previous(result, result.previous)


def _print_previous(result: Evaluation, previous: PreviousRun) -> None:
    """Print whether the lists are better than those they replaced."""
    rows = [(name, f"{value:.4f}", _format_interval(previous.gain.get(name), signed=True)) for name, value in previous.model.items()]
    gain = next((of for name, of in previous.gain.items() if name.startswith("ndcg")), None)
    verdict = "no different, as far as these users can tell"
    if gain is not None and gain.excludes_zero:
        verdict = "better" if gain.low > 0 else "worse"
    models = "the same model" if previous.model_version == result.model_version else f"model version {previous.model_version}"
    note = f"{format_count(previous.n_users)} users with both lists; by NDCG run {result.run_id} is {verdict}"
    print_table(f"the lists before: run {previous.run_id}, {models}", ("metric", "before", "gain"), rows, note=note)


def _format_interval(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return ""
    return f"{interval.low:+.3f}..{interval.high:+.3f}" if signed else f"{interval.low:.3f}..{interval.high:.3f}"


_MAX_PLACES = 20


def _print_exposures(result: ExposureEvaluation) -> None:
    """Print the metrics of all answers, of each group and place, and what SNIPS says of the two orders."""
    groups = [("all", result.overall), *((f"{name} {value}", of) for name, by in result.by.items() for value, of in by.items())]
    rows = [
        (name, *map(format_count, (of.n_answers, of.n_users, of.n_hits)), *map(_format_rate, (of.hit_rate, of.ndcg, of.hits_per_item)))
        for name, of in groups
    ]
    hours = f"{result.within_hours:g} h"
    newest = f"newest interaction {result.newest_event:%Y-%m-%d %H:%M} UTC"
    note = f"{newest}; {format_count(result.n_open_answers)} answers left out that were not {hours} old then"
    title = f"shown {result.first_date} to {result.last_date}, hits within {hours}"
    print_table(title, ("", "answers", "users", "hits", "hit rate", "NDCG", "hits/item"), rows, note=note)
    places = [
        (str(of.position), *map(format_count, (of.n_shown, of.n_hits)), *map(_format_rate, (of.hits_per_item, of.low, of.high)))
        for of in result.positions
    ]
    left_out = f"{len(places) - _MAX_PLACES} more places: --json" if len(places) > _MAX_PLACES else None
    print_table("by place", ("place", "shown", "hits", "hits/item", "low", "high"), places[:_MAX_PLACES], note=left_out)
    orders = [
        (name, *map(_format_rate, (of.value, of.low, of.high)), format_count(of.effective_sample_size or 0))
        for name, of in result.policies.items()
    ]
    orders += [(f"{name} - ranker", *map(_format_rate, (of.value, of.low, of.high)), "") for name, of in result.differences.items()]
    header = ("order", "hits/item", "low", "high", "effective sample")
    print_table(f"SNIPS from {format_count(result.n_explored)} shown items with a propensity", header, orders)


def _format_rate(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


@click.command("show", help="Show some users' history and recommendations, with titles.")
@click.option("--users", "n_users", default=3, show_default=True, type=click.IntRange(1, 100), help="How many users.")
@click.option("--user-id", "user_ids", multiple=True, help="Show this user. Repeatable.")
@click.option("--n", default=10, show_default=True, type=click.IntRange(1), help="Items per list.")
@click.option("--run-id", help="A published run other than the current one.")
@json_option
@with_config
def show_command(config: Config, n_users: int, user_ids: tuple[str, ...], n: int, run_id: str | None, as_json: bool) -> None:
    from recsys_batch.evaluation.user_view import load_user_view, sample_users

    warehouse = config.paths.warehouse
    chosen = user_ids or sample_users(warehouse, run_id, n_users)
    views = [load_user_view(warehouse, user_id, run_id, n, config.data.min_weight) for user_id in chosen]
    if as_json:
        print_json({"users": [asdict(view) for view in views]})
        return
    for view in views:
        history = [*view.history, *[""] * max(0, len(view.topk) - len(view.history))]
        topk = [*view.topk, *[("", "")] * max(0, len(view.history) - len(view.topk))]
        numbers = map(str, range(1, len(topk) + 1))
        lines = [(number, liked, *recommended) for number, liked, recommended in zip(numbers, history, topk, strict=True)]
        print_table(f"user {view.user_id} ({view.source})", ("", "liked before, newest first", "recommended", "score"), lines, left=(1, 2))
