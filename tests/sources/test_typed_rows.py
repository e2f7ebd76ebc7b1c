"""Raw rows to typed rows: the first reason that holds, one rule for missing values, attributes, weights by type."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_batch.schemas import IdTypes
from recsys_batch.sources.raw_rows import RawRows
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.sources.typed_rows import REASON, UPDATED, ParseSettings, parse_rows

BIGINTS, STRINGS = IdTypes("BIGINT", "BIGINT"), IdTypes("STRING", "STRING")
DAY = dt.datetime(2021, 3, 5, tzinfo=dt.UTC)


def parsed(
    kind: str, ids: IdTypes, how: SourceFormat | None = None, newest: dt.datetime | None = None, **columns: Any
) -> list[dict[str, Any]]:
    malformed = columns.pop("malformed", None)
    arrays = {name: column if isinstance(column, pa.Array) else pa.array(column, pa.string()) for name, column in columns.items()}
    n = len(next(iter(arrays.values())))
    raw = RawRows(np.arange(n), arrays, pa.array(malformed or [None] * n, pa.string()))
    return list(parse_rows(raw, ParseSettings(kind, how or SourceFormat(), ids, {"event_ts": "text"}, newest)).to_pylist())


def test_the_first_reason_that_holds_is_given() -> None:
    rows = [
        ("u", "i", "2021-03-05", "1", None, None),
        ("u", "i", "2021-03-05", "-1", None, None),
        ("", "i", "x", "NaN", None, "null_user_id"),
        ("u", None, "x", "1", None, "null_item_id"),
        ("u", r"\N", "x", "1", None, "null_item_id"),
        ("u", "i", None, "x", None, "null_event_ts"),
        ("u", "i", "x", "x", None, "bad_event_ts"),
        ("u", "i", "2099-03-05", "1", None, "future_event_ts"),
        ("u", "i", "2021-03-05", "NaN", None, "bad_weight"),
        ("u", "i", "2021-03-05", "inf", None, "bad_weight"),
        ("u", "i", "2021-03-05", "1e99", None, "bad_weight"),
        ("u", "i", "2021-03-05", None, None, "bad_weight"),
        ("u", "i", None, None, "u;i", "malformed_line"),
    ]
    names = ("user_id", "item_id", "event_ts", "weight", "malformed")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    found = parsed("interactions", STRINGS, None, DAY + dt.timedelta(days=365), **columns)
    assert [(row[REASON], row["event_type"]) for row in found] == [(row[-1], "event") for row in rows]
    wrong = parsed("interactions", BIGINTS, user_id=["7", "x"], item_id=["x", "7"])
    assert [row[REASON] for row in wrong] == ["bad_item_id", "bad_user_id"]


def test_what_a_file_does_not_say_is_its_default() -> None:
    (row,) = parsed("interactions", STRINGS, user_id=["u"], item_id=["i"])
    assert (row["event_ts"], row["event_date"], row["weight"], row["event_type"], row[REASON]) == (None, None, 1.0, "event", None)


def test_weights_by_event_type_know_their_types() -> None:
    how = SourceFormat(weights={"view": 1.0, "dislike": -1.0}, columns={"event_type": "what"})
    found = parsed("interactions", STRINGS, how, user_id=["u"] * 3, item_id=["i"] * 3, what=["view", "dislike", "gift"])
    assert [(row["weight"], row[REASON]) for row in found] == [(1.0, None), (-1.0, None), (None, "unknown_event_type")]


def test_columns_of_any_type_become_one() -> None:
    for weight in (pa.array([2], pa.int32()), pa.array([2.0]), pa.array(["2"]), pa.array([2], pa.uint64())):
        assert parsed("interactions", STRINGS, user_id=pa.array([7]), item_id=pa.array([1.0]), weight=weight)[0]["weight"] == 2.0
    (row,) = parsed("interactions", STRINGS, user_id=pa.array([7]), item_id=pa.array([1.0]), weight=pa.nulls(1))
    assert (row["user_id"], row["item_id"], row[REASON]) == ("7", "1", "bad_weight")


def test_missing_values_of_items_follow_the_same_rule() -> None:
    found = parsed(
        "items",
        BIGINTS,
        item_id=["1", "2", "3", "x", None],
        is_available=["on", r"\N", "perhaps", "1", "1"],
        title=["NULL", "T", " t ", "", ""],
        categories=["a|nan", None, "b", "", ""],
        first_seen_ts=["2021-03-05", "NaN", None, None, None],
        color=["red", r"\N", " ", "", ""],
        updated_ts=["2021-03-06", None, None, None, None],
    )
    assert [row[REASON] for row in found] == [None, None, "bad_is_available", "bad_item_id", "null_item_id"]
    first, second, third = found[:3]
    assert (first["title"], first["categories"], first["is_available"], first["first_seen_ts"]) == (None, ["a"], True, DAY)
    assert (first["attributes"], first[UPDATED]) == ([("color", "red")], DAY + dt.timedelta(days=1))
    assert (second["title"], second["categories"], second["is_available"], second["attributes"]) == ("T", [], True, [])
    assert third["title"] == " t "


def test_attributes_are_the_other_columns_or_a_map_of_them() -> None:
    types = pa.map_(pa.string(), pa.string())
    (row,) = parsed("users", STRINGS, user_id=["u"], segment=["None"], attributes=pa.array([[("city", "Oslo")]], types))
    assert (row["segment"], row["attributes"]) == (None, [("city", "Oslo")])
    (row,) = parsed("users", STRINGS, user_id=["u"], age=pa.array([7.0]), tags=pa.array([["a", "b"]]))
    assert row["attributes"] == [("age", "7"), ("tags", '["a", "b"]')]
