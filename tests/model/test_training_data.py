"""Training data: who liked what in which order, and the part that is held out."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.config import load_config
from recsys_batch.dataset.histories import NO_TIME
from recsys_batch.errors import InputMissing
from recsys_batch.model.content_tokens import extract_content_tokens
from recsys_batch.model.training_data import Positives, prepare_training_data

CONFIG = load_config(None)


def ragged(counts: list[int]) -> Positives:
    """Every user took items 0, 1, ..."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    codes = np.concatenate([np.arange(count) for count in counts] or [np.zeros(0)]).astype(np.int64)
    return Positives(max([*counts, 1]), offsets, codes, -codes)


def test_a_history_is_newest_first_without_returns_and_an_item_taken_twice_counts_at_its_newest(
    make_interactions: Any, make_items: Any
) -> None:
    table = make_interactions(["b", "a", "b", "b", "b", "a"], [1, 7, 5, 1, 3, 9], [10, 50, 20, 40, 30, 60], [1.0, 1.0, 2.0, 1.0, -1.0, 0.0])
    data = prepare_training_data(table, make_items([1, 3, 5, 7, 9], [[]] * 5), None, CONFIG)
    assert data.user_ids.to_pylist() == ["a", "b"]
    assert data.item_ids.to_pylist() == [1, 5, 7]
    assert data.positives.offsets.tolist() == [0, 1, 3]
    assert data.positives.codes.tolist() == [2, 0, 1]
    assert data.positives.event_us.tolist() == [50_000_000, 40_000_000, 20_000_000]


@pytest.mark.parametrize("ids", [[10, 9, 2], ["b", "a10", "a9"]])
def test_ids_of_both_types_are_coded_in_ascending_order(make_interactions: Any, make_items: Any, ids: list[Any]) -> None:
    data = prepare_training_data(make_interactions(ids, ids, [1, 2, 3], [1.0] * 3), make_items(ids, [[]] * 3), None, CONFIG)
    assert data.item_ids.to_pylist() == data.user_ids.to_pylist() == sorted(ids)


def test_without_times_the_order_is_the_same_however_the_rows_are_stored(make_interactions: Any, make_items: Any) -> None:
    table = make_interactions([1] * 40, list(range(40)), [None] * 40, [1.0] * 40)
    items = make_items(list(range(40)), [[]] * 40)
    first, again = (prepare_training_data(one, items, None, CONFIG) for one in (table, table.take(list(range(39, -1, -1)))))
    assert not first.has_time and (first.positives.event_us == NO_TIME).all()
    np.testing.assert_array_equal(first.positives.codes, again.positives.codes)
    assert first.positives.codes.tolist() != sorted(first.positives.codes.tolist())


def test_an_event_without_time_among_timed_ones_is_the_oldest(make_interactions: Any, make_items: Any) -> None:
    data = prepare_training_data(
        make_interactions([1] * 3, [1, 2, 3], [5, None, 9], [1.0] * 3), make_items([1, 2, 3], [[]] * 3), None, CONFIG
    )
    assert data.positives.codes.tolist() == [2, 0, 1]


def test_content_tokens_name_categories_attributes_and_segments() -> None:
    attributes = pa.array([[("year", "1995")], []], pa.map_(pa.string(), pa.string()))
    items = pa.table({"categories": pa.array([["Drama", "Action"], None], pa.list_(pa.string())), "attributes": attributes})
    assert extract_content_tokens(items, "categories").to_lists() == [["categories=Action", "categories=Drama", "year=1995"], []]
    users = pa.table({"segment": pa.array(["young", None]), "attributes": attributes})
    assert extract_content_tokens(users, "segment").to_lists() == [["segment=young", "year=1995"], []]


def test_items_and_users_that_their_tables_lack_have_no_tokens(make_interactions: Any, make_items: Any, make_users: Any) -> None:
    table = make_interactions(["a", "b"], [1, 2], [1, 2], [1.0, 1.0])
    data = prepare_training_data(table, make_items([2], [["x"]]), make_users(["b"], ["s"]), CONFIG)
    assert data.item_tokens.to_lists() == [[], ["categories=x"]]
    assert data.user_tokens.to_lists() == [[], ["plan=free", "segment=s"]]
    assert prepare_training_data(table, make_items([2], [["x"]]), None, CONFIG).user_tokens.to_lists() == [[], []]


def test_nothing_positive_is_an_error_that_says_so(make_interactions: Any, make_items: Any) -> None:
    with pytest.raises(InputMissing, match="none of 2 interactions has weight > 0"):
        prepare_training_data(make_interactions([1, 2], [1, 2], [1, 2], [0.0, -1.0]), make_items([1, 2], [[], []]), None, CONFIG)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_chosen_users_come_in_the_order_asked_for(counts: list[int], random: Any) -> None:
    everything = ragged(counts)
    order = random.sample(range(len(counts)), len(counts))
    chosen = everything.select_users(np.array(order))
    assert chosen.counts.tolist() == [counts[user] for user in order]
    assert chosen.codes.tolist() == [code for user in order for code in range(counts[user])]
