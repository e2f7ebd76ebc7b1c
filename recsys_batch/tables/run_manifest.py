"""The manifest of nights: an append-only log in the table ``runs``, and the rules by which its rows say what readers see.

A row is never changed. Each finished step appends one; the newest row of a run (by attempt, then by the ``event`` number in
its metrics) is the run's state. A run killed between a table's commit and its row simply does that step again.

Readers, nights and commands take these functions; the SQL of spark/views.py says the same, and a test holds it to them.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from recsys_batch.errors import UsageError
from recsys_batch.schemas import SCHEMA_VERSION

STEP_NAMES = ("embed", "index", "candidates", "score", "audit", "publish")
"""Steps of a night in order: its commands, and the prefixes of its metrics."""
EVENT = "event"
STARTED_AT = "started_at"
CORES = "cores"
"""Tasks at a time that the session had when the run began."""
GATE_REFUSED = "gate_refused"
SCORED_BY_ONNX = "score.by_onnx"
"""1 for a run whose ranker was run by ONNX Runtime, 0 for torch; absent where no ranker scored."""
BACKFILLED = "backfilled"
"""1 for a run of an earlier date than that of the run which readers kept seeing."""
GATE, LIMIT = "gate.", "limit."
"""Prefixes of a gate's verdict (1 passed, 0 refused) and threshold; its value is under "audit."."""
_MAPS = ("table_versions", "input_versions", "metrics")
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
        """Time when the run first began, UTC; the same through every resume."""
        return dt.datetime.fromtimestamp(self.metrics[STARTED_AT], tz=dt.UTC)

    @property
    def number(self) -> int:
        """n of the generated id DATE-rN; 0 for an id that somebody chose."""
        match = re.fullmatch(re.escape(self.run_date.isoformat()) + r"-r(\d+)", self.run_id)
        return int(match.group(1)) if match else 0

    @property
    def was_published(self) -> bool:
        """Whether readers have seen it, also where it was rolled back since."""
        return self.status in ("PUBLISHED", "ROLLED_BACK")

    @property
    def refused_gates(self) -> list[str]:
        """Names of the gates that the last audit refused."""
        return [key.removeprefix(GATE) for key, value in self.metrics.items() if key.startswith(GATE) and value == 0.0]

    def row(self) -> dict[str, Any]:
        """Convert the run to a row of ``runs``."""
        return {**self.__dict__, **{name: dict(getattr(self, name)) for name in _MAPS}}

    def next_event(self, **changes: Any) -> Run:
        """The run's next row: ``metrics`` are merged, everything else replaces."""
        metrics = {**self.metrics, **changes.pop("metrics", {}), EVENT: self.metrics.get(EVENT, 0.0) + 1}
        return replace(self, metrics=metrics, **changes)


def from_row(row: Mapping[str, Any]) -> Run:
    """Make a run of a ``runs`` row (maps as dicts, or None)."""
    values: dict[str, Any] = {name: row.get(name) for name in Run.__dataclass_fields__}
    return Run(**values | {name: dict(values[name] or {}) for name in _MAPS})


def latest_state_by_run(rows: Iterable[Run]) -> dict[str, Run]:
    """Fold rows, in any order, into the newest state per run_id."""
    return {row.run_id: row for row in sorted(rows, key=_order)}


def newest_published(rows: Iterable[Run], run_id: str | None = None) -> Run | None:
    """Find the row that readers follow: the newest PUBLISHED one by published_at, of all rows or of those of ``run_id``."""
    return max((row for row in rows if row.status == "PUBLISHED" and run_id in (None, row.run_id)), key=_visible_order, default=None)


def published_previously(rows: Iterable[Run], run: Run) -> Run | None:
    """Find the row that readers followed until ``run`` was published; for a run that is not, the one that they follow now."""
    until = run.published_at
    return newest_published(row for row in rows if row.run_id != run.run_id and (until is None or (row.published_at or until) < until))


def still_published(rows: Iterable[Run]) -> list[Run]:
    """States of the runs that were published and not rolled back since."""
    return [state for state in latest_state_by_run(rows).values() if state.status == "PUBLISHED"]


def rollback_target(rows: Sequence[Run], current: Run) -> Run | None:
    """Find the run to go back to: the one published last before ``current`` and not rolled back since."""
    others = [run for run in still_published(rows) if run.run_id != current.run_id]
    # A date that was filled in was never what readers saw.
    return newest_published([run for run in others if not run.metrics.get(BACKFILLED)] or others)


def find_run(states: Mapping[str, Run], run_date: dt.date, run_id: str | None = None) -> Run | None:
    """Find the run of that id, or where none is given the run of the date that was begun last. Raises as ``check_run_id``."""
    if run_id:
        return states.get(check_run_id(run_id))
    return max((run for run in states.values() if run.run_date == run_date), key=lambda run: run.metrics[STARTED_AT], default=None)


def next_run_id(states: Mapping[str, Run], run_date: dt.date) -> str:
    """DATE-rN, N one more than the highest of that date."""
    numbers = [run.number for run in states.values() if run.run_date == run_date]
    return f"{run_date.isoformat()}-r{max(numbers, default=0) + 1}"


def check_run_id(run_id: str) -> str:
    """Return the id itself. Raises UsageError where it would not be safe as a folder name."""
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(f"run id {run_id!r}: use letters, digits, '.', '_' and '-', at most 100, starting with a letter or digit")
    return run_id


def _order(row: Run) -> tuple[int, float]:
    return row.attempt, row.metrics.get(EVENT, 0.0)


def _visible_order(row: Run) -> tuple[Any, ...]:
    """By time; rows of one microsecond in an order that does not depend on how the files are read."""
    return row.published_at, *_order(row), row.run_id
