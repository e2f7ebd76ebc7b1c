"""Who a snapshot keeps to be looked at, and what they did lately."""

import datetime as dt

import pyarrow as pa
import pyarrow.dataset as ds
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.online.export.published_run import N_HISTORY_ITEMS, latest_events
from recsys_batch.online.snapshot.reader import Snapshot

EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(0, 10**6)), max_size=120)


def interactions(rows: list[tuple[int, int, int]]) -> ds.Dataset:
    began = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    users, items, seconds = ([row[n] for row in rows] for n in range(3))
    times = pa.array([began + dt.timedelta(seconds=one) for one in seconds], pa.timestamp("us", "UTC"))
    columns = {"user_id": pa.array(users, pa.int64()), "item_id": pa.array(items, pa.int64()), "event_ts": times}
    return ds.dataset(pa.table({**columns, "weight": pa.array([1.0] * len(rows), pa.float32())}))


@given(EVENTS)
def test_each_samples_newest_items_come_newest_first_and_once(snapshot: Snapshot, rows: list[tuple[int, int, int]]) -> None:
    found = latest_events(interactions(rows), pa.array([1, 4]), snapshot.items.catalogue)
    assert list(found) == [1, 4]
    for user, codes in found.items():
        newest = {item: max(at for who, one, at in rows if (who, one) == (user, item)) for who, item, _ in rows if who == user}
        expected = sorted(newest, key=lambda item: (-newest[item], item))[:N_HISTORY_ITEMS]
        assert snapshot.items.item_ids(pa.array(codes, pa.int64()).to_numpy()) == expected


def test_an_item_that_the_run_does_not_have_is_left_out(snapshot: Snapshot) -> None:
    assert latest_events(interactions([(1, 10**6, 5), (1, 7, 3)]), pa.array([1]), snapshot.items.catalogue) == {1: [7]}


def test_users_may_be_text(snapshot: Snapshot) -> None:
    rows = interactions([(1, 7, 3), (2, 8, 3), (1, 9, 5)]).to_table()
    named = rows.set_column(0, "user_id", pa.array(["ö 1", "b", "ö 1"]))
    assert latest_events(ds.dataset(named), pa.array(["a", "ö 1"]), snapshot.items.catalogue) == {"a": [], "ö 1": [9, 7]}
