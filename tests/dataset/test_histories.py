"""Histories by their definition."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.dataset.histories import NO_TIME, build_histories

SCHEMA = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("event_us", pa.int64()), ("weight", pa.float32())])


def catalogue(n: int) -> Catalogue:
    """Items 10, 20, ..."""
    nothing = np.zeros((n, 0), np.float32)
    return Catalogue(pa.array([10 * (code + 1) for code in range(n)]), nothing, nothing, np.zeros(n, np.float32), np.ones(n, bool))


events = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.one_of(st.none(), st.integers(0, 3)), st.sampled_from([0.5, 1.0, 2.0])), max_size=40
)


@given(events=events, length=st.integers(0, 5))
def test_each_item_counts_once_at_its_newest_and_the_newest_come_first(events: list[tuple[Any, ...]], length: int) -> None:
    rows = sorted(events, key=lambda row: row[0])
    table = pa.Table.from_pylist(
        [{"user_id": user, "item_id": 10 * item, "event_us": us, "weight": weight} for user, item, us, weight in rows], schema=SCHEMA
    )
    known = catalogue(4)  # items 50 and 60 are not in it
    found = build_histories(table, known, length)
    by_hand = {}
    for user in sorted({row[0] for row in rows}):
        newest: dict[int, tuple[int, float]] = {}
        for _, item, us, weight in (row for row in rows if row[0] == user):
            newest[item] = max(newest.get(item, (NO_TIME, 0.0)), (NO_TIME if us is None else us, weight))
        ordered = sorted(newest, key=lambda item: (-newest[item][0], item))[:length]
        by_hand[user] = (len(newest), [(item - 1, *newest[item]) for item in ordered if item <= 4])
    assert found.user_ids.to_pylist() == list(by_hand)
    for row, (n_events, items) in enumerate(by_hand.values()):
        places = range(found.offsets[row], found.offsets[row + 1])
        assert [(int(found.codes[at]), int(found.event_us[at]), float(found.weights[at])) for at in places] == items
        assert found.n_events[row] == n_events
