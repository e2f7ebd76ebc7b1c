"""digest: a few items per user for an e-mail sender."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recsys_batch.commands.options import DATE, ParsedType, json_option, with_config
from recsys_batch.commands.output import format_count, print_json, progress_bar
from recsys_batch.config import Config
from recsys_batch.errors import UsageError
from recsys_batch.schemas import ALL_SEGMENTS

if TYPE_CHECKING:
    from recsys_batch.digest.builder import DigestResult


def _parse_shard(text: str) -> tuple[int, int]:
    """Parse a shard, i/n with i from 1."""
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(text)
    return int(match[1]), int(match[2])


def _parse_moment(text: str) -> dt.datetime:
    """Parse a time as ISO 8601; UTC where it has no zone."""
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


_SHARD = ParsedType("I/N", _parse_shard, "a shard like 1/4 (the first of four)")
_MOMENT = ParsedType("TIME", _parse_moment, "a time like 2026-11-24T06:00:00Z")


@click.command("digest", help="Choose a few items per user for an e-mail, with titles and reasons, none sent lately; one record per user.")
@click.option("--run-date", type=DATE, required=True, help="The night's date; never taken from the clock.")
@click.option("--slots", default=5, show_default=True, type=click.IntRange(1, 1000), help="Items per user.")
@click.option("--segment", help="Only users of this segment.")
@click.option("--out", required=True, metavar="FILE|DIR", help="The file, or a folder that gets DIGEST_ID.FORMAT.")
@click.option(
    "--format",
    "form",
    default="jsonl",
    show_default=True,
    type=click.Choice(["jsonl", "parquet"]),
    help="The file's format. parquet holds the types of ids and is the one for DuckDB, pandas and the like; jsonl gets FILE.schema.json.",
)
@click.option("--shard", default="1/1", show_default=True, type=_SHARD, help="Only the I-th of N parts of the users, for N senders.")
@click.option("--digest-id", help="The digest's name in the table sent_log.  [default: date, segment, slots and shard]")
@click.option("--as-of", type=_MOMENT, help="Measure the run's age at this time, for replays.  [default: now]")
@click.option("--dry-run", is_flag=True, help="Count, and write nothing.")
@json_option
@with_config
def digest_command(
    config: Config,
    run_date: dt.date,
    slots: int,
    segment: str | None,
    out: str,
    form: str,
    shard: tuple[int, int],
    digest_id: str | None,
    as_of: dt.datetime | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    from recsys_batch.dataset.seen_policy import make_seen_policy
    from recsys_batch.digest.builder import make_digest
    from recsys_batch.digest.slot_choosers import DigestRequest
    from recsys_batch.night.run_locks import user_rows_lock
    from recsys_batch.storage.node_cache import NodeCache

    segment = None if segment == ALL_SEGMENTS else segment
    name = digest_id or f"{run_date}.{segment or ALL_SEGMENTS}.{slots}.{shard[0]}of{shard[1]}"
    request = DigestRequest(
        run_date=run_date,
        slots=slots,
        segment=segment,
        shard=shard,
        out=_output_path(out, name, form),
        form=form,  # type: ignore[arg-type]
        repeat_days=config.digest.repeat_days,
        max_age=dt.timedelta(hours=config.digest.max_age_hours),
        seen=make_seen_policy(config.retrieval.seen, run_date),
        digest_id=name,
    )
    lock = contextlib.nullcontext() if dry_run else user_rows_lock(config)
    with lock, progress_bar("digest", quiet=as_json) as progress:
        now = as_of or dt.datetime.now(dt.UTC)
        cache = NodeCache.from_paths(config.paths)
        result = make_digest(config.paths.warehouse, cache, request, now, config.data.min_weight, dry_run=dry_run, progress=progress)
    print_json({"dry_run": dry_run, **asdict(result)}) if as_json else _print_result(result, slots, dry_run)


def _output_path(out: str, name: str, form: str) -> Path:
    path = Path(out)
    if not (path.is_dir() or out.endswith("/")):
        return path
    if not re.fullmatch(r"[\w.@+-][\w.@ +-]{0,199}", name):
        raise UsageError(f"digest id {name!r} is no name of a file: pass --out FILE, or --digest-id of letters, digits, '.', '_' and '-'")
    return path / f"{name}.{form}"


def _print_result(result: DigestResult, slots: int, dry_run: bool) -> None:
    verb = "would be" if dry_run else "are"
    click.echo(f"run {result.run_id}: {format_count(result.n_slots)} items for {format_count(result.n_users)} users {verb} in {result.out}")
    notes = [f"{format_count(result.n_popular)} from popular lists"] if result.n_popular else []
    notes += [f"{format_count(result.n_short)} users have fewer than {slots}"] if result.n_short else []
    notes += [f"{format_count(result.n_without)} have nothing left to be sent"] if result.n_without else []
    if notes:
        click.echo("; ".join(notes))
    if result.logged_before:
        click.echo(f"digest {result.digest_id} was logged before: this is the same one")
