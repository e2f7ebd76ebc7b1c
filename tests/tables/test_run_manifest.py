"""The manifest's rows fold into the state of each run, whatever order they are read in."""

import datetime as dt
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.errors import UsageError
from recsys_batch.tables.run_manifest import (
    Run,
    check_run_id,
    find_run,
    from_row,
    latest_state_by_run,
    newest_published,
    next_run_id,
    published_previously,
    rollback_target,
    still_published,
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
    rows = [first, second, resumed]
    for _ in range(5):
        random.Random(1).shuffle(rows)
        assert latest_state_by_run(rows)["a"] == resumed
    assert resumed.metrics == {"started_at": 0.0, "event": 3.0, "score.rows": 5.0}
    assert resumed.table_versions == {"topk": 7}


def test_readers_see_the_newest_published_row_also_after_a_rollback() -> None:
    old = run("a", status="PUBLISHED", published_at=at(1))
    new = run("b", status="PUBLISHED", published_at=at(2))
    assert newest_published([new, old]) == new
    withdrawn = new.next_event(status="ROLLED_BACK", published_at=None)
    restored = old.next_event(status="PUBLISHED", published_at=at(3))
    seen = newest_published([old, new, withdrawn, restored])
    assert seen is not None and seen.run_id == "a"
    assert newest_published([run("c")]) is None


def test_the_earlier_run_is_the_one_that_readers_followed_until_then() -> None:
    rows = [run(run_id, status="PUBLISHED", published_at=at(minute)) for run_id, minute in (("a", 1), ("b", 2), ("c", 3))]
    refused = run("d", status="FAILED")
    assert published_previously([*rows, refused], rows[1]) == rows[0]
    assert published_previously([*rows, refused], refused) == rows[2]
    assert published_previously([*rows, refused], rows[0]) is None


def test_a_run_that_came_back_by_rollback_is_before_the_next_one() -> None:
    rows = [run(run_id, status="PUBLISHED", published_at=at(minute)) for run_id, minute in (("a", 1), ("b", 2), ("a", 3), ("c", 4))]
    assert published_previously(rows, rows[3]) == rows[2]


@given(st.lists(st.sampled_from(["publish", "fill in", "roll back", "fail"]), max_size=12), st.randoms(use_true_random=False))
def test_readers_follow_what_publish_and_rollback_did_last(acts: list[str], rng: random.Random) -> None:
    """Against the published runs in the order in which they became visible (True: filled in), with the rows in any order."""
    rows: list[Run] = []
    visible: dict[str, bool] = {}
    for minute, act in enumerate(acts):
        current = newest_published(rows)
        begun = run(f"r{minute}", minute).next_event()
        rows.append(begun)
        if act == "fail":
            rows.append(begun.next_event(status="FAILED"))
        elif act == "roll back" and current is not None:
            others = [run_id for run_id in visible if run_id != current.run_id]
            expected = ([run_id for run_id in others if not visible[run_id]] or others or [None])[-1]
            target = rollback_target(rows, current)
            assert (target and target.run_id) == expected
            if target is not None:
                back = target.next_event(status="PUBLISHED", published_at=at(minute), attempt=target.attempt + 1)
                rows += [current.next_event(status="ROLLED_BACK", published_at=None), back]
                visible[back.run_id] = visible.pop(back.run_id)
                del visible[current.run_id]
        elif act == "fill in" and current is not None:
            rows.append(begun.next_event(status="PUBLISHED", published_at=at(minute), metrics={"backfilled": 1.0}))
            after = at(minute) + dt.timedelta(microseconds=1)
            rows.append(current.next_event(published_at=after, attempt=current.attempt + 1))
            visible[begun.run_id] = True
            visible[current.run_id] = visible.pop(current.run_id)
        else:
            rows.append(begun.next_event(status="PUBLISHED", published_at=at(minute)))
            visible[begun.run_id] = False
        rng.shuffle(rows)
        seen = newest_published(rows)
        assert (seen and seen.run_id) == (list(visible)[-1] if visible else None)
        assert {state.run_id for state in still_published(rows)} == set(visible)
        assert seen is None or latest_state_by_run(rows)[seen.run_id] == seen


def test_run_ids_count_up_within_a_date() -> None:
    assert next_run_id({}, DAY) == "2026-03-01-r1"
    states = {r.run_id: r for r in (run("2026-03-01-r9"), run("2026-03-01-r10"), run("mine"), run("x", run_date=dt.date(2026, 3, 2)))}
    assert next_run_id(states, DAY) == "2026-03-01-r11"


def test_the_newest_run_of_a_date_is_the_one_begun_last() -> None:
    states = {r.run_id: r for r in (run("2026-03-01-r2", 5.0), run("chosen", 9.0), run("2026-03-01-r1", 1.0))}
    newest = find_run(states, DAY)
    assert newest is not None and newest.run_id == "chosen"
    assert find_run(states, dt.date(2020, 1, 1)) is None


def test_null_maps_read_as_empty() -> None:
    row = {**run("a").row(), "table_versions": None}
    assert from_row(row).table_versions == {}


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "a b", ".hidden", "a" * 101])
def test_a_run_id_that_would_not_be_a_safe_folder_name_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="run id"):
        check_run_id(bad)
