"""Exposures and feedback become the rows that were recorded, in the warehouse's id types, whatever a request spells."""

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.dataset.exposure_schema import exposure_schema, feedback_schema
from recsys_batch.dataset.log_columns import encode_exposures, encode_feedback
from recsys_batch.dataset.log_rows import Exposure, FeedbackEvent
from recsys_batch.schemas import IdTypes

NUMBERS, TEXTS = IdTypes("BIGINT", "BIGINT"), IdTypes("STRING", "STRING")
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
WHEN = st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC))
FLOAT = st.floats(width=32, allow_nan=False)


def exposure(**changed: Any) -> Exposure:
    given: dict[str, Any] = {"request_id": "r", "shown_at": NOON, "user_id": 1, "snapshot_id": "s", "model_version": "7"}
    given |= {"source": "ranker", "degraded": None, "item_ids": [10, 20], "scores": [0.5, 0.25]}
    return Exposure(**{**given, **changed})


@st.composite
def exposures(draw: st.DrawFn, ids: IdTypes) -> Exposure:
    item = st.integers(-(2**63), 2**63 - 1) if ids.item == "BIGINT" else TEXT
    n = draw(st.integers(0, 4))

    def of_items(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.lists(values, min_size=n, max_size=n))

    return Exposure(
        request_id=draw(TEXT),
        shown_at=draw(WHEN),
        user_id=draw(st.integers(-(2**63), 2**63 - 1) if ids.user == "BIGINT" else TEXT),
        snapshot_id=draw(st.none() | TEXT),
        model_version=draw(st.none() | TEXT),
        source=draw(TEXT),
        degraded=draw(st.none() | TEXT),
        item_ids=of_items(item),
        scores=of_items(FLOAT),
        batch_scores=of_items(st.none() | FLOAT) if draw(st.booleans()) else None,
        candidate_ranks=of_items(st.none() | st.integers(1, 300)) if draw(st.booleans()) else None,
        context_ts=draw(st.none() | WHEN),
        device=draw(st.none() | TEXT),
        session_item_ids=draw(st.lists(item, max_size=3)),
        attributes=draw(st.dictionaries(TEXT, TEXT, max_size=3)),
        lists=draw(st.none() | TEXT),
        propensities=of_items(FLOAT) if draw(st.booleans()) else None,
        ranker_positions=of_items(st.integers(1, 300)) if draw(st.booleans()) else None,
        batch_positions=of_items(st.none() | st.integers(1, 300)) if draw(st.booleans()) else None,
        candidates=draw(st.none() | TEXT),
        candidate_scores=of_items(FLOAT) if draw(st.booleans()) else None,
    )


def as_row(one: Exposure) -> dict[str, Any]:
    n = len(one.item_ids)
    optional = (
        one.batch_scores,
        one.candidate_ranks,
        one.propensities,
        one.ranker_positions,
        one.batch_positions,
        one.candidate_scores,
    )
    others = [values or [None] * n for values in optional]
    names = (
        *("item_id", "position", "score", "batch_score", "candidate_rank"),
        *("propensity", "ranker_position", "batch_position", "candidate_score"),
    )
    items = [dict(zip(names, row, strict=True)) for row in zip(one.item_ids, range(1, n + 1), one.scores, *others, strict=True)]
    same = ("request_id", "shown_at", "user_id", "snapshot_id", "model_version", "source", "degraded")
    context = {"context_ts": one.context_ts, "device": one.device, "session_item_ids": list(one.session_item_ids)}
    return {
        **{name: getattr(one, name) for name in same},
        "items": items,
        **context,
        "attributes": list(one.attributes.items()),
        "lists": one.lists,
        "candidates": one.candidates,
    }


@pytest.mark.parametrize("ids", [NUMBERS, TEXTS], ids=["BIGINT", "STRING"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_value_of_every_exposure_comes_back(ids: IdTypes, data: st.DataObject) -> None:
    rows = data.draw(st.lists(exposures(ids), min_size=1, max_size=4))
    batch = encode_exposures(rows, ids, exposure_schema(ids))
    batch.validate(full=True)
    assert batch.to_pylist() == list(map(as_row, rows))


def test_columns_are_exactly_those_of_the_schema() -> None:
    ids = IdTypes("BIGINT", "STRING")
    told = encode_feedback([FeedbackEvent(None, 1, "a", NOON, "click")], ids, feedback_schema(ids))
    shown = encode_exposures([exposure(item_ids=["a", "b"])], ids, exposure_schema(ids))
    assert (shown.schema, told.schema) == (exposure_schema(ids), feedback_schema(ids))
    assert told.to_pylist() == [{"request_id": None, "user_id": 1, "item_id": "a", "event_ts": NOON, "event_type": "click", "weight": 1.0}]


def test_ids_of_the_other_type_are_the_same_ids_and_session_items_that_are_none_are_left_out() -> None:
    row = exposure(user_id="7", session_item_ids=["10", "no number", 20])
    found = encode_exposures([row], NUMBERS, exposure_schema(NUMBERS)).to_pylist()[0]
    assert (found["user_id"], found["session_item_ids"]) == (7, [10, 20])
    told = encode_feedback([FeedbackEvent("r", 7, 10, NOON, "click")], TEXTS, feedback_schema(TEXTS)).to_pylist()[0]
    assert (told["user_id"], told["item_id"]) == ("7", "10")


def test_context_values_that_are_no_text_are_logged_as_json() -> None:
    row = exposure(attributes={"n": 3, "on": True, "tags": ["å"], "nothing": None, "text": "3"})
    found = encode_exposures([row], NUMBERS, exposure_schema(NUMBERS)).to_pylist()[0]
    assert found["attributes"] == [("n", "3"), ("on", "true"), ("tags", '["å"]'), ("nothing", None), ("text", "3")]


INVALID: dict[str, dict[str, Any]] = {
    "a user id that is no number": {"user_id": "somebody"},
    "a user id beyond 64 bits": {"user_id": 2**63},
    "an item id that is no number": {"item_ids": [10, "x"]},
    "a missing item id": {"item_ids": [10, None]},
    "fewer scores than items": {"scores": [0.5]},
    "more ranks than items": {"candidate_ranks": [1, 2, 3]},
    "no request id": {"request_id": None},
    "a lone surrogate": {"device": "\ud800"},
    "a time that is none": {"shown_at": "noon"},
    "attributes that are no mapping": {"attributes": 3},
}


@pytest.mark.parametrize("changed", INVALID.values(), ids=INVALID.keys())
def test_a_row_that_cannot_be_raises(changed: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError, pa.ArrowException)):
        encode_exposures([exposure(), exposure(**changed)], NUMBERS, exposure_schema(NUMBERS))
