"""nightly, its single steps, rollback and status: what data engineers schedule and look at."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from recsys_batch.commands.options import DATE, json_option, with_config
from recsys_batch.commands.output import format_count, format_size, print_json, print_result, print_table, run_as_json, step_progress
from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.tables import run_manifest
from recsys_batch.tables.run_manifest import STEP_NAMES, Run

if TYPE_CHECKING:
    from recsys_batch.tables.live_lists import LiveProgress

_STEP_HELP = (
    "Embed users and items.",
    "Build and tune the search index.",
    "Retrieve each user's candidates.",
    "Rank the candidates and write the top-K.",
    "Hold the run against the gates; exit code 3 when one refuses.",
    "Make the audited run the one that readers see.",
)

run_date_option = click.option("--run-date", type=DATE, required=True, help="The night's date; never taken from the clock.")
run_id_option = click.option("--run-id", help="Go on with this run instead of the date's newest.")


@click.command("nightly", help="Run all steps of one night, going on where an earlier attempt stopped.")
@run_date_option
@run_id_option
@click.option("--force", is_flag=True, help="Compute the date again as a new run although it is published.")
@click.option("--incremental", is_flag=True, help="Compute only what changed since the published night; full where that cannot be.")
@json_option
@with_config
def nightly_command(config: Config, run_date: dt.date, run_id: str | None, force: bool, incremental: bool, as_json: bool) -> None:
    from recsys_batch.night.open_run import AlreadyDone
    from recsys_batch.night.runner import run_night
    from recsys_batch.spark.session import get_session

    try:
        with step_progress(f"night of {run_date}", _read_last_step_seconds(config)) as progress:
            session = get_session(config)
            run = run_night(session, config, run_date, run_id=run_id, force=force, incremental=incremental, progress=progress)
    except AlreadyDone as done:
        print_result({"done": False, "reason": str(done)}, str(done), as_json=as_json)
        return
    print_json({"done": True, "run": run_as_json(run)}) if as_json else print_night(run)


def _read_last_step_seconds(config: Config) -> dict[str, float]:
    """Read the seconds of each step of the published run; empty where they are not known."""
    try:
        last = run_manifest.newest_published(_read_manifest_rows(config))
    except Exception:  # whatever it is, the night itself will say it
        return {}
    seconds_of_step = {} if last is None else {step: last.metrics.get(f"{step}.seconds") for step in STEP_NAMES}
    return {step: seconds for step, seconds in seconds_of_step.items() if seconds is not None}


def _make_step_command(name: str, text: str) -> click.Command:
    @run_date_option
    @run_id_option
    @json_option
    @with_config
    def command(
        config: Config, run_date: dt.date, run_id: str | None, as_json: bool, dry_run: bool = False, override: str | None = None
    ) -> None:
        from recsys_batch.night.open_run import AlreadyDone
        from recsys_batch.night.runner import run_step
        from recsys_batch.spark.session import get_session

        if dry_run:
            _print_estimate(config, run_date, run_id, as_json=as_json)
            return
        try:
            run = run_step(get_session(config), config, name, run_date, run_id=run_id, override=override)
        except AlreadyDone as done:
            print_result({"done": False, "reason": str(done)}, str(done), as_json=as_json)
            return
        figures = {key: run.metrics.get(f"{name}.{key}", 0.0) for key in ("rows", "seconds")}
        sentence = f"run {run.run_id}: {name} done, {format_count(figures['rows'])} rows in {figures['seconds']:.1f} s"
        print_result({"done": True, "step": name, **figures, "run": run_as_json(run)}, sentence, as_json=as_json)

    if name == "candidates":
        command = click.option("--dry-run", is_flag=True, help="Print mode, sizes, partitions and a time estimate; run nothing.")(command)
    if name == "publish":
        command = click.option("--override", metavar="REASON", help="Publish a run that its audit refused; the reason is kept.")(command)
    return click.command(name, help=text)(command)


def _print_estimate(config: Config, run_date: dt.date, run_id: str | None, *, as_json: bool) -> None:
    from recsys_batch.night.estimate import estimate_night
    from recsys_batch.spark.session import get_session

    seen = estimate_night(get_session(config), config, run_date, run_id)
    shards = f", {seen.layout.n_shards} shards" if seen.layout.n_shards > 1 else ""
    worker, shared = format_size(seen.worker_bytes), format_size(seen.shared_bytes)
    lines = [
        f"users       {seen.n_users:,}",
        f"items       {seen.n_items:,} of {seen.embedding_dim} dimensions, {seen.n_candidates} candidates per user",
        f"mode        {seen.layout.mode}, {seen.layout.storage}{shards} ({seen.layout.reason})",
        f"index       {format_size(seen.index_bytes)} of files",
        f"memory      {worker} per worker; workers of a node share {shared} of item vectors",
        f"partitions  {seen.n_tasks} of {seen.users_per_task:,} users, {seen.n_cores} at a time",
        f"time        about {seen.seconds:,.0f} s, by {seen.basis}",
    ]
    print_result(asdict(seen), "\n".join(lines), as_json=as_json)


step_commands = [_make_step_command(name, text) for name, text in zip(STEP_NAMES, _STEP_HELP, strict=True)]


@click.command("rollback", help="Go back to an earlier published run; no data moves.")
@click.option("--to", "to", metavar="RUN_ID", help="The run to go back to.  [default: the one published before the current one]")
@click.option("--dry-run", is_flag=True, help="Say which run readers would see; change nothing.")
@json_option
@with_config
def rollback_command(config: Config, to: str | None, dry_run: bool, as_json: bool) -> None:
    from recsys_batch.night.open_run import AlreadyDone
    from recsys_batch.night.publish import roll_back_run
    from recsys_batch.spark.session import get_session

    try:
        run = roll_back_run(get_session(config), config, to, dry_run=dry_run)
    except AlreadyDone as done:
        print_result({"done": False, "reason": str(done)}, str(done), as_json=as_json)
        return
    sentence = f"readers {'would' if dry_run else 'now'} see run {run.run_id} of {run.run_date} (model version {run.model_version})"
    print_result({"done": not dry_run, "dry_run": dry_run, "run": run_as_json(run)}, sentence, as_json=as_json)


@click.command("status", help="List the nights so far: which is published (*), which failed, which gates refused.")
@json_option
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Newest runs shown.")
@click.option("--run-id", help="Show one run in full: what it read and wrote, and every gate.")
@with_config
def status_command(config: Config, as_json: bool, limit: int, run_id: str | None) -> None:
    rows = _read_manifest_rows(config)
    now = run_manifest.newest_published(rows)
    live = _read_live_progress(config, now) if now else None
    runs = sorted(run_manifest.latest_state_by_run(rows).values(), key=lambda run: run.metrics[run_manifest.STARTED_AT], reverse=True)
    if run_id is not None and run_id not in {run.run_id for run in runs}:
        raise InputMissing(f"there is no run {run_id}: see `recsys-batch status`")
    runs = [run for run in runs if run_id in (None, run.run_id)][:limit]
    if as_json:
        listed = [{**run_as_json(run), "current": now is not None and run.run_id == now.run_id} for run in runs]
        print_json({"current": now.run_id if now else None, **({"live": asdict(live)} if live else {}), "runs": listed})
        return
    if run_id is not None:
        _print_run(runs[0], now)
        return
    if not runs:
        click.echo("no night has run yet: run `recsys-batch nightly --run-date DATE`")
        return
    header = ("run", "status", "users", "rows", "model", "recall", "refused by")
    print_table("nights", header, [_format_status_row(run, now) for run in runs], left=(0, 1, 4, 6), note=_describe_live_lists(live))


def _describe_live_lists(live: LiveProgress | None) -> str | None:
    if live is None:
        return None
    through = f", {live.events_through:%Y-%m-%d %H:%M:%S} UTC" if live.events_through else ""
    return f"live: {format_count(live.n_users)} users refreshed, to version {live.batch_id} of interactions{through}"


def _print_run(run: Run, now: Run | None) -> None:
    facts = [
        ("status", run.status + (", what readers see" if now is not None and run.run_id == now.run_id else "")),
        ("published", f"{run.published_at:%Y-%m-%d %H:%M:%S} UTC" if run.published_at else "no"),
        ("attempt", str(run.attempt)),
        ("inputs", ", ".join(f"{name} {version}" for name, version in sorted(run.input_versions.items()))),
        ("outputs", ", ".join(f"{name} {version}" for name, version in sorted(run.table_versions.items()))),
        ("model", f"version {run.model_version}{_describe_engine(run)}"),
        ("code, settings", f"release {run.code_version}, config hash {run.config_hash}"),
        ("MLflow run", run.mlflow_run_id or "none"),
    ]
    print_table(f"run {run.run_id} of {run.run_date}", ("", "with the Delta version of each table"), facts, left=(0, 1))
    gates = [
        (name, f"{gate['value']:.6g}", f"{gate['limit']:.6g}", "passed" if gate["passed"] else "REFUSED")
        for name, gate in run_as_json(run)["gates"].items()
    ]
    print_table("gates", ("gate", "value", "limit", "verdict"), gates, left=(0, 3))


def _describe_engine(run: Run) -> str:
    """Describe what scored a run; nothing where no ranker did, or the run is of before that was kept."""
    by_onnx = run.metrics.get(run_manifest.SCORED_BY_ONNX)
    return "" if by_onnx is None else f", scored by {'ONNX Runtime' if by_onnx else 'torch'}"


def _format_status_row(run: Run, now: Run | None) -> tuple[str, ...]:
    mark = " *" if now is not None and run.run_id == now.run_id else ""
    recall = run.metrics.get("knn_recall")
    return (
        run.run_id + mark,
        run.status,
        format_count(run.n_users or 0),
        format_count(run.n_rows or 0),
        run.model_version,
        f"{recall:.4f}" if recall is not None else "",
        ", ".join(run.refused_gates),
    )


def _read_manifest_rows(config: Config) -> list[Run]:
    """By deltalake where tables are paths; a catalog needs Spark to resolve its names."""
    if config.catalog is None:
        from recsys_batch.read import run_rows

        return run_rows(config.paths.warehouse)
    from recsys_batch.night.run_store import load_run_rows
    from recsys_batch.spark.session import get_session
    from recsys_batch.spark.tables import WarehouseTables

    return load_run_rows(WarehouseTables(get_session(config), config))


def _read_live_progress(config: Config, run: Run) -> LiveProgress | None:
    """Read how far the lists go that the stream refreshed of a run; None where it refreshed none."""
    from recsys_batch.tables.live_lists import read_live_progress, topk_live_slice

    folders = find_table_folders(config, ["topk_live"])
    return read_live_progress(topk_live_slice(folders["topk_live"], run.run_id)) if folders else None


def find_table_folders(config: Config, names: Iterable[str]) -> dict[str, str]:
    """List the folder of each of these tables that exists."""
    if config.catalog is None:
        from recsys_batch.read import has_table
        from recsys_batch.storage.filesystems import absolute, join

        warehouse = config.paths.warehouse
        return {name: join(absolute(warehouse), name) for name in names if has_table(warehouse, name)}
    from recsys_batch.spark.session import get_session
    from recsys_batch.spark.tables import WarehouseTables

    tables = WarehouseTables(get_session(config), config)
    return {name: tables.folder(name) for name in names if tables.exists(name)}


def print_night(run: Run) -> None:
    """Print the table of a run's steps: rows, seconds, users per second, bytes written, and where the cores' time went."""
    rows = []
    for step in STEP_NAMES:
        seconds, users = run.metrics.get(f"{step}.seconds"), run.metrics.get(f"{step}.users", 0.0)
        if seconds is not None:
            rate = format_count(users / seconds) if seconds > 0.05 else ""
            rows.append((step, format_count(run.metrics[f"{step}.rows"]), f"{seconds:.1f}", rate, *_format_shares(run, step, seconds)))
    header = ("step", "rows", "seconds", "users/s", "written", "python", "write", "JVM")
    recall = run.metrics.get("knn_recall", float("nan"))
    note = f"ANN recall against exact search, measured: {recall:.4f}; model version {run.model_version}"
    print_table(f"run {run.run_id}: {run.status}", header, rows, note=note)


def _format_shares(run: Run, step: str, seconds: float) -> tuple[str, str, str, str]:
    """Format a step's bytes, and shares of seconds * cores; empty for a step without tasks of its own."""
    cores = run.metrics.get(f"{step}.cores")
    if not cores or seconds <= 0:
        return "", "", "", ""
    python, write = (run.metrics[f"{step}.{name}_seconds"] / (seconds * cores) for name in ("python", "write"))
    return format_size(run.metrics[f"{step}.bytes"]), f"{python:.0%}", f"{write:.0%}", f"{max(1 - python - write, 0):.0%}"
