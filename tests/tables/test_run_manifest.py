"""The manifest's rows fold into the state of each run, whatever order they are read in."""

from __future__ import annotations

import datetime as dt
import random

import pytest

from recsys_batch.errors import UsageError
from recsys_batch.tables.run_manifest import (
    Run,
    check_run_id,
    from_row,
    latest_state_by_run,
    newest_published,
    newest_run_of_date,
    next_run_id,
)

DAY = dt.date(2026, 3, 1)


def run(run_id: str, started: float = 0.0, **changes: object) -> Run:
    base = {
        "run_id": run_id,
        "run_date": DAY,
        "attempt": 1,
        "status": "RUNNING",
        "published_at": None,
        "table_versions": {},
        "input_versions": {"interactions": 3},
        "model_version": "1",
        "code_version": "0",
        "config_hash": "h",
        "metrics": {"started_at": started},
    }
    return Run(**{**base, **changes})  # type: ignore[arg-type]


def at(minute: int) -> dt.datetime:
    return dt.datetime(2026, 3, 1, 2, minute, tzinfo=dt.UTC)


def test_the_newest_row_is_the_state_in_any_reading_order() -> None:
    first = run("a").next_event()
    second = first.next_event(table_versions={"topk": 7}, metrics={"score.rows": 5.0})
    resumed = second.next_event(attempt=2, status="FAILED")
    rows = [r.row() for r in (first, second, resumed)]
    for _ in range(5):
        random.Random(1).shuffle(rows)
        assert latest_state_by_run(rows)["a"] == resumed
    assert resumed.metrics == {"started_at": 0.0, "event": 3.0, "score.rows": 5.0}
    assert resumed.table_versions == {"topk": 7}


def test_readers_see_the_newest_published_row_also_after_a_rollback() -> None:
    old = run("a", status="PUBLISHED", published_at=at(1))
    new = run("b", status="PUBLISHED", published_at=at(2))
    assert newest_published([r.row() for r in (new, old)]) == new
    withdrawn = new.next_event(status="ROLLED_BACK", published_at=None)
    restored = old.next_event(status="PUBLISHED", published_at=at(3))
    seen = newest_published([r.row() for r in (old, new, withdrawn, restored)])
    assert seen is not None and seen.run_id == "a"
    assert newest_published([run("c").row()]) is None


def test_run_ids_count_up_within_a_date() -> None:
    assert next_run_id({}, DAY) == "2026-03-01-r1"
    states = {r.run_id: r for r in (run("2026-03-01-r9"), run("2026-03-01-r10"), run("mine"), run("x", run_date=dt.date(2026, 3, 2)))}
    assert next_run_id(states, DAY) == "2026-03-01-r11"


def test_the_newest_run_of_a_date_is_the_one_begun_last() -> None:
    states = {r.run_id: r for r in (run("2026-03-01-r2", 5.0), run("chosen", 9.0), run("2026-03-01-r1", 1.0))}
    newest = newest_run_of_date(states, DAY)
    assert newest is not None and newest.run_id == "chosen"
    assert newest_run_of_date(states, dt.date(2020, 1, 1)) is None


def test_null_maps_read_as_empty() -> None:
    row = {**run("a").row(), "table_versions": None}
    assert from_row(row).table_versions == {}


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "a b", ".hidden", "a" * 101])
def test_a_run_id_that_would_not_be_a_safe_folder_name_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="run id"):
        check_run_id(bad)
