"""A row of the log comes back as it was, and one with values that MessagePack has not comes back with these spelt as text."""

import datetime as dt
from typing import Any

import pytest

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.dataset.log_rows import Exposure, FeedbackEvent, decode_rows, encode_row

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def exposure(**changed: Any) -> Exposure:
    given: dict[str, Any] = {"request_id": "r", "shown_at": NOON, "user_id": 1, "snapshot_id": "s", "model_version": "7"}
    given |= {"source": "ranker", "degraded": None, "item_ids": [10, 20], "scores": [0.5, 0.25], "session_item_ids": []}
    return Exposure(**{**given, **changed})


def deep(depth: int) -> Any:
    value: Any = "end"
    for _ in range(depth):
        value = [value]
    return value


def decoded(*encoded: bytes, kind: str = EXPOSURES) -> tuple[list[Any], list[str]]:
    return decode_rows(bytes([0x90 + len(encoded)]) + b"".join(encoded), kind)


def test_rows_come_back_as_they_were() -> None:
    row = exposure(session_item_ids=[3, "4"], attributes={"n": [1, {"on": None}]}, context_ts=NOON, user_id="guest-1")
    event = FeedbackEvent(None, "guest-1", 7, NOON, "click", 2.0)
    assert decoded(encode_row(row)) == ([row], [])
    assert decoded(encode_row(event), kind=FEEDBACK) == ([event], [])


BIG = 2**64
SPELT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a user id": ({"user_id": BIG}, {"user_id": str(BIG)}),
    "a negative user id": ({"user_id": -BIG}, {"user_id": str(-BIG)}),
    "session items": ({"session_item_ids": [1, BIG]}, {"session_item_ids": [1, str(BIG)]}),
    "context": ({"attributes": {"n": BIG, "in": [{"m": -BIG}]}}, {"attributes": {"n": str(BIG), "in": [{"m": str(-BIG)}]}}),
    "half a character": ({"device": "a\ud800", "attributes": {"\ud800": 1}}, {"device": "a?", "attributes": {"?": 1}}),
}


@pytest.mark.parametrize(("changed", "spelt"), SPELT.values(), ids=SPELT.keys())
def test_values_that_messagepack_has_not_are_spelt_as_text(changed: dict[str, Any], spelt: dict[str, Any]) -> None:
    assert decoded(encode_row(exposure(**changed))) == ([exposure(**spelt)], [])


@pytest.mark.parametrize("depth", [500, 2_000, 50_000])
def test_context_that_is_nested_too_deeply_for_any_python_is_cut_off(depth: int) -> None:
    ((row,), _) = decoded(encode_row(exposure(attributes={"n": deep(depth)})))
    assert row.request_id == "r" and str(row.attributes).count("[") < 60 and "..." in str(row.attributes)


def test_context_that_is_nested_less_is_whole() -> None:
    row = exposure(attributes={"n": deep(499), "m": 1})
    assert decoded(encode_row(row)) == ([row], [])


def test_a_row_that_is_none_costs_no_other_and_is_told_as_text() -> None:
    broken = encode_row(exposure(shown_at="noon", request_id="broken"))
    rows, unreadable = decoded(encode_row(exposure()), broken, encode_row(exposure(request_id="s")))
    assert [row.request_id for row in rows] == ["r", "s"]
    (text,) = unreadable
    assert "noon" in text and "broken" in text
