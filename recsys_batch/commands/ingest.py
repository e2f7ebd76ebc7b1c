"""ingest and generate: fill the tables interactions, items and users."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from recsys_batch.commands.options import json_option, with_config
from recsys_batch.commands.output import format_count, print_json, print_result, print_table
from recsys_batch.commands.source_options import read_formats, source_options
from recsys_batch.config import Config
from recsys_batch.errors import UsageError
from recsys_batch.sources.source_format import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

    from recsys_batch.spark.ingest.summary import IngestSummary


@click.command("ingest", help="Validate and load interactions, items and users; rows that cannot be used go to the table rejected.")
@click.option("--source", "sources", multiple=True, metavar="PATH", help="Interactions: a file, a folder of files, or a glob. Repeatable.")
@click.option("--items", multiple=True, metavar="PATH", help="Items; without any the catalogue is derived from interactions. Repeatable.")
@click.option("--item-columns", metavar="OURS=THEIRS,...", help="item_id, title, categories, is_available, first_seen_ts, updated_ts.")
@click.option("--users", multiple=True, metavar="PATH", help="Users (optional). Repeatable.")
@click.option("--user-columns", metavar="OURS=THEIRS,...", help="user_id, segment, updated_ts.")
@click.option("--holdout", type=click.FloatRange(0, 0.9), default=0.0, help="Hold out this newest share of the positives.")
@click.option("--split", type=click.Choice(SPLITS), default="auto", show_default=True, help="How it is chosen.")
@click.option("--max-rejected-share", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Beyond it nothing is written.")
@json_option
@source_options
@with_config
def ingest_command(config: Config, sources: tuple[str, ...], as_json: bool, holdout: float, split: str, **options: Any) -> None:
    from recsys_batch.night.run_locks import user_rows_lock
    from recsys_batch.spark.ingest.pipeline import run_ingest
    from recsys_batch.spark.ingest.sources import IngestRequest
    from recsys_batch.spark.session import get_session

    if not (sources or options["items"] or options["users"]):
        raise UsageError("pass --source PATH, --items PATH or --users PATH")
    formats = read_formats(config, options)
    request = IngestRequest(
        sources=sources,
        format=formats["interactions"],
        items=options["items"],
        item_format=formats["items"],
        users=options["users"],
        user_format=formats["users"],
        holdout=holdout,
        split=split,
        max_rejected_share=options["max_rejected_share"],
    )
    with user_rows_lock(config):
        summary = run_ingest(get_session(config), config, request)
    print_json(asdict(summary)) if as_json else _print_summary(summary)


def _print_summary(summary: IngestSummary) -> None:
    counts = {
        "read": [s.read for s in summary.kinds.values()],
        "accepted": [s.accepted for s in summary.kinds.values()],
        "held out": [s.held_out for s in summary.kinds.values()],
        "already there": [s.already_present for s in summary.kinds.values()],
        "superseded": [s.superseded for s in summary.kinds.values()],
        "rejected": [sum(s.rejected.values()) for s in summary.kinds.values()],
    }
    if not any(counts["superseded"]):
        del counts["superseded"]
    rows = [(kind, *(format_count(column[i]) for column in counts.values())) for i, kind in enumerate(summary.kinds)]
    print_table("ingested", ("rows", *counts), rows)
    for kind, s in summary.kinds.items():
        for reason, n in sorted(s.rejected.items()):
            click.echo(f"rejected {format_count(n)} {kind}: {reason}")
    if summary.n_categories:
        click.echo(f"{format_count(summary.n_categories)} distinct categories")
    for note in summary.notes:
        click.echo(note)
    if summary.first_event and summary.last_event:
        ids = f"user_id {summary.ids.user}, item_id {summary.ids.item}"
        click.echo(f"events from {summary.first_event:%Y-%m-%d} to {summary.last_event:%Y-%m-%d}; {ids}")


def read_truth(config: Config, truth: str, options: dict[str, Any]) -> pa.Table:
    """Read later interactions from a file, in any format of ingest; ``options`` are those of ``source_options``."""
    from recsys_batch.spark.ingest.pipeline import read_interactions
    from recsys_batch.spark.ingest.sources import IngestRequest
    from recsys_batch.spark.session import get_session

    if options["file_format"] is None and options["preset"] is None:
        raise UsageError("--truth PATH needs --format or --preset, as ingest does")
    request = IngestRequest(sources=(truth,), format=read_formats(config, options)["interactions"])
    return read_interactions(get_session(config), config, request)


@click.command("generate", help="Write synthetic users, items and interactions of any size, with tastes that a model can learn.")
@click.option("--users", "n_users", type=click.IntRange(1), required=True, help="Number of users.")
@click.option("--items", "n_items", type=click.IntRange(1), required=True, help="Number of items.")
@click.option("--events", "n_events", type=click.IntRange(1), required=True, help="Number of interactions, before duplicates.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same rows.")
@json_option
@with_config
def generate_command(config: Config, n_users: int, n_items: int, n_events: int, seed: int, as_json: bool) -> None:
    from recsys_batch.spark.generate import generate_tables as run_generate
    from recsys_batch.spark.session import get_session

    written = run_generate(get_session(config), config, n_users, n_items, n_events, seed)
    print_result(dict(written), ", ".join(f"{format_count(n)} {name}" for name, n in written.items()), as_json=as_json)
