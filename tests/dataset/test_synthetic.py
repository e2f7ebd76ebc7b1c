"""Synthetic rows: any row from its number alone, a taste that can be learned, long tails."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.dataset import synthetic
from recsys_batch.dataset.synthetic import END_US, Permutation, PowerLaw, World, hash_to_uniform

WORLD = World(n_users=1000, n_items=500, n_events=20_000, seed=7)
USERS = np.arange(1, WORLD.n_users + 1)
ITEMS = np.arange(1, WORLD.n_items + 1)

sizes = st.integers(1, 3000)


@pytest.fixture(scope="module")
def events() -> pa.Table:
    return synthetic.make_interactions(WORLD, USERS)


def test_rows_do_not_depend_on_how_the_users_are_split(events: pa.Table) -> None:
    pieces = [synthetic.make_interactions(WORLD, users) for users in np.array_split(USERS, 7)]
    assert pa.concat_tables(pieces).equals(events)


@pytest.mark.parametrize("make", [synthetic.make_interactions, synthetic.make_users, synthetic.make_items])
def test_another_seed_gives_other_rows(make) -> None:
    other = World(WORLD.n_users, WORLD.n_items, WORLD.n_events, seed=8)
    assert not make(other, USERS[:100]).equals(make(WORLD, USERS[:100]))


@given(sizes, sizes, st.integers(1, 20_000), st.integers(-(2**63), 2**63 - 1))
def test_there_are_as_many_events_as_asked_for_and_all_ids_exist(n_users: int, n_items: int, n_events: int, seed: int) -> None:
    world = World(n_users, n_items, n_events, seed)
    table = synthetic.make_interactions(world, np.arange(1, n_users + 1))
    assert table.num_rows == n_events
    assert 1 <= pc.min(table["user_id"]).as_py() <= pc.max(table["user_id"]).as_py() <= n_users
    assert 1 <= pc.min(table["item_id"]).as_py() <= pc.max(table["item_id"]).as_py() <= n_items


def test_no_event_is_there_twice(events: pa.Table) -> None:
    assert events.group_by(["user_id", "event_ts"]).aggregate([]).num_rows == events.num_rows


def test_events_span_sixty_days_and_end_before_2026(events: pa.Table) -> None:
    stamps = events["event_ts"].cast(pa.int64()).to_numpy()
    assert END_US - 60 * 86_400_000_000 <= stamps.min() < END_US - 59 * 86_400_000_000
    assert END_US - 86_400_000_000 <= stamps.max() < END_US
    assert np.array_equal(events["event_date"].cast(pa.int32()).to_numpy(), stamps // 86_400_000_000)


def test_users_prefer_their_clusters_by_far(events: pa.Table) -> None:
    clusters = WORLD.clusters(events["item_id"].to_numpy())
    first, second = WORLD.favourites(events["user_id"].to_numpy())
    chance = 1 / WORLD.n_clusters
    assert np.mean(clusters == first) == pytest.approx(0.55 + 0.25 * chance, abs=0.02)
    assert np.mean(clusters == second) == pytest.approx(0.20 + 0.25 * chance, abs=0.02)


def test_the_second_half_of_a_user_can_be_told_from_the_first(events: pa.Table) -> None:
    """A recommender that learns clusters from early events and counts popularity beats popularity on later ones."""
    users, items = events["user_id"].to_numpy(), events["item_id"].to_numpy()
    stamps = events["event_ts"].cast(pa.int64()).to_numpy()
    early = stamps < END_US - 15 * 86_400_000_000
    popularity = np.bincount(items[early], minlength=WORLD.n_items + 1)[1:]
    clusters = WORLD.clusters(ITEMS)
    taste = np.zeros((WORLD.n_users + 1, WORLD.n_clusters))
    np.add.at(taste, (users[early], WORLD.clusters(items[early])), 1)
    personal = np.argsort(-(taste[:, clusters] * popularity), axis=1)[:, :20] + 1
    popular = np.argsort(-popularity)[:20] + 1
    hits_personal = np.mean((personal[users[~early]] == items[~early, None]).any(axis=1))
    hits_popular = np.mean(np.isin(items[~early], popular))
    assert hits_personal > 1.5 * hits_popular


def test_popularity_and_activity_have_long_tails(events: pa.Table) -> None:
    popularity = np.sort(np.bincount(events["item_id"].to_numpy(), minlength=WORLD.n_items + 1)[1:])[::-1]
    activity = np.sort(np.bincount(events["user_id"].to_numpy(), minlength=WORLD.n_users + 1)[1:])[::-1]
    assert popularity[:50].sum() > 0.35 * WORLD.n_events
    assert activity[:100].sum() > 0.25 * WORLD.n_events
    assert activity.max() > 5 * np.median(activity)
    assert activity.min() > 0


def test_categories_and_segments_follow_the_clusters() -> None:
    categories = [row[0] for row in synthetic.make_items(WORLD, ITEMS)["categories"].to_pylist()]
    assert categories == [f"category {c}" for c in WORLD.clusters(ITEMS)]
    segment_of = dict(zip(WORLD.favourites(USERS)[0].tolist(), synthetic.make_users(WORLD, USERS)["segment"].to_pylist(), strict=True))
    assert [segment_of[c] for c in WORLD.favourites(USERS)[0].tolist()] == synthetic.make_users(WORLD, USERS)["segment"].to_pylist()
    assert len(set(segment_of.values())) > 1


def test_about_two_percent_of_items_are_unavailable_and_all_are_listed_before_the_first_event() -> None:
    many = synthetic.make_items(World(10, 20_000, 10, 3), np.arange(1, 20_001))
    assert 1 - np.mean(many["is_available"].to_numpy()) == pytest.approx(0.02, abs=0.005)
    assert pc.max(many["first_seen_ts"].cast(pa.int64())).as_py() <= END_US - 60 * 86_400_000_000
    assert len(set(many["title"].to_pylist())) == 20_000


def test_returns_weigh_less_than_nothing(events: pa.Table) -> None:
    returned = pc.equal(events["event_type"], "return")
    assert np.mean(returned.to_numpy(zero_copy_only=False)) == pytest.approx(0.02, abs=0.005)
    assert set(events.filter(returned)["weight"].to_pylist()) == {-1.0}
    assert pc.min(events.filter(pc.invert(returned))["weight"]).as_py() > 0


@given(st.integers(1, 10_000), st.integers(0, 100))
def test_a_shuffle_is_a_bijection_with_its_inverse(n: int, seed: int) -> None:
    shuffle = Permutation.seeded(n, seed, 1)
    there = shuffle.forward(np.arange(n))
    assert np.array_equal(np.sort(there), np.arange(n))
    assert np.array_equal(shuffle.backward(there), np.arange(n))


def test_the_largest_shuffle_does_not_overflow() -> None:
    n = 2**31 - 1
    shuffle = Permutation.seeded(n, 0, 1)
    rows = np.array([0, 1, n // 2, n - 1])
    assert np.array_equal(shuffle.backward(shuffle.forward(rows)), rows)


@given(st.integers(1, 5000), st.floats(0.1, 0.95), st.floats(0.5, 100))
def test_a_rank_is_drawn_where_the_cumulative_says(n: int, exponent: float, offset: float) -> None:
    law = PowerLaw(n, exponent, offset)
    ranks = np.arange(n)
    middle = (law.cumulative(ranks) + law.cumulative(ranks + 1)) / 2
    assert np.array_equal(law.rank(middle), ranks)
    assert law.cumulative(np.array([0, n])) == pytest.approx([0, 1])


def test_uniform_numbers_are_uniform_and_their_streams_independent() -> None:
    rows = np.arange(100_000)
    one, other = hash_to_uniform(5, 1, rows), hash_to_uniform(5, 2, rows)
    assert one.min() >= 0
    assert one.max() < 1
    counts = np.histogram2d(one, other, bins=10, range=[[0, 1], [0, 1]])[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 149  # chi-square, 99 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.02
