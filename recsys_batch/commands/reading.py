"""evaluate and show: how good the published lists are, and what they look like."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from recsys_batch.commands.ingesting import source_options
from recsys_batch.commands.options import Ks, with_config
from recsys_batch.config import Config
from recsys_batch.errors import UsageError
from recsys_batch.terminal import console, count, print_table

if TYPE_CHECKING:
    from recsys_batch.evaluate import Evaluation


@click.command(help="Compare the published top-K with true later interactions, beside popularity.")
@click.option("--truth", metavar="PATH", help="Later interactions, in any format that ingest reads.")
@click.option("--holdout", is_flag=True, help="What ingest --holdout kept back, or what arrived after the run.")
@click.option("--k", "ks", type=Ks(), default=(10, 20), show_default="10,20", help="List lengths.")
@click.option("--run-id", help="A published run other than the current one.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@source_options(required=False)
@with_config
def evaluate(
    config: Config, truth: str | None, holdout: bool, ks: tuple[int, ...], run_id: str | None, as_json: bool, **source: Any
) -> None:
    from recsys_batch.evaluate import evaluate as run_evaluation
    from recsys_batch.evaluate import holdout_truth
    from recsys_batch.read import published_run

    if (truth is None) == (not holdout):
        raise UsageError("pass either --truth PATH or --holdout")
    warehouse = config.paths.warehouse
    run = published_run(warehouse, run_id)
    if truth is None:
        interactions, origin = holdout_truth(warehouse, run)
    else:
        from recsys_batch.commands.ingesting import read_truth

        interactions, origin = read_truth(config, truth, **source), truth
    result = run_evaluation(warehouse, run, interactions, origin, ks, config.data.min_weight)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    print_evaluation(result)


def print_evaluation(result: Evaluation) -> None:
    """Each metric of the model beside popularity's."""
    rows = [
        (
            name,
            f"{value:.4f}",
            f"{result.popularity[name]:.4f}",
            f"{value / result.popularity[name]:.2f}x" if result.popularity[name] else "",
        )
        for name, value in result.model.items()
    ]
    print_table(f"run {result.run_id} against {result.truth}", ("metric", "model", "popularity", "ratio"), rows)
    left_out = f"; {count(result.n_users_without_list)} users without a list left out" if result.n_users_without_list else ""
    console().print(f"{count(result.n_users)} users, {count(result.n_relevant)} relevant items{left_out}")


@click.command(help="Some users' history and recommendations, with titles.")
@click.option("--users", "n_users", default=3, show_default=True, type=click.IntRange(1, 100), help="How many users.")
@click.option("--user-id", "user_ids", multiple=True, help="These users. Repeatable.")
@click.option("--n", default=10, show_default=True, type=click.IntRange(1), help="Items per list.")
@click.option("--run-id", help="A published run other than the current one.")
@with_config
def show(config: Config, n_users: int, user_ids: tuple[str, ...], n: int, run_id: str | None) -> None:
    from recsys_batch.show import some_users, user_view

    warehouse = config.paths.warehouse
    for user_id in user_ids or some_users(warehouse, run_id, n_users):
        view = user_view(warehouse, user_id, run_id, n, config.data.min_weight)
        history = [*view.history, *[""] * max(0, len(view.topk) - len(view.history))]
        topk = [*view.topk, *[("", "")] * max(0, len(view.history) - len(view.topk))]
        lines = [
            (str(place), liked, title, score) for place, (liked, (title, score)) in enumerate(zip(history, topk, strict=True), start=1)
        ]
        print_table(f"user {view.user_id} ({view.source})", ("", "liked before, newest first", "recommended", "score"), lines, left=(1, 2))
