"""ingest and generate: fill the tables interactions, items and users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from recsys_batch.commands.options import json_option, parse_mapping, with_config
from recsys_batch.commands.output import format_count, print_json, print_result, print_table
from recsys_batch.config import Config
from recsys_batch.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from recsys_batch.spark.ingest.summary import IngestSummary

_FORMATS = click.Choice(["movielens", "csv", "parquet", "delta", "exposures"])


def source_options(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --format, --columns and --delimiter, which ingest and evaluate --truth share."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        columns = "The files' column names, e.g. user_id=customer,item_id=sku,event_ts=when,weight=amount,event_type=kind."
        command = click.option("--delimiter", default=",", show_default=True, help="Delimiter of CSV files; $'\\t' is a tab.")(command)
        command = click.option("--columns", metavar="OURS=THEIRS,...", help=columns)(command)
        return click.option("--format", "file_format", type=_FORMATS, required=required, help="Format of the files.")(command)

    return add


@click.command("ingest", help="Validate and load interactions, items and users; rows that cannot be used go to the table rejected.")
@click.option("--source", metavar="PATH", help="Interactions: a file, a folder of files, or a glob.")
@click.option("--items", metavar="PATH", help="Items file; without one the catalogue is derived from interactions.")
@click.option("--item-columns", metavar="OURS=THEIRS,...", help="item_id, title, categories, is_available, first_seen_ts.")
@click.option("--users", metavar="PATH", help="Users file (optional).")
@click.option("--user-columns", metavar="OURS=THEIRS,...", help="user_id, segment.")
@click.option("--holdout", type=click.FloatRange(0, 0.9), default=0.0, help="Hold out this newest share of each user's positives.")
@json_option
@source_options(required=True)
@with_config
def ingest_command(config: Config, source: str | None, as_json: bool, holdout: float, **options: Any) -> None:
    from recsys_batch.night.run_locks import user_rows_lock
    from recsys_batch.spark.ingest.pipeline import run_ingest
    from recsys_batch.spark.ingest.sources import IngestRequest
    from recsys_batch.spark.session import get_session

    if not (source or options["items"] or options["users"]):
        raise UsageError("pass --source PATH, --items PATH or --users PATH")
    request = IngestRequest(
        source=source,
        format=options["file_format"],
        columns=parse_mapping("--columns", options["columns"]),
        delimiter=options["delimiter"],
        items=options["items"],
        item_columns=parse_mapping("--item-columns", options["item_columns"]),
        users=options["users"],
        user_columns=parse_mapping("--user-columns", options["user_columns"]),
        holdout=holdout,
    )
    with user_rows_lock(config):
        summary = run_ingest(get_session(config), config, request)
    print_json(asdict(summary)) if as_json else _print_summary(summary)


def _print_summary(summary: IngestSummary) -> None:
    rows = [
        (kind, *map(format_count, (s.read, s.accepted, s.held_out, s.already_present, sum(s.rejected.values()))))
        for kind, s in summary.kinds.items()
    ]
    print_table("ingested", ("rows", "read", "accepted", "held out", "already there", "rejected"), rows)
    for kind, s in summary.kinds.items():
        for reason, n in sorted(s.rejected.items()):
            click.echo(f"rejected {format_count(n)} {kind}: {reason}")
    for note in summary.notes:
        click.echo(note)
    if summary.first_event and summary.last_event:
        ids = f"user_id {summary.ids.user}, item_id {summary.ids.item}"
        click.echo(f"events from {summary.first_event:%Y-%m-%d} to {summary.last_event:%Y-%m-%d}; {ids}")


def read_truth(config: Config, truth: str, file_format: str | None, columns: str | None, delimiter: str) -> pa.Table:
    """Read later interactions from a file, in any format of ingest."""
    from recsys_batch.spark.ingest.pipeline import read_interactions
    from recsys_batch.spark.ingest.sources import IngestRequest
    from recsys_batch.spark.session import get_session

    if file_format is None:
        raise UsageError("--truth PATH needs --format, as ingest does")
    request = IngestRequest(source=truth, format=file_format, columns=parse_mapping("--columns", columns), delimiter=delimiter)
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
