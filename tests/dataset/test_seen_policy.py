"""Which events count as seen, against an oracle that asks of each item when the user had it last."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.dataset.seen_policy import SeenPolicy, make_seen_policy

DAY = dt.date(2026, 3, 1)
END = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
SEGMENTS = ["music", "grocery", None]
RULES = st.one_of(st.sampled_from(["exclude", "allow"]), st.integers(0, 40).map(lambda days: {"after_days": days}))
SETTINGS = st.one_of(RULES, st.dictionaries(st.sampled_from(["all", "music", "grocery", "nobody's"]), RULES, min_size=1))


def microseconds(when: dt.datetime | None) -> int | None:
    return None if when is None else (when - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def rule_of(setting: Any, segment: str | None) -> Any:
    if setting in ("exclude", "allow") or "after_days" in setting:
        return setting
    return setting.get(segment, setting.get("all", "exclude"))


def may_list(rule: Any, times: list[dt.datetime | None]) -> bool:
    """Whether somebody may get an item again whom it came to at these times."""
    if rule in ("exclude", "allow"):
        return bool(rule == "allow")
    return all(when is not None for when in times) and max(times) <= END - dt.timedelta(days=rule["after_days"])  # type: ignore[type-var, operator]


TIMES = st.one_of(
    st.none(),
    st.integers(-3, 45).map(lambda days: END - dt.timedelta(days=days)),
    st.tuples(st.integers(-3, 45), st.integers(-2, 2)).map(lambda at: END - dt.timedelta(days=at[0], microseconds=at[1])),
)
EVENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), TIMES), max_size=30)


@given(SETTINGS, EVENTS)
def test_an_item_is_seen_where_the_rule_of_the_segment_says_so_of_its_newest_event(
    setting: Any, events: list[tuple[int, int, dt.datetime | None]]
) -> None:
    owner = np.array([user for user, _, _ in events], dtype=np.int64)
    event_us = pa.array([microseconds(when) for _, _, when in events], pa.int64())
    marks = make_seen_policy(setting, DAY).mark_seen(pa.array(SEGMENTS, pa.string()), owner, event_us)
    assert (marks.dtype, marks.shape) == (np.bool_, owner.shape)
    seen = {(user, item) for (user, item, _), is_seen in zip(events, marks, strict=True) if is_seen}
    times: dict[tuple[int, int], list[dt.datetime | None]] = {}
    for user, item, when in events:
        times.setdefault((user, item), []).append(when)
    assert seen == {pair for pair, its in times.items() if not may_list(rule_of(setting, SEGMENTS[pair[0]]), its)}


@pytest.mark.parametrize(
    ("age", "is_seen"), [(dt.timedelta(days=14), False), (dt.timedelta(days=14, microseconds=-1), True), (dt.timedelta(days=-1), True)]
)
def test_an_item_comes_back_when_its_days_are_over_at_the_end_of_the_run_date(age: dt.timedelta, is_seen: bool) -> None:
    event_us = pa.array([microseconds(END - age)], pa.int64())
    policy = make_seen_policy({"after_days": 14}, DAY)
    assert policy.mark_seen(pa.nulls(1, pa.string()), np.zeros(1, np.int64), event_us).tolist() == [is_seen]


@pytest.mark.parametrize(
    ("setting", "needs_times", "needs_segments", "excludes_all"),
    [
        ("exclude", False, False, True),
        ({"music": "exclude"}, False, False, True),
        ("allow", False, False, False),
        ({"music": "allow"}, False, True, False),
        ({"after_days": 0}, True, False, False),
        ({"all": "allow", "music": {"after_days": 7}}, True, True, False),
    ],
)
def test_times_and_segments_are_asked_for_where_something_rests_on_them(
    setting: Any, needs_times: bool, needs_segments: bool, excludes_all: bool
) -> None:
    policy = make_seen_policy(setting, DAY)
    assert (policy.needs_times, policy.needs_segments, policy.excludes_all) == (needs_times, needs_segments, excludes_all)
    if not needs_times:
        owner = np.array([0, 1, 2], dtype=np.int64)
        expected = [rule_of(setting, segment) == "exclude" for segment in SEGMENTS]
        assert policy.mark_seen(pa.array(SEGMENTS, pa.string()), owner, None).tolist() == expected


def test_it_says_who_may_always_have_things_again() -> None:
    policy = make_seen_policy({"all": "allow", "music": {"after_days": 0}, "grocery": "exclude"}, DAY)
    assert [policy.allows_all(segment) for segment in ("music", "grocery", "other", None)] == [False, False, True, True]
    assert isinstance(policy, SeenPolicy)
