"""Verdicts that need other rows: which of equal rows stays, what a table has already, which file says the newest of an item."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.schemas import TIMESTAMP
from recsys_batch.sources.typed_rows import FILE, POSITION, REASON, UPDATED
from recsys_batch.sources.verdicts import ALREADY_PRESENT, EVENT_KEY, IN_TABLE, mark_duplicates, mark_repeated_keys

DAY = dt.datetime(2021, 3, 5, tzinfo=dt.UTC)


def events(rows: list[tuple[Any, ...]]) -> pa.Table:
    """user_id, item_id, weight, day (or None), reason (or None), whether of a table, per row."""
    filled = [(*row, *(None, False)[len(row) - 4 :]) for row in rows]
    return pa.table(
        {
            "user_id": pa.array([row[0] for row in filled]),
            "item_id": pa.array([row[1] for row in filled]),
            "weight": pa.array([float(row[2]) for row in filled], pa.float32()),
            "event_ts": pa.array([row[3] and DAY + dt.timedelta(days=row[3]) for row in filled], TIMESTAMP),
            "event_type": pa.array(["buy"] * len(filled)),
            FILE: pa.array([0] * len(filled), pa.int32()),
            POSITION: pa.array(range(len(filled)), pa.int64()),
            REASON: pa.array([row[4] for row in filled], pa.string()),
            IN_TABLE: pa.array([row[5] for row in filled]),
        }
    )


def verdicts_of(table: pa.Table) -> dict[int, str | None]:
    marked = mark_duplicates(table)
    return dict(zip(marked[POSITION].to_pylist(), marked[REASON].to_pylist(), strict=True))


def test_which_of_equal_rows_stays_does_not_depend_on_their_order() -> None:
    rows = events([("u", "i", 1, 1)] * 5 + [("u", "i", -1, 1), ("u", "i", 1, 1, "bad_weight"), ("u", "i", -0.0, 2), ("u", "i", 0.0, 2)])
    expected = {0: None, **dict.fromkeys(range(1, 5), "duplicate"), 5: None, 6: "bad_weight", 7: None, 8: "duplicate"}
    for order in (range(9), range(8, -1, -1), [4, 2, 0, 8, 6, 1, 3, 5, 7]):
        assert verdicts_of(rows.take(list(order))) == expected


def test_rows_that_the_table_has_are_present_and_only_they() -> None:
    rows = [("u", "i", 1, 1), ("u", "i", 1, 1), ("u", "i", 1, None), ("v", "i", 1, 1), ("u", "i", 1, 2)]
    there = [("u", "i", 1, 1, None, True), ("u", "i", 1, None, None, True), ("w", "i", 1, 1, None, True), ("u", "i", 1, 1, None, True)]
    assert verdicts_of(events([*rows, *there])) == {0: ALREADY_PRESENT, 1: "duplicate", 2: ALREADY_PRESENT, 3: None, 4: None}


def test_nothing_at_all_is_marked_too() -> None:
    assert mark_duplicates(events([]).cast(events([("u", "i", 1, 1)]).schema)).num_rows == 0


@given(
    st.lists(st.tuples(st.sampled_from("uv"), st.sampled_from("ij"), st.sampled_from([1, 2]), st.sampled_from([None, 1]), st.booleans()))
)
def test_the_first_of_each_event_stays(rows: list[tuple[Any, ...]]) -> None:
    table = [(*row[:4], None, row[4]) for row in rows]
    if not table:
        return
    present = {row[:4] for row in rows if row[4]}
    seen: set[tuple[Any, ...]] = set()
    expected: dict[int, str | None] = {}
    for place, row in enumerate(rows):
        if not row[4]:
            expected[place] = "duplicate" if row[:4] in seen else ALREADY_PRESENT if row[:4] in present else None
            seen.add(row[:4])
    assert verdicts_of(events(table)) == expected
    assert set(EVENT_KEY) < set(events(table).column_names)


def items(rows: list[tuple[Any, ...]]) -> dict[tuple[int, int], str | None]:
    """Verdicts by (file, position) of rows of (item_id, file, position, updated on day or None, reason)."""
    table = pa.table(
        {
            "item_id": pa.array([row[0] for row in rows]),
            FILE: pa.array([row[1] for row in rows], pa.int32()),
            POSITION: pa.array([row[2] for row in rows]),
            UPDATED: pa.array([None if row[3] is None else DAY + dt.timedelta(days=row[3]) for row in rows], TIMESTAMP),
            REASON: pa.array([row[4] if len(row) > 4 else None for row in rows], pa.string()),
        }
    )
    order = np.random.default_rng(0).permutation(len(rows))
    marked = mark_repeated_keys(table.take(pa.array(order)), "item_id")
    return dict(zip(zip(marked[FILE].to_pylist(), marked[POSITION].to_pylist(), strict=True), marked[REASON].to_pylist(), strict=True))


def test_the_later_file_says_what_holds_of_an_item() -> None:
    found = items([("a", 0, 0, None), ("a", 1, 0, None), ("a", 1, 5, None), ("b", 0, 1, None), (None, 0, 2, None, "null_item_id")])
    assert found == {(0, 0): "superseded", (1, 0): "duplicate_item_id", (1, 5): None, (0, 1): None, (0, 2): "null_item_id"}


def test_a_newer_update_wins_over_a_later_file() -> None:
    found = items([("a", 0, 0, 3), ("a", 1, 0, 2), ("a", 2, 0, None), ("b", 1, 1, 1), ("b", 1, 2, 0)])
    assert found == {(0, 0): None, (1, 0): "superseded", (2, 0): "superseded", (1, 1): None, (1, 2): "superseded"}
