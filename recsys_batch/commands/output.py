"""Output of commands: tables and a live step list for people, plain log lines where there is no terminal, one JSON object for machines."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from recsys_batch.tables.run_manifest import GATE, LIMIT, Run

StepProgress = Callable[[str, str, dict[str, float]], None]

logger = logging.getLogger("recsys_batch")


def print_json(result: dict[str, Any]) -> None:
    click.echo(json.dumps(result, default=str, indent=2))


def print_result(result: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """Print a result as JSON, or as a sentence for people."""
    print_json(result) if as_json else click.echo(sentence)


def gates_as_json(run: Run) -> dict[str, dict[str, Any]]:
    """Read a run's gates from its metrics: name -> value, limit and whether it passed."""
    metrics, names = run.metrics, [key.removeprefix(GATE) for key in run.metrics if key.startswith(GATE)]
    figures = {name: (metrics.get(f"audit.{name}", math.nan), metrics.get(LIMIT + name, math.nan)) for name in names}
    return {name: {"value": value, "limit": limit, "passed": metrics[GATE + name] > 0} for name, (value, limit) in figures.items()}


def run_as_json(run: Run) -> dict[str, Any]:
    """Convert a run to what ``status --json`` prints."""
    return {**run.row(), "gates": gates_as_json(run)}


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,), note: str | None = None
) -> None:
    """Print a table, where it has rows, and a note below it; columns whose index is in ``left`` are text, others right-aligned numbers."""
    # Of 80 columns where it is not a terminal.
    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False)
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column, name in enumerate(header):
        table.add_column(name, justify="left" if column in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    if rows:
        console.print(table)
    if note is not None:
        console.print(note)


def format_count(value: float) -> str:
    """Format a count: 1234567 -> 1,234,567."""
    return f"{int(value):,}"


def format_size(n_bytes: float) -> str:
    """Format bytes: 1572864 -> 1.5 MiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


@contextmanager
def step_progress(title: str, expected: Mapping[str, float] | None = None) -> Iterator[StepProgress]:
    """Show each step as it runs, and about how long it still takes: on a terminal; elsewhere only the log.

    Args:
        expected: seconds of each step, in their order; of the last night, say.
    """
    if not sys.stderr.isatty():
        yield lambda step, event, metrics: None
        return
    left = dict(expected or {})
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), _TimeLeftColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None, ends=None)

        def show(step: str, event: str, metrics: dict[str, float]) -> None:
            if event == "start":
                ends = time.monotonic() + sum(left.values()) if step in left else None
                progress.update(task, description=f"{title}: {step}", ends=ends)
            else:
                left.pop(step, None)
                rows_and_time = f"{format_count(metrics.get('rows', 0)):>12} rows {metrics.get('seconds', 0):>8.1f} s" if metrics else ""
                progress.console.print(f"  {step:<11}{event:<8}{rows_and_time}")

        yield show


class _TimeLeftColumn(ProgressColumn):
    """Column with the rough time left until ``ends`` (of time.monotonic); empty where that is not known, or over."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        seconds = 0 if ends is None else ends - time.monotonic()
        if seconds < 1:
            return Text("")
        return Text(f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left", style="dim")


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show (done, total) with the time that is left: a bar on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with Progress(TextColumn(title), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(title)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def training_progress() -> Iterator[Callable[[str, Mapping[str, float]], None]]:
    """Show each epoch: a changing line on a terminal, a log line each elsewhere."""
    live = Console(stderr=True).status("training") if sys.stderr.isatty() else None

    def show(stage: str, numbers: Mapping[str, float]) -> None:
        line = f"{stage}  " + "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        if live is not None:
            live.update(line)
        else:
            logger.info(line)

    if live is None:
        yield show
        return
    with live:
        yield show
