"""Carried rows are held against the night that they come from, and against what happened since."""

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_batch.dataset.seen_policy import make_seen_policy
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.executors.verify import LISTED, VERIFY_COUNTS, BaseRunFiles, VerifyTask, find_differing_columns, make_verifier
from recsys_batch.tables.slice_writer import TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles

IDS = IdTypes("BIGINT", "BIGINT")
NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
LISTS = {1: [10, 20], 2: [20, 30], 3: [30, 10], 4: [10, 30]}
SAID = pa.schema(
    [
        ("range", pa.int32()),
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("segment", pa.string()),
        ("now", pa.bool_()),
        ("before", pa.bool_()),
    ]
)


def slice_of(folder: Path, name: str, rows: list[dict[str, Any]]) -> UserSortedFiles:
    spec = TABLES[name]
    where = TableSlice(str(folder / name), spec, IDS, dict.fromkeys(spec.partition_by, "x"), 10**9)
    batches = [pa.RecordBatch.from_pylist(rows, schema=where.schema)] if rows else []
    return UserSortedFiles(where, list(where.write(batches, 0)))


def topk(folder: Path, lists: dict[int, list[int]], **changes: Any) -> UserSortedFiles:
    common = {"candidate_rank": 1, "source": "model", "model_version": "1", "generated_at": NOW}
    rows = [
        {"user_id": user, "rank": rank, "item_id": item, "score": -float(rank), **common, **changes}
        for user, items in lists.items()
        for rank, item in enumerate(items, 1)
    ]
    return slice_of(folder, "topk", rows)


@pytest.fixture
def task(tmp_path: Path) -> VerifyTask:
    """User 4 has changed; all others' rows are carried."""
    pq.write_table(pa.table({"user_id": [4]}), tmp_path / "changed.parquet")
    items = pa.table(
        {
            "item_id": [10, 20, 30, 40],
            "is_available": [True, True, True, False],
            "ruled_out": [False] * 4,
            "is_head": [False] * 4,
        }
    )
    pq.write_table(items, tmp_path / "items.parquet")
    nobody = slice_of(tmp_path, "user_embeddings", [])
    return VerifyTask(
        topk=topk(tmp_path / "now", {**LISTS, 4: [30, 20]}),
        shortfalls=slice_of(tmp_path, "shortfalls", []),
        embeddings=nobody,
        items=str(tmp_path / "items.parquet"),
        segments=[],
        default=-1,
        top_k=2,
        bounds=[(None, None)],
        seen=make_seen_policy("exclude", NOW.date()),
        base=BaseRunFiles(topk(tmp_path / "before", LISTS), nobody, str(tmp_path / "changed.parquet")),
    )


def counts(task: VerifyTask, *events: tuple[int, int, bool]) -> dict[str, int]:
    """Of (user, item, known before)."""
    rows = [{"range": 0, "user_id": user, "item_id": item, "now": True, "before": before} for user, item, before in events]
    batch = pa.RecordBatch.from_pylist([*rows, {"range": 0}], schema=SAID)
    (found,) = make_verifier(task)(iter([batch]))
    return {name: n for name, n in found.select(VERIFY_COUNTS).to_pylist()[0].items() if n}


GOOD = {"n_known": 1, "n_known_before": 1, "n_users": 4, "n_rows": 8}


def test_rows_that_are_what_they_were_pass(task: VerifyTask) -> None:
    assert counts(task, (4, 10, True), (4, 40, False)) == GOOD


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({**LISTS, 2: [20, 10]}, {"rows_not_carried": 1}),
        ({**LISTS, 2: [30, 20]}, {"rows_not_carried": 2}),
        ({user: items for user, items in LISTS.items() if user != 3}, {"rows_not_carried": 2, "n_users": 3, "n_rows": 6}),
        ({**LISTS, 4: [30, 30]}, {"lists_broken": 1}),
        ({**LISTS, 4: [40, 10]}, {"rows_unavailable": 1, "rows_seen": 1}),
        ({**LISTS, 4: [30]}, {"lists_short_unexplained": 1, "n_rows": 7}),
        ({**LISTS, 1: [10]}, {"lists_short_unexplained": 1, "rows_not_carried": 5, "n_rows": 7}),
    ],
)
def test_what_is_not_is_counted(task: VerifyTask, tmp_path: Path, lists: dict[int, list[int]], expected: dict[str, int]) -> None:
    spoiled = replace(task, topk=topk(tmp_path / "spoiled", lists))
    assert counts(spoiled, (4, 40, True)) == {**GOOD, **expected}


def test_an_event_of_somebody_who_should_have_changed_is_found(task: VerifyTask) -> None:
    found = counts(task, (4, 40, True), (2, 40, False))
    assert (found["rows_not_carried"], found["n_known"], found["n_known_before"]) == (1, 2, 1)


def test_an_item_that_went_is_found_in_carried_rows(task: VerifyTask, tmp_path: Path) -> None:
    assert task.base is not None
    gone = pa.table(
        {"item_id": [10, 20, 30], "is_available": [True, True, False], "ruled_out": [True, False, False], "is_head": [False] * 3}
    )
    pq.write_table(gone, tmp_path / "gone.parquet")
    found = counts(replace(task, items=str(tmp_path / "gone.parquet")), (4, 40, True))
    assert (found["rows_unavailable"], found["rows_ruled_out"]) == (3, 2)


def test_users_without_history_count_as_popular_wherever_their_batches_end(
    task: VerifyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys_batch.tables.user_ranges.BATCH_ROWS", 3)
    popular = topk(tmp_path / "popular", LISTS, source="popular")
    assert task.base is not None
    assert counts(replace(task, topk=popular, base=replace(task.base, topk=popular)), (4, 40, True)) == {**GOOD, "n_popular": 4}


def test_what_is_listed_and_what_of_it_is_much_taken(task: VerifyTask, tmp_path: Path) -> None:
    items = pa.table(
        {"item_id": [10, 15, 20, 30], "is_available": [True] * 4, "ruled_out": [False] * 4, "is_head": [True, True, False, False]}
    )
    pq.write_table(items, tmp_path / "head.parquet")
    nobody = pa.RecordBatch.from_pylist([{"range": 0}], schema=SAID)
    for one in (task, replace(task, base=None)):
        (found,) = make_verifier(replace(one, items=str(tmp_path / "head.parquet")))(iter([nobody]))
        assert found["n_head"].to_pylist() == [2]  # 10 in the lists of users 1 and 3
        assert np.unpackbits(np.frombuffer(found[LISTED][0].as_py(), np.uint8), count=4).tolist() == [1, 0, 1, 1]


def test_streams_are_compared_whatever_their_batches() -> None:
    def stream(values: list[int], n: int) -> Any:
        return iter(pa.table({"value": values}).to_batches(n))

    assert find_differing_columns(stream([1, 2, 3, 4, 5], 2), stream([1, 2, 3, 4, 5], 3)) == 0
    assert find_differing_columns(stream([1, 2, 3, 4, 5], 2), stream([1, 2, 9, 4], 3)) == 2
    assert find_differing_columns(iter([]), stream([1, 2], 1)) == 2


@pytest.mark.parametrize(
    ("setting", "expected"), [("exclude", 4), ("allow", 0), ({"after_days": 3}, 3), ({"all": "exclude", "y": "allow"}, 3)]
)
def test_seen_items_are_those_that_the_setting_keeps_out(task: VerifyTask, setting: Any, expected: int) -> None:
    boundary = int(dt.datetime(2026, 2, 27, tzinfo=dt.UTC).timestamp()) * 1_000_000  # three days before the end of March 1
    events = [(1, 10, boundary + 1), (1, 20, boundary), (2, 20, None), (3, 30, boundary + 1), (3, 40, None)]
    rows: list[dict[str, Any]] = [{"user_id": user, "item_id": item, "event_us": event_us} for user, item, event_us in events]
    rows += [{"user_id": 1, "segment": "x"}, {"user_id": 2, "segment": "y"}]
    columns = {"range": pa.int32(), "user_id": pa.int64(), "item_id": pa.int64(), "event_us": pa.int64(), "segment": pa.string()}
    schema = pa.schema([*columns.items(), ("now", pa.bool_()), ("before", pa.bool_())])
    batch = pa.RecordBatch.from_pylist([{"range": 0}, *({"range": 0, "now": True, "before": False, **row} for row in rows)], schema=schema)
    everybody_is_new = replace(task, base=None, seen=make_seen_policy(setting, NOW.date()))
    (found,) = make_verifier(everybody_is_new)(iter([batch]))
    assert found["rows_seen"].to_pylist() == [expected]
