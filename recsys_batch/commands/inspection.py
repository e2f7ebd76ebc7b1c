"""evaluate, changes and show: how good the published lists are, what changed, and what they look like."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from recsys_batch.commands.ingest import source_options
from recsys_batch.commands.json_output import json_option, print_json
from recsys_batch.commands.options import KListType, with_config
from recsys_batch.commands.terminal import console, format_count, print_table
from recsys_batch.config import Config
from recsys_batch.errors import UsageError

if TYPE_CHECKING:
    from recsys_batch.evaluation.evaluate import Evaluation
    from recsys_batch.evaluation.run_diff import ItemChanges, UserChanges


@click.command("evaluate", help="Compare the published top-K with true later interactions, beside popularity.")
@click.option("--truth", metavar="PATH", help="Later interactions, in any format that ingest reads.")
@click.option("--holdout", is_flag=True, help="Interactions that ingest --holdout held out, or that arrived after the run.")
@click.option("--k", "ks", type=KListType(), default=(10, 20), show_default="10,20", help="List lengths.")
@click.option("--run-id", help="A published run other than the current one.")
@json_option
@source_options(required=False)
@with_config
def evaluate_command(
    config: Config, truth: str | None, holdout: bool, ks: tuple[int, ...], run_id: str | None, as_json: bool, **source: Any
) -> None:
    from recsys_batch.evaluation.evaluate import evaluate_run as run_evaluation
    from recsys_batch.evaluation.evaluate import read_holdout_truth
    from recsys_batch.read import published_run

    if (truth is None) == (not holdout):
        raise UsageError("pass either --truth PATH or --holdout")
    warehouse = config.paths.warehouse
    run = published_run(warehouse, run_id)
    if truth is None:
        interactions, origin = read_holdout_truth(warehouse, run)
    else:
        from recsys_batch.commands.ingest import read_truth

        interactions, origin = read_truth(config, truth, **source), truth
    result = run_evaluation(warehouse, run, interactions, origin, ks, config.data.min_weight)
    if as_json:
        print_json(asdict(result))
        return
    print_evaluation(result)


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
        changes = diff_user(warehouse, user_id, earlier, later, n)
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
    if rows:
        print_table(title, ("item", "rank before", "now", "why"), rows, left=(0, 3))
    models = changes.models[0] if changes.models[0] == changes.models[1] else " then ".join(changes.models)
    console().print(f"{changes.n_kept} items stayed; {changes.n_new_events} new interactions of the user; model version {models}")


def _print_item_changes(changes: ItemChanges) -> None:
    def median(value: float | None) -> str:
        return "" if value is None else f"{value:g}"

    def available(value: bool | None) -> str:
        return "not in the catalogue" if value is None else "yes" if value else "no"

    rows = [
        ("lists with it", format_count(changes.n_lists[0]), format_count(changes.n_lists[1])),
        ("median rank there", median(changes.median_rank[0]), median(changes.median_rank[1])),
        ("available", available(changes.available[0]), available(changes.available[1])),
    ]
    print_table(f"item {changes.item_id}: {changes.title}", ("", changes.before, changes.now), rows)
    console().print(f"{format_count(changes.n_new_events)} new interactions with it between the two")


def print_evaluation(result: Evaluation) -> None:
    """Print each metric of the model beside popularity's."""
    rows = [
        (name, f"{value:.4f}", f"{popular:.4f}", f"{value / popular:.2f}x" if popular else "")
        for (name, value), popular in zip(result.model.items(), (result.popularity[name] for name in result.model), strict=True)
    ]
    print_table(f"run {result.run_id} against {result.truth}", ("metric", "model", "popularity", "ratio"), rows)
    left_out = f"; {format_count(result.n_users_without_list)} users without a list left out" if result.n_users_without_list else ""
    console().print(f"{format_count(result.n_users)} users, {format_count(result.n_relevant)} relevant items{left_out}")


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
        lines = [
            (str(number), liked, title, score) for number, (liked, (title, score)) in enumerate(zip(history, topk, strict=True), start=1)
        ]
        print_table(f"user {view.user_id} ({view.source})", ("", "liked before, newest first", "recommended", "score"), lines, left=(1, 2))
