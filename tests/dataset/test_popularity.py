"""Popular lists by their definition, and counts that are kept from one night to the next."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.dataset.popularity import (
    add_counts,
    count_users,
    counts_schema,
    negate_counts,
    rank_popular_items,
    sum_counts,
    users_by_item,
)
from recsys_batch.schemas import ALL_SEGMENTS, IdTypes

IDS = IdTypes("STRING", "BIGINT")


def positives(pairs: list[tuple[str, int]]) -> pa.Table:
    users, items = zip(*sorted(pairs), strict=True) if pairs else ((), ())
    return pa.table({"user_id": pa.array(users, pa.string()), "item_id": pa.array(items, pa.int64())})


def profiles(segments: dict[str, str | None]) -> pa.Table:
    return pa.table({"user_id": pa.array(list(segments), pa.string()), "segment": pa.array(list(segments.values()), pa.string())})


@pytest.mark.parametrize("with_users", [True, False])
def test_an_item_counts_each_user_once_in_the_segment_and_for_everybody(with_users: bool) -> None:
    taken = positives([("a", 1), ("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2), ("d", 3), ("d", 9), ("e", 2)])
    # d is in no segment, e is not in the table, and one calls itself what stands for everybody
    users = profiles({"a": "x", "b": "x", "c": ALL_SEGMENTS, "d": None, "f": "y"}) if with_users else None
    counts = count_users(taken, users, IDS)
    found = rank_popular_items(counts, pa.array([1, 2, 3, 4]), 2).to_pylist()
    rows = [(row["segment"], row["rank"], row["item_id"], row["score"]) for row in found]
    everybody = [(ALL_SEGMENTS, 1, 1, 3.0), (ALL_SEGMENTS, 2, 2, 3.0)]
    assert rows == everybody + ([("x", 1, 1, 2.0), ("x", 2, 2, 2.0)] if with_users else [])
    assert users_by_item(counts, pa.array([1, 2, 3, 9, 10])).tolist() == [3, 3, 1, 1, 0]


def test_nobody_has_taken_anything() -> None:
    counts = sum_counts([], IDS)
    assert rank_popular_items(counts, pa.array([1]), 5).num_rows == 0
    assert users_by_item(counts, pa.array([1])).tolist() == [0]
    assert count_users(positives([]), None, IDS).equals(counts_schema(IDS).empty_table())


taken = st.sets(st.tuples(st.sampled_from("abcdef"), st.integers(1, 5)), max_size=20)
segments = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["x", "y", None]))


def as_dict(counts: pa.Table) -> dict[Any, int]:
    return {(row["segment"], row["item_id"]): row["n"] for row in counts.to_pylist()}


@given(before=taken, more=taken, then=segments, now=segments)
def test_what_changed_users_did_moves_counts_to_what_counting_all_again_gives(
    before: set[tuple[str, int]], more: set[tuple[str, int]], then: dict[str, str | None], now: dict[str, str | None]
) -> None:
    changed = {user for user, _ in more} | {user for user in "abcdef" if then.get(user) != now.get(user)}
    base = sum_counts([count_users(positives(list(before)), profiles(then), IDS)], IDS)
    own = [pair for pair in before if pair[0] in changed]
    gone = negate_counts(count_users(positives(own), profiles(then), IDS))
    come = count_users(positives(list({*own, *more})), profiles(now), IDS)
    assert as_dict(add_counts(base, gone, come)) == as_dict(
        sum_counts([count_users(positives(list(before | more)), profiles(now), IDS)], IDS)
    )


@given(pairs=taken, cut=st.sampled_from("abcdef"))
def test_ranges_of_users_add_up(pairs: set[tuple[str, int]], cut: str) -> None:
    halves = [positives([pair for pair in pairs if (pair[0] <= cut) is below]) for below in (True, False)]
    assert as_dict(add_counts(*(count_users(half, None, IDS) for half in halves))) == as_dict(
        count_users(positives(list(pairs)), None, IDS)
    )
    assert int(np.sum(users_by_item(count_users(positives(list(pairs)), None, IDS), pa.array(range(6))))) == len(pairs)
