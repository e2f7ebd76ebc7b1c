"""The probability that is logged of a shown item is the one with which it was shown."""

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.online.ranking.exploration import Exploration, Explorer, propensities_of
from recsys_batch.online.ranking.ladder import RankInput, rank, rank_many
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.ranking.business_rules import ItemRules
from tests.online.ranking.test_ladder import N_ITEMS, lists_of


def enumerate_probabilities(k: int, n: int, share: Fraction) -> np.ndarray:
    """P(item is shown at place), [k, n], by every choice of places and every sample of the pool."""
    found = [[Fraction(0)] * n for _ in range(k)]
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(k), m) for m in range(k + 1)):
        of_choice = share ** len(chosen) * (1 - share) ** (k - len(chosen))
        samples = list(itertools.permutations([*chosen, *range(k, n)], len(chosen)))
        for sample in samples:
            shown = dict(zip(chosen, sample, strict=True))
            for place in range(k):
                found[place][shown.get(place, place)] += of_choice / len(samples)
    return np.array(found, dtype=np.float64)


def all_propensities(k: int, n: int, share: float) -> np.ndarray:
    """[k, n]: what is logged where the place shows the item."""
    return np.stack([propensities_of(np.full(k, item), n, share) for item in range(n)], axis=1)


@pytest.mark.parametrize("share", [Fraction(1, 10), Fraction(1, 2), Fraction(9, 10)])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 4), (2, 2), (2, 5), (3, 3), (3, 6), (4, 5)])
def test_propensities_are_those_of_every_possible_answer(k: int, n: int, share: Fraction) -> None:
    np.testing.assert_allclose(all_propensities(k, n, float(share)), enumerate_probabilities(k, n, share), rtol=1e-12)


@given(st.integers(1, 60), st.integers(0, 60), st.floats(1e-6, 1 - 1e-6))
def test_the_items_of_a_place_have_probability_one_together(k: int, behind: int, share: float) -> None:
    np.testing.assert_allclose(all_propensities(k, k + behind, share).sum(axis=1), 1.0, rtol=1e-9)


def test_long_answers_have_propensities_too() -> None:
    assert all_propensities(2_000, 2_001, 0.3)[0].sum() == pytest.approx(1.0, rel=1e-8)


@given(st.integers(0, 20), st.integers(0, 20), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_an_answer_shows_different_items_of_the_order(k: int, behind: int, share: float, seed: int) -> None:
    places, propensities = Explorer(share, seed).swap_places(k, k + behind)
    assert len(set(places.tolist())) == len(places) == len(propensities) == k
    assert all(0 <= place < k + behind for place in places)
    assert ((propensities > 0) & (propensities <= 1 + 1e-12)).all()


def test_items_are_shown_as_often_as_their_propensity_says() -> None:
    k, n, share, n_answers = 3, 6, 0.4, 20_000
    explorer, seen = Explorer(share, seed=1), np.zeros((k, n))
    for _ in range(n_answers):
        places, _ = explorer.swap_places(k, n)
        seen[np.arange(k), places] += 1
    np.testing.assert_allclose(seen / n_answers, enumerate_probabilities(k, n, Fraction(2, 5)), atol=0.015)


def explored(snapshot: Snapshot, query: RankQuery, share: float = 0.5, seed: int = 3) -> RankResult:
    inputs = [RankInput(query, lists_of(snapshot, query.user_id))]
    return rank_many(snapshot, inputs, LatencyTracker(), Explorer(share, seed))[0]


def plain(snapshot: Snapshot, query: RankQuery) -> RankResult:
    return rank(snapshot, query, lists_of(snapshot, query.user_id), LatencyTracker())


def test_an_explored_answer_shows_allowed_candidates_with_their_own_scores(snapshot: Snapshot) -> None:
    for user in range(0, 100, 9):
        query = RankQuery(user, 10, session_item_ids=[1, 2, 3])
        everything, shown = plain(snapshot, RankQuery(user, N_ITEMS, session_item_ids=[1, 2, 3])), explored(snapshot, query)
        assert shown.exploration is not None and shown.source == "ranker"
        positions = shown.exploration.ranker_positions
        assert shown.codes.tolist() == everything.codes[positions - 1].tolist()
        np.testing.assert_allclose(shown.scores, everything.scores[positions - 1], rtol=1e-5)
        assert shown.candidate_ranks.tolist() == everything.candidate_ranks[positions - 1].tolist()
        expected = propensities_of(positions - 1, len(everything.codes), 0.5)
        assert shown.exploration.propensities.tolist() == expected.tolist()


def test_batch_positions_are_places_of_the_published_list_without_what_the_request_rules_out(snapshot: Snapshot) -> None:
    lists = lists_of(snapshot, 5)
    assert lists is not None
    lists = replace(lists, top_places=lists.top_places[:8], top_scores=lists.top_scores[:8])
    published = lists.codes[lists.top_places].tolist()
    query = RankQuery(5, 25, exclude_item_ids=[snapshot.items.item_id(published[1])])
    (shown,) = rank_many(snapshot, [RankInput(query, lists)], LatencyTracker(), Explorer(0.2, seed=3))
    left = [code for code in published if code != published[1]]
    assert shown.exploration is not None
    expected = [left.index(code) + 1 if code in left else 0 for code in shown.codes.tolist()]
    assert shown.exploration.batch_positions.tolist() == expected and 0 in expected and max(expected) > 0


def test_exploration_respects_the_cap_of_items_per_category(snapshot: Snapshot) -> None:
    offsets, of_item = np.arange(N_ITEMS + 1, dtype=np.int64), (np.arange(N_ITEMS) % 10).astype(np.int32)
    rules = ItemRules(category_codes=of_item, category_offsets=offsets, max_per_category=2)
    catalogue = replace(snapshot.items.catalogue, item_rules=rules)
    ruled = replace(snapshot, items=replace(snapshot.items, catalogue=catalogue))
    for seed in range(20):
        shown = explored(ruled, RankQuery(5, 8), share=0.8, seed=seed)
        assert shown.exploration is not None and shown.exploration.n_changed
        assert np.bincount(of_item[shown.codes]).max() <= 2


def test_fallbacks_and_explained_answers_are_not_explored(snapshot: Snapshot) -> None:
    unknown = explored(snapshot, RankQuery(10**6, 5))
    late = explored(snapshot, RankQuery(5, 5, deadline=0.0))
    told = explored(snapshot, RankQuery(5, 5, explain=True))
    assert (unknown.source, late.source, told.source) == ("popular", "batch", "ranker")
    assert unknown.exploration is late.exploration is told.exploration is None
    assert told.codes.tolist() == plain(snapshot, RankQuery(5, 5)).codes.tolist()


def test_changed_places_are_counted() -> None:
    positions = np.array([1, 9, 3, 2])
    assert Exploration(np.ones(4), positions, positions).n_changed == 2
