"""erase: remove a person from everything that the warehouse and its servers keep."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recsys_batch.commands.night import find_table_folders
from recsys_batch.commands.options import json_option, with_config
from recsys_batch.commands.output import format_count, print_json, print_table
from recsys_batch.config import Config
from recsys_batch.errors import RecsysBatchError, UsageError
from recsys_batch.schemas import TABLES

if TYPE_CHECKING:
    from recsys_batch.erasure.eraser import ErasureReport

_OUTSIDE = (
    "not looked at: backups, object versions that a store keeps, topics of Kafka, source files, digests and reports that were written; "
    "a model keeps what it learned until it is trained again"
)


@click.command("erase", help="Remove users from every table and its old versions, snapshots, Redis and logs, and keep them out.")
@click.option("--user-id", "user_ids", multiple=True, help="A user. Repeatable.")
@click.option("--file", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="One user a line.")
@click.option("--dry-run", is_flag=True, help="Say where rows are; change nothing.")
@json_option
@with_config
def erase_command(config: Config, user_ids: tuple[str, ...], file: Path | None, dry_run: bool, as_json: bool) -> None:
    from recsys_batch.erasure.eraser import Places, erase_users
    from recsys_batch.online.settings import REDIS_URL

    lines = file.read_text(encoding="utf-8").splitlines() if file is not None else []
    ids = [text for text in (*user_ids, *(line.strip() for line in lines)) if text]
    if not ids:
        raise UsageError("pass --user-id U, or --file with one user a line")
    places = Places(config, find_table_folders(config, TABLES), os.environ.get(REDIS_URL))
    report = erase_users(places, ids, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "done": report.is_done and not dry_run, **asdict(report), "outside": _OUTSIDE})
    else:
        _print_report(report, dry_run)
    if not report.is_done:
        raise RecsysBatchError("something is left: was it written meanwhile? Run the same command again")


def _print_report(report: "ErasureReport", dry_run: bool) -> None:
    places = [place for place in {**report.found, **report.left} if report.found.get(place) or report.left.get(place)]
    counts = [(report.found.get(place, 0), report.left.get(place, 0)) for place in places]
    rows = [(place, format_count(n), "" if dry_run else format_count(left)) for place, (n, left) in zip(places, counts, strict=True)]
    print_table("would be erased" if dry_run else "erased", ("place", "found", "left"), rows)
    if not rows:
        click.echo("nothing was found of " + ("this user" if report.n_users == 1 else f"these {report.n_users} users"))
    if dry_run:
        return
    click.echo(f"{format_count(report.n_users)} users have a tombstone, {format_count(report.tombstones)} in all: ingests leave them out")
    click.echo(
        f"old versions keep no file that had a row of theirs (VACUUM at {report.retention_hours} hours, of those files alone); "
        f"all others stay for {report.other_files_days} days (tables.retention_days)"
    )
    click.echo("servers load what was written again by themselves, within a second or two")
    for note in (*report.notes, _OUTSIDE):
        click.echo(note)
