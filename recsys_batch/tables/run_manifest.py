"""The manifest of nights: an append-only log in the table ``runs``, folded into the state of each run.

A row is never changed. Each finished step appends one; the newest row of a run (by attempt, then by the ``event`` number in
its metrics) is the run's state. A run killed between a table's commit and its row simply does that step again.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from recsys_batch.errors import UsageError
from recsys_batch.schemas import SCHEMA_VERSION

EVENT = "event"
STARTED_AT = "started_at"
GATE_REFUSED = "gate_refused"
BACKFILLED = "backfilled"
"""1 for a run of an earlier date than that of the run which readers kept seeing."""
GATE, LIMIT = "gate.", "limit."
"""Prefixes of a gate's verdict (1 passed, 0 refused) and threshold; its value is under "audit."."""
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Run:
    """State of one run: the fields of a ``runs`` row.

    ``metrics`` also carries ``event`` (number of the row within the run), ``started_at`` (Unix seconds of the first start)
    and, after a refused gate, ``gate_refused`` = 1.
    """

    run_id: str
    run_date: dt.date
    attempt: int
    status: str
    published_at: dt.datetime | None
    table_versions: Mapping[str, int]
    input_versions: Mapping[str, int]
    model_version: str
    code_version: str
    config_hash: str
    n_users: int | None = None
    n_rows: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def started_at(self) -> dt.datetime:
        """When the run first began, UTC; the same through every resume."""
        return dt.datetime.fromtimestamp(self.metrics[STARTED_AT], tz=dt.UTC)

    @property
    def number(self) -> int:
        """n of the generated id DATE-rN; 0 for an id that somebody chose."""
        match = re.fullmatch(re.escape(self.run_date.isoformat()) + r"-r(\d+)", self.run_id)
        return int(match.group(1)) if match else 0

    @property
    def refused_gates(self) -> list[str]:
        """Names of the gates that the last audit refused."""
        return [key.removeprefix(GATE) for key, value in self.metrics.items() if key.startswith(GATE) and value == 0.0]

    def row(self) -> dict[str, Any]:
        """As a row of ``runs``."""
        return {
            **self.__dict__,
            "table_versions": dict(self.table_versions),
            "input_versions": dict(self.input_versions),
            "metrics": dict(self.metrics),
        }

    def next_event(self, **changes: Any) -> Run:
        """The run's next row: ``metrics`` are merged, everything else replaces."""
        metrics = {**self.metrics, **changes.pop("metrics", {}), EVENT: self.metrics.get(EVENT, 0.0) + 1}
        return replace(self, metrics=metrics, **changes)


def from_row(row: Mapping[str, Any]) -> Run:
    """From a ``runs`` row (maps as dicts, or None)."""
    values: dict[str, Any] = {name: row.get(name) for name in Run.__dataclass_fields__}
    for name in ("table_versions", "input_versions", "metrics"):
        values[name] = dict(values[name] or {})
    return Run(**values)


def latest_state_by_run(rows: Iterable[Mapping[str, Any]]) -> dict[str, Run]:
    """Newest state per run_id."""
    states: dict[str, Run] = {}
    for row in rows:
        run = from_row(row)
        known = states.get(run.run_id)
        if known is None or _order(run) > _order(known):
            states[run.run_id] = run
    return states


def newest_published(rows: Iterable[Mapping[str, Any]]) -> Run | None:
    """The run that readers see: of the PUBLISHED rows, the one with the newest published_at."""
    published = [row for row in rows if row["status"] == "PUBLISHED"]
    return from_row(max(published, key=lambda row: row["published_at"])) if published else None


def newest_run_of_date(states: Mapping[str, Run], run_date: dt.date) -> Run | None:
    """The run of that date that was begun last."""
    runs = [run for run in states.values() if run.run_date == run_date]
    return max(runs, key=lambda run: run.metrics[STARTED_AT]) if runs else None


def next_run_id(states: Mapping[str, Run], run_date: dt.date) -> str:
    """DATE-rN, N one more than the highest of that date."""
    numbers = [run.number for run in states.values() if run.run_date == run_date]
    return f"{run_date.isoformat()}-r{max(numbers, default=0) + 1}"


def check_run_id(run_id: str) -> str:
    """The id itself.

    Raises:
        UsageError: it would not be safe as a folder name.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(f"run id {run_id!r}: use letters, digits, '.', '_' and '-', at most 100, starting with a letter or digit")
    return run_id


def _order(run: Run) -> tuple[int, float]:
    return run.attempt, run.metrics.get(EVENT, 0.0)
