"""Known users of a range, from files that each know only some of them."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recsys_batch.dataset.seen_policy import make_seen_policy
from recsys_batch.dataset.user_events import EVENTS, USERS, UserEvents
from recsys_batch.schemas import TABLES, IdTypes, TableSpec
from recsys_batch.tables.slice_writer import TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles

IDS = IdTypes("STRING", "BIGINT")
EXCLUDE = make_seen_policy("exclude", dt.date(2026, 3, 1))


def files(folder: Path, spec: TableSpec, rows: list[dict[str, Any]], partition: dict[str, Any] | None = None) -> UserSortedFiles:
    where = TableSlice(str(folder / spec.name), spec, IDS, partition or {}, 10**9)
    return UserSortedFiles(where, list(where.write([pa.RecordBatch.from_pylist(rows, schema=where.schema)], 0)))


def event(user: str, item: int, weight: float = 1.0, event_us: int | None = None) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "event_us": event_us, "weight": weight, "before": False}


def person(user: str, segment: str | None, in_users: bool = True) -> dict[str, Any]:
    return {"user_id": user, "segment": segment, "attributes": None, "in_users": in_users, "segment_before": None}


@pytest.fixture
def gathered(tmp_path: Path) -> UserEvents:
    events = files(tmp_path, EVENTS, [event("a", 1), event("a", 2, -1.0), event("c", 3)])
    people = files(tmp_path, USERS, [person("a", "x"), person("b", "y"), person("d", "z", in_users=False)])
    return UserEvents([(None, None)], events, people, None)


@pytest.fixture
def embeddings(tmp_path: Path) -> UserSortedFiles:
    rows = [{"user_id": user, "embedding": [float(n)], "n_events": 1} for n, user in enumerate("aef")]
    return files(tmp_path, TABLES["user_embeddings"], rows, {"run_id": "r"})


@pytest.mark.parametrize("n_rows", [1, 100])
def test_whoever_is_somewhere_is_known_with_all_that_is_known(gathered: UserEvents, embeddings: UserSortedFiles, n_rows: int) -> None:
    batches = list(gathered.known_users(embeddings, (None, "e"), n_rows, EXCLUDE))
    assert [tuple(row.values()) for batch in batches for row in batch.to_pylist()] == [
        ("a", [0.0], [1, 2], "x"),
        ("b", None, [], "y"),
        ("c", None, [3], None),
        ("e", [1.0], [], None),
    ]


def test_of_those_that_are_asked_for_only(gathered: UserEvents, embeddings: UserSortedFiles) -> None:
    (batch,) = gathered.known_users(embeddings, (None, None), 10, EXCLUDE, pa.array(["c", "f", "nobody"]))
    assert [tuple(row.values()) for row in batch.to_pylist()] == [("c", None, [3], None), ("f", [2.0], [], None)]


def test_positives_are_what_weighs_more_than_the_least(gathered: UserEvents) -> None:
    assert gathered.positives((None, None), 0.0)["item_id"].to_pylist() == [1, 3]


def test_without_a_users_table_nobody_has_a_segment(gathered: UserEvents, embeddings: UserSortedFiles) -> None:
    alone = UserEvents(gathered.bounds, gathered.events, None, None)
    (batch,) = alone.known_users(embeddings, ("a", "c"), 10, EXCLUDE)
    assert [tuple(row.values()) for row in batch.to_pylist()] == [("c", None, [3], None)]


def test_what_counts_as_seen_goes_by_segment_and_time_and_nobody_is_less_known_for_it(
    tmp_path: Path, gathered: UserEvents, embeddings: UserSortedFiles
) -> None:
    boundary = int(dt.datetime(2026, 2, 28, tzinfo=dt.UTC).timestamp()) * 1_000_000  # two days before the end of March 1
    rows = [event("a", 1, event_us=boundary), event("a", 2, event_us=boundary + 1), event("a", 3), event("b", 1), event("c", 2)]
    alone = UserEvents(gathered.bounds, files(tmp_path / "timed", EVENTS, rows), gathered.users, None)
    policy = make_seen_policy({"x": {"after_days": 2}, "y": "allow"}, dt.date(2026, 3, 1))
    (batch,) = alone.known_users(embeddings, (None, "e"), 10, policy)
    assert [tuple(row.values()) for row in batch.to_pylist()] == [
        ("a", [0.0], [2, 3], "x"),
        ("b", None, [], "y"),
        ("c", None, [2], None),
        ("e", [1.0], [], None),
    ]
    assert alone.seen((None, None), policy).to_pylist() == [
        {"user_id": "a", "item_id": 2},
        {"user_id": "a", "item_id": 3},
        {"user_id": "c", "item_id": 2},
    ]
