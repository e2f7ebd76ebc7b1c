"""report: write a run as one HTML page."""

import logging
from pathlib import Path

import click

from recsys_batch.commands.options import json_option, with_config
from recsys_batch.commands.output import format_size, gates_as_json, print_result
from recsys_batch.config import Config
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.storage.atomic import write_file
from recsys_batch.tables import run_manifest
from recsys_batch.tables.run_manifest import Run

logger = logging.getLogger("recsys_batch")


@click.command(
    "report", help="Write a run as one HTML page: time, recall, scores, coverage, churn, segments, gates, users; also a refused run."
)
@click.option("--run-id", help="The run.  [default: the current one]")
@click.option("--out", default="report.html", show_default=True, metavar="FILE", help="File to write.")
@click.option("--users", "n_users", default=4, show_default=True, type=click.IntRange(0, 50), help="Number of users whose lists are shown.")
@click.option("--log/--no-log", "to_mlflow", default=True, show_default=True, help="Add the page to the run in MLflow, where it has one.")
@json_option
@with_config
def report_command(config: Config, run_id: str | None, out: str, n_users: int, to_mlflow: bool, as_json: bool) -> None:
    from recsys_batch.report.facts import collect_facts
    from recsys_batch.report.page import render_report

    run, seen = _find_run(config, run_id)
    facts = collect_facts(config.paths.warehouse, run, config.data.min_weight, n_users)
    page, path = render_report(facts, gates_as_json(run), seen), Path(out)
    try:
        write_file(path, page)
    except OSError as error:
        raise UsageError(f"--out {path} cannot be written: {error.strerror}") from error
    logged = to_mlflow and run.mlflow_run_id is not None and _log_to_mlflow(config, run.mlflow_run_id, path)
    n_bytes = path.stat().st_size
    sentence = f"run {run.run_id}: {path} ({format_size(n_bytes)}){', and in its MLflow run' if logged else ''}"
    print_result({"run_id": run.run_id, "out": str(path), "bytes": n_bytes, "in_mlflow": logged}, sentence, as_json=as_json)


def _find_run(config: Config, run_id: str | None) -> tuple[Run, bool]:
    """Find (the run, whether readers see it)."""
    from recsys_batch.read import run_rows

    rows = run_rows(config.paths.warehouse)
    now = run_manifest.newest_published(rows)
    if run_id is None:
        if now is None:
            raise InputMissing(
                "no night is published yet: name a run by --run-id (see `recsys-batch status`), or run `recsys-batch nightly`"
            )
        run_id = now.run_id
    run = run_manifest.latest_state_by_run(rows).get(run_id)
    if run is None:
        raise InputMissing(f"there is no run {run_id}: see `recsys-batch status`")
    return run, now is not None and now.run_id == run_id


def _log_to_mlflow(config: Config, mlflow_run_id: str, path: Path) -> bool:
    """Add the page to the MLflow run; False, with a warning, where MLflow did not take it."""
    try:
        from recsys_batch.registry.mlflow_registry import ModelRegistry

        ModelRegistry(config).log_file(mlflow_run_id, path)
    except ModuleNotFoundError:
        return False  # an install for reading alone
    except Exception as error:
        logger.warning("MLflow did not take the report: %s", str(error).splitlines()[0])
        return False
    return True
