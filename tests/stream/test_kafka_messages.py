"""Messages become what ingest would make of them; repeated events and unknown items are told."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from recsys_batch.schemas import IdTypes
from recsys_batch.stream.kafka_messages import parse_messages, split_by_validity


@pytest.fixture
def parsed() -> Any:
    def run(*messages: bytes | None) -> pa.Table:
        n = len(messages)
        columns = {"topic": ["events"] * n, "partition": pa.array([1] * n, pa.int32()), "offset": list(range(n))}
        return parse_messages(pa.table({**columns, "value": pa.array(messages, pa.binary())}), IdTypes("STRING", "BIGINT"))

    return run


def message(user: str, item: int, **more: Any) -> bytes:
    return json.dumps({"user_id": user, "item_id": item, "event_ts": "2026-03-01T12:00:00Z", **more}).encode()


def test_a_message_without_type_and_weight_is_an_event_of_weight_one(parsed: Any) -> None:
    usable, rejected = split_by_validity(parsed(message("u1", 7)), None)
    (row,) = usable.to_pylist()
    assert (row["user_id"], row["item_id"], row["event_type"], row["weight"], str(row["event_date"])) == (
        "u1",
        7,
        "event",
        1.0,
        "2026-03-01",
    )
    assert rejected.num_rows == 0


def test_one_of_equal_events_stays_and_a_rejected_row_is_no_event(parsed: Any) -> None:
    rows = parsed(message("u1", 7, weight="heavy"), message("u1", 7, weight=0.0), message("u1", 7, weight=-0.0), message("u1", 7, weight=2))
    usable, rejected = split_by_validity(rows, None)
    assert usable["weight"].to_pylist() == [0.0, 2.0]
    told = [(row["_reason"], json.loads(row["_row"])["offset"]) for row in rejected.to_pylist()]
    assert told == [("bad_weight", 0), ("duplicate", 2)]


def test_events_whose_item_a_declared_catalogue_lacks_are_rejected(parsed: Any) -> None:
    usable, rejected = split_by_validity(parsed(message("u1", 7), message("u1", 8), b"{}"), pa.array([7]))
    assert usable["item_id"].to_pylist() == [7]
    assert rejected["_reason"].to_pylist() == ["unknown_item", "null_user_id"]


def test_nothing_at_all_is_split_too(parsed: Any) -> None:
    usable, rejected = split_by_validity(parsed(message("u1", 7)).slice(0, 0), pa.array([7]))
    assert (usable.num_rows, rejected.num_rows) == (0, 0)
