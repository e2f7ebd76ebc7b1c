"""Hits and metrics of what was shown, against definitions written out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.evaluation.exposure_metrics import (
    AnswerMetrics,
    ShownItems,
    answer_ndcg,
    mark_hits,
    summarise_answers,
    summarise_places,
)

WHEN = st.tuples(st.integers(0, 3), st.integers(0, 12))


@given(st.lists(WHEN, max_size=12, unique=True), st.lists(WHEN, max_size=12), st.integers(1, 6))
def test_an_event_counts_for_the_last_showing_before_it(
    showings: list[tuple[int, int]], events: list[tuple[int, int]], within: int
) -> None:
    expected = set()
    for pair, at in events:
        before = [showing for showing in showings if showing[0] == pair and showing[1] < at]
        if before and at - max(before)[1] <= within:
            expected.add(max(before))
    columns = [np.array(column, dtype=np.int64) for rows in (showings, events) for column in ([p for p, _ in rows], [t for _, t in rows])]
    hits = mark_hits(*columns, within)
    assert {showing for showing, hit in zip(showings, hits, strict=True) if hit} == expected


def test_of_two_showings_at_the_same_time_one_is_the_hit() -> None:
    at, pair = np.array([5, 5]), np.array([1, 1])
    assert mark_hits(pair, at, pair[:1], at[:1] + 1, 3).sum() == 1


SHOWN = ShownItems(
    starts=np.array([0, 3, 5]),
    users=np.array([7, 7, 7, 7, 7, 8]),
    position=np.array([1, 2, 3, 1, 2, 1]),
    hits=np.array([False, True, True, False, False, True]),
)


def test_ndcg_is_discounted_by_place_against_as_many_hits_on_top() -> None:
    first = (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert answer_ndcg(SHOWN) == pytest.approx([first, 0.0, 1.0])


def test_metrics_of_a_group_are_over_all_its_answers() -> None:
    one, other = summarise_answers(SHOWN, np.array([0, 0, 1]), 2)
    first = answer_ndcg(SHOWN)[0]
    assert one == AnswerMetrics(2, 1, 5, 2, 0.5, pytest.approx(first / 2), pytest.approx(0.4))
    assert other == AnswerMetrics(1, 1, 1, 1, 1.0, 1.0, 1.0)


def test_places_have_wilsons_interval() -> None:
    """Of 1 in 29 and 0 in 20, as in Newcombe 1998, "Two-sided confidence intervals for the single proportion", the score method."""
    position, rows = np.repeat([3, 8], [29, 20]), np.arange(49)
    one, none = summarise_places(ShownItems(rows, rows, position, rows == 0))
    assert (one.position, one.n_shown, one.n_hits, one.hits_per_item) == (3, 29, 1, 1 / 29)
    assert (one.low, one.high) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert (none.position, none.low, none.high) == (8, pytest.approx(0, abs=1e-12), pytest.approx(0.1611, abs=1e-4))
