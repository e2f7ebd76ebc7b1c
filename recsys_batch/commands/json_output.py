"""Results of commands for machines: one JSON object on standard output."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from recsys_batch.tables.run_manifest import Run


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else there.")


def print_result(result: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """Print a result as JSON, or as a sentence for people."""
    print_json(result) if as_json else click.echo(sentence)


def gates_as_json(run: Run) -> dict[str, dict[str, Any]]:
    """Convert a run's gates: name -> value, limit and whether it passed."""
    from recsys_batch.night.gates import gate_results

    return {name: dict(zip(("value", "limit", "passed"), verdict, strict=True)) for name, verdict in gate_results(run.metrics).items()}


def run_as_json(run: Run) -> dict[str, Any]:
    """Convert a run to what ``status --json`` prints."""
    return {**run.row(), "gates": gates_as_json(run)}


def print_json(result: dict[str, Any]) -> None:
    click.echo(json.dumps(result, default=str, indent=2))
