"""backfill and maintain: commands that data engineers run now and then."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

import click

from recsys_batch.commands.night import find_table_folders, print_night
from recsys_batch.commands.options import DATE, json_option, with_config
from recsys_batch.commands.output import format_count, format_size, print_json, print_result, print_table, run_as_json, step_progress
from recsys_batch.config import Config
from recsys_batch.errors import UsageError
from recsys_batch.schemas import TABLES
from recsys_batch.tables import run_manifest
from recsys_batch.tables.run_manifest import Run


@click.command("backfill", help="Run the nights of a range of dates; published dates are left as they are. Readers keep the latest date.")
@click.option("--start", type=DATE, required=True, help="First date.")
@click.option("--end", type=DATE, required=True, help="Last date.")
@click.option("--force", is_flag=True, help="Compute published dates again, too.")
@click.option("--dry-run", is_flag=True, help="Say what each date would be; run nothing.")
@json_option
@with_config
def backfill_command(config: Config, start: dt.date, end: dt.date, force: bool, dry_run: bool, as_json: bool) -> None:
    from recsys_batch.night.open_run import AlreadyDone
    from recsys_batch.night.run_store import load_run_rows
    from recsys_batch.night.runner import run_night
    from recsys_batch.spark.session import get_session
    from recsys_batch.spark.tables import WarehouseTables

    if end < start:
        raise UsageError(f"--end {end} is before --start {start}")
    dates = [start + dt.timedelta(days=day) for day in range((end - start).days + 1)]
    session = get_session(config)
    if dry_run:
        plans = _plan_dates(run_manifest.latest_state_by_run(load_run_rows(WarehouseTables(session, config))), dates, force)
        lines = [f"{date}  {plan}" for date, plan in plans.items()]
        print_result({"dry_run": True, "dates": plans}, "\n".join(lines), as_json=as_json)
        return
    results: dict[str, Any] = {}
    for date in dates:
        try:
            with step_progress(f"night of {date}") as progress:
                run = run_night(session, config, date, force=force, backfill=True, progress=progress)
        except AlreadyDone as done:
            results[str(date)] = {"done": False, "reason": str(done)}
            if not as_json:
                click.echo(str(done))
            continue
        results[str(date)] = {"done": True, "run": run_as_json(run)}
        if not as_json:
            print_night(run)
    if as_json:
        print_json({"dry_run": False, "dates": results})


def _plan_dates(states: Mapping[str, Run], dates: list[dt.date], force: bool) -> dict[str, str]:
    """Say what a backfill would do for each date."""
    plans = {}
    for date in dates:
        newest = run_manifest.find_run(states, date)
        finished = newest is not None and newest.was_published
        if finished and not force:
            plans[str(date)] = "nothing to do"
        elif newest is None or finished or force:
            plans[str(date)] = "a new run"
        else:
            plans[str(date)] = f"go on with run {newest.run_id} ({newest.status})"
    return plans


@click.command("maintain", help="Remove what nothing needs: rows and artefacts of runs beyond those kept, files that no table names.")
@click.option("--keep-runs", type=click.IntRange(1), help="Published runs to keep.  [default: tables.keep_runs]")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@json_option
@with_config
def maintain_command(config: Config, keep_runs: int | None, dry_run: bool, as_json: bool) -> None:
    from recsys_batch.night.maintenance import run_maintenance

    def optimize(folder: str) -> None:
        from recsys_batch.spark.session import get_session

        get_session(config).sql(f"OPTIMIZE delta.`{folder}`")

    folders, keep_runs, now = find_table_folders(config, TABLES), keep_runs or config.tables.keep_runs, dt.datetime.now(dt.UTC)
    done = run_maintenance(config, folders, keep_runs, now, optimize=optimize, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **done.__dict__})
        return
    verb = "would be" if dry_run else "were"
    names = sorted({*done.rows, *done.vacuumed})
    rows = [(name, format_count(done.rows.get(name, 0)), format_count(done.vacuumed.get(name, 0))) for name in names]
    print_table(f"{'would be ' if dry_run else ''}removed", ("table", "rows", "files"), rows)
    click.echo(f"{len(done.runs)} runs {verb} removed: {', '.join(done.runs) or 'none'}")
    click.echo(f"{len(done.artefacts)} artefacts and {sum(done.vacuumed.values())} files {verb} removed, {format_size(done.n_bytes)}")
    for name, n_files in done.compacted.items():
        click.echo(f"{name}: {n_files} small files {verb} made one")
