"""Validation is on the future: never part of a basket, never an item that the user had before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.dataset.histories import NO_TIME
from recsys_batch.model import validation_split
from recsys_batch.model.training_data import Positives, group_by_user
from recsys_batch.model.validation_split import split_positives

MINUTE = 60_000_000
GAP = 30.0


def events(rows: list[tuple[int, int, int]], n_users: int) -> Positives:
    """(user, item, minute or NO_TIME) of each event."""
    users, items, minutes = (np.array([row[k] for row in rows], dtype=np.int64) for k in range(3))
    return group_by_user(users, items, np.where(minutes == NO_TIME, NO_TIME, minutes * MINUTE), n_users, 1000)


def pairs(positives: Positives) -> set[tuple[int, int]]:
    return set(zip(positives.rows.tolist(), positives.codes.tolist(), strict=True))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users are enough to measure on."""
    monkeypatch.setattr(validation_split, "MIN_USERS_ON_BOTH_SIDES", 2)


def test_everything_after_one_time_is_held_out_whole_baskets_and_new_items_only(few: None) -> None:
    rows = [(0, 1, 0), (0, 2, 0), (1, 1, 5), (0, 3, 990), (0, 4, 1005), (0, 1, 2000), (0, 5, 2000), (1, 6, 2500), (2, 7, 2600)]
    train, held_out, kind = split_positives(events(rows, 3), 0.4, GAP)
    assert kind == "time"
    assert pairs(train) == {(0, 1), (0, 2), (1, 1), (0, 3), (0, 4)}, "what begins before the time stays, to its end"
    assert pairs(held_out) == {(0, 5), (1, 6), (2, 7)}, "item 1 was known before"
    assert train.event_us[train.positions == 0].max() == 1005 * MINUTE


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20), st.integers(0, 3000)), min_size=10, max_size=80), st.floats(0.05, 0.5))
def test_no_split_cuts_a_session(rows: list[tuple[int, int, int]], fraction: float) -> None:
    train, held_out, kind = split_positives(events(rows, 6), fraction, GAP)
    assert not pairs(train) & pairs(held_out)
    if kind == "random":
        return
    known = pairs(train)
    for user in range(6):
        times = sorted({minute for who, _, minute in rows if who == user})
        sessions = np.split(np.array(times), np.flatnonzero(np.diff(times) > GAP) + 1) if times else []
        for session in sessions:
            items = {(who, item) for who, item, minute in rows if who == user and minute in session.tolist()}
            newest = {(who, item) for who, item in items if (who, item) in pairs(held_out)}
            # Of a session with a held-out item, the others are held out too, or are known from elsewhere.
            for who, item in items - newest if newest else ():
                elsewhere = [minute for w, i, minute in rows if (w, i) == (who, item) and minute not in session.tolist()]
                assert (who, item) in known and elsewhere


def test_with_few_users_on_both_sides_the_newest_sessions_of_each_are_held_out() -> None:
    rows = [(user, item, user * 100_000 + item * 60) for user in range(4) for item in range(10)]
    train, held_out, kind = split_positives(events(rows, 4), 0.2, GAP)
    assert kind == "user"
    assert held_out.counts.tolist() == [2, 2, 2, 2] and pairs(held_out) == {(user, item) for user in range(4) for item in (8, 9)}
    assert (train.counts + held_out.counts == 10).all()


def test_one_session_each_is_split_at_random_but_the_same_again() -> None:
    rows = [(user, item, 0) for user in range(8) for item in range(20)]
    first, again = (split_positives(events(rows, 8), 0.2, GAP, seed) for seed in (17, 17))
    assert first.kind == "random" and pairs(first.held_out) == pairs(again.held_out)
    assert (first.held_out.counts == 4).all() and len({item for _, item in pairs(first.held_out)}) > 8
    assert pairs(split_positives(events(rows, 8), 0.2, GAP, 18).held_out) != pairs(first.held_out)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.floats(0.01, 0.49))
def test_without_time_every_user_keeps_a_history(counts: list[int], fraction: float) -> None:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    codes = np.concatenate([np.arange(count) for count in counts] or [np.zeros(0)]).astype(np.int64)
    everything = Positives(31, offsets, codes, np.full(len(codes), NO_TIME))
    train, held_out, kind = split_positives(everything, fraction)
    assert kind == "random" and (train.counts + held_out.counts == everything.counts).all()
    assert (held_out.counts >= (everything.counts >= 3)).all() and (train.counts[everything.counts > 0] > 0).all()


def test_events_without_time_among_others_are_history(few: None) -> None:
    rows: list[Any] = [(0, 1, NO_TIME), (1, 2, NO_TIME), (0, 3, 10), (1, 4, 10), (0, 5, 500), (1, 6, 500)]
    train, held_out, kind = split_positives(events(rows, 2), 0.5, GAP)
    assert kind == "time" and pairs(held_out) == {(0, 5), (1, 6)} and len(pairs(train)) == 4
