import datetime as dt
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.online.ranking.cold_start import candidates_from_session
from recsys_batch.online.ranking.ladder import published_order, rank
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.online.snapshot.reader import Snapshot, open_snapshot
from recsys_batch.online.snapshot.user_record import UserRecord, decode_record
from recsys_batch.ranking.business_rules import ItemRules
from recsys_batch.ranking.vector_lengths import row_lengths

N_USERS, N_ITEMS = 300, 500
NOON = dt.datetime(2026, 11, 24, 12, 0, tzinfo=dt.UTC)


def lists_of(snapshot: Snapshot, user: Any) -> UserRecord | None:
    assert snapshot.store is not None
    key = snapshot.key(user)
    record = snapshot.store.get(key) if key is not None else None
    return decode_record(record) if record is not None else None


def asked(snapshot: Snapshot, user: Any, k: int = 10, **more: Any) -> RankResult:
    return rank(snapshot, RankQuery(user, k, **more), lists_of(snapshot, user), LatencyTracker())


def brute_force(snapshot: Snapshot, user: int, k: int) -> list[int]:
    """Items of a user's list by the formula of the reference ranker, written anew: numpy, no code of the online side but the reading."""
    lists = lists_of(snapshot, user)
    assert lists is not None
    catalogue = snapshot.items.catalogue
    features = np.zeros((1, len(lists.codes), len(snapshot.manifest.features.names)), np.float32)
    features[..., 0], features[..., 1] = lists.retrieval, catalogue.log_popularity[lists.codes]
    features[..., 2] = np.log1p(lists.n_events)
    assert snapshot.ranker is not None and lists.embedding is not None
    scores = snapshot.ranker.score(lists.embedding[None], catalogue.embeddings[lists.codes][None], features)[0]
    return [int(lists.codes[place]) for place in np.lexsort((lists.codes, -scores))[:k]]


def test_a_neutral_request_is_ranked_by_the_formula(snapshot: Snapshot) -> None:
    for user in range(0, N_USERS, 7):
        ranked = asked(snapshot, user)
        assert (ranked.source, ranked.degraded) == ("ranker", None)
        assert ranked.codes.tolist() == brute_force(snapshot, user, 10)
        assert (np.diff(ranked.scores) <= 0).all()


def test_ranks_of_candidates_and_of_the_batch_are_the_lists_own(snapshot: Snapshot) -> None:
    lists = lists_of(snapshot, 5)
    assert lists is not None
    ranked = asked(snapshot, 5, 20, explain=True)
    assert lists.codes[ranked.candidate_ranks - 1].tolist() == ranked.codes.tolist()
    published = lists.codes[lists.top_places].tolist()
    assert ranked.batch_ranks is not None and ranked.batch_ranks.tolist() == [published.index(code) + 1 for code in ranked.codes]


def test_context_moves_the_ranking_and_what_is_unknown_does_not(snapshot: Snapshot) -> None:
    neutral = asked(snapshot, 5, 30)
    for context in ({"when": NOON}, {"device": "tv"}, {"session_item_ids": [1, 2, 3]}):
        moved = asked(snapshot, 5, 30, **context)
        kept = {int(code): float(score) for code, score in zip(neutral.codes, neutral.scores, strict=True)}
        assert any(abs(kept[int(c)] - float(s)) > 1e-4 for c, s in zip(moved.codes, moved.scores, strict=True) if int(c) in kept), context
    same = asked(snapshot, 5, 30, session_item_ids=["nothing", -1, 10**30], attributes={"mood": "good", "n": [1]})
    assert same.codes.tolist() == neutral.codes.tolist()


@settings(max_examples=60, deadline=None)
@given(
    user=st.integers(-5, N_USERS + 5),
    k=st.integers(1, 80),
    session=st.lists(st.integers(0, N_ITEMS + 5), max_size=8),
    excluded=st.lists(st.integers(0, N_ITEMS + 5), max_size=40),
    categories=st.lists(st.sampled_from(["category 0", "category 3", "unheard of"]), max_size=2),
)
def test_session_and_excluded_items_never_come_back(
    snapshot: Snapshot, user: int, k: int, session: list[int], excluded: list[int], categories: list[str]
) -> None:
    ranked = asked(snapshot, user, k, session_item_ids=session, exclude_item_ids=excluded, categories=categories)
    shown = ranked.codes.tolist()  # made-up items are numbered as they are coded
    assert not set(shown) & {*session, *excluded} and len(shown) == len(set(shown)) <= k
    if categories:
        wanted = {int(name.split()[1]) for name in categories if name != "unheard of"}
        assert all(code % 20 in wanted for code in shown)
    assert len(ranked.scores) == len(ranked.candidate_ranks) == len(shown)


def test_somebody_unknown_gets_what_is_near_to_the_session_or_what_is_popular(snapshot: Snapshot) -> None:
    near = asked(snapshot, "nobody", 10, session_item_ids=[4, 9])
    assert (near.source, near.degraded) == ("ranker", None) and len(near.codes) == 10 and not {4, 9} & set(near.codes.tolist())
    popular = asked(snapshot, "nobody", 10)
    assert (popular.source, popular.degraded) == ("popular", "unknown_user")
    assert popular.codes.tolist() == snapshot.popular.for_segment(None)[0][:10].tolist()


@pytest.mark.parametrize(
    ("seen", "segment", "comes_back"),
    [
        ("exclude", None, False),
        ("allow", None, True),
        ({"after_days": 0}, None, False),
        ({"music": "allow"}, "music", True),
        ({"music": "allow"}, None, False),
        ({"all": "allow", "books": "exclude"}, "music", True),
        ({"all": "allow", "music": "exclude"}, "music", False),
    ],
)
def test_items_of_the_session_come_back_where_the_segment_has_things_again(
    snapshot: Snapshot, seen: Any, segment: str | None, comes_back: bool
) -> None:
    facts = replace(snapshot.facts, seen=seen, segments=("books", "music"))
    allowing = replace(snapshot, manifest=replace(snapshot.manifest, facts=facts))
    lists = lists_of(snapshot, 5)
    assert lists is not None
    known = replace(lists, segment=None if segment is None else facts.segments.index(segment))
    query = RankQuery(5, 60, session_item_ids=[int(lists.codes[0])], segment="books")
    shown = rank(allowing, query, known, LatencyTracker()).codes.tolist()
    assert (int(lists.codes[0]) in shown) == comes_back
    # Who is unknown is of the segment that the request names; what it excludes stays out.
    near = rank(allowing, replace(query, session_item_ids=[4, 9], exclude_item_ids=[9], segment=segment), None, LatencyTracker())
    assert (near.source, 4 in near.codes, 9 in near.codes) == ("ranker", comes_back, False)


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_candidates_of_a_session_are_the_nearest_by_the_snapshots_metric(snapshot: Snapshot, metric: Literal["ip", "cosine"]) -> None:
    manifest = replace(snapshot.manifest, facts=replace(snapshot.facts, metric=metric, user_norm=2.5))
    record = candidates_from_session(replace(snapshot, manifest=manifest), np.array([4, 9]), np.array([4, 9, 20]))
    vectors = snapshot.items.catalogue.embeddings
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = directions[[4, 9]].mean(axis=0)
    query = mean / np.linalg.norm(mean)
    scores = directions @ query if metric == "cosine" else vectors @ query * 2.5
    expected = [code for code in np.argsort(-scores) if code not in (4, 9, 20)][:200]
    assert record.codes.tolist() == expected
    np.testing.assert_allclose(record.retrieval, scores[expected], atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_session_of_tiny_or_huge_vectors_gets_the_candidates_of_any_other(snapshot: Snapshot, size: float) -> None:
    manifest = replace(snapshot.manifest, facts=replace(snapshot.facts, metric="cosine", user_norm=size))
    embeddings = (snapshot.items.catalogue.embeddings * np.float32(size)).astype(np.float32)
    catalogue, norms = replace(snapshot.items.catalogue, embeddings=embeddings), row_lengths(embeddings).astype(np.float32)
    sized = replace(snapshot, manifest=manifest, items=replace(snapshot.items, catalogue=catalogue, norms=norms))
    plain = replace(snapshot, manifest=replace(manifest, facts=replace(manifest.facts, user_norm=1.0)))
    record, expected = (candidates_from_session(which, np.array([4, 9]), np.array([4, 9])) for which in (sized, plain))
    assert record.codes[:20].tolist() == expected.codes[:20].tolist()
    np.testing.assert_allclose(record.retrieval, expected.retrieval, atol=1e-6)
    np.testing.assert_allclose(record.embedding, expected.embedding * size, rtol=1e-5)


def test_somebody_without_an_embedding_gets_the_published_list(snapshot: Snapshot) -> None:
    lists = lists_of(snapshot, 5)
    assert lists is not None
    ranked = rank(snapshot, RankQuery(5, 10), replace(lists, embedding=None), LatencyTracker())
    assert (ranked.source, ranked.degraded) == ("popular", "no_embedding")
    assert ranked.codes.tolist() == lists.codes[lists.top_places[:10]].tolist()


def test_without_a_ranker_the_batch_order_stands(make: Callable[..., Path]) -> None:
    snapshot = open_snapshot(make(with_ranker=False) / "first")
    ranked = asked(snapshot, 5, exclude_item_ids=[])
    lists = lists_of(snapshot, 5)
    assert lists is not None and (ranked.source, ranked.degraded) == ("batch", "no_ranker")
    assert ranked.codes.tolist() == lists.codes[lists.top_places[:10]].tolist()
    first = int(ranked.codes[0])
    assert asked(snapshot, 5, exclude_item_ids=[first]).codes.tolist() == lists.codes[lists.top_places[1:11]].tolist()
    snapshot.close()


def test_the_ranker_is_skipped_where_less_than_its_p99_is_left(snapshot: Snapshot) -> None:
    slow = LatencyTracker()
    slow.add(0.05)
    lists = lists_of(snapshot, 5)
    late = rank(snapshot, RankQuery(5, 10, deadline=time.perf_counter() + 0.02), lists, slow)
    assert (late.source, late.degraded) == ("batch", "deadline")
    enough = rank(snapshot, RankQuery(5, 10, deadline=time.perf_counter() + 5), lists, slow)
    assert enough.source == "ranker"


@pytest.mark.parametrize("answer", [math.nan, RuntimeError("broken")])
def test_a_ranker_that_fails_costs_nobody_the_answer(snapshot: Snapshot, answer: Any) -> None:
    class Broken:
        def score(self, *_: Any) -> np.ndarray:
            if isinstance(answer, Exception):
                raise answer
            return np.full((1, 60), answer, np.float32)

    ranked = rank(replace(snapshot, ranker=Broken()), RankQuery(5, 10), lists_of(snapshot, 5), LatencyTracker())  # type: ignore[arg-type]
    assert (ranked.source, ranked.degraded) == ("batch", "ranker_failed") and len(ranked.codes) == 10


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf], ids=["NaN", "infinity", "-infinity"])
def test_a_published_place_without_a_finite_score_is_left_out_and_the_others_keep_theirs(snapshot: Snapshot, score: float) -> None:
    lists = lists_of(snapshot, 5)
    scores = lists.top_scores.copy()
    scores[1] = score
    whole, without = published_order(RankQuery(5, 10), lists), published_order(RankQuery(5, 10), replace(lists, top_scores=scores))
    np.testing.assert_array_equal(without.codes[:9], np.delete(whole.codes, 1)[:9])
    assert np.isfinite(without.scores).all() and without.batch_ranks is not None and without.batch_ranks.tolist()[:3] == [1, 3, 4]


def test_a_store_that_fails_leaves_what_is_popular(snapshot: Snapshot) -> None:
    ranked = rank(snapshot, RankQuery(5, 10), None, LatencyTracker(), store_failed=True)
    assert (ranked.source, ranked.degraded) == ("popular", "store_unavailable") and len(ranked.codes) == 10


def test_rules_of_the_business_hold_online_as_in_the_night(snapshot: Snapshot) -> None:
    plain = asked(snapshot, 5, 10).codes
    boost = np.zeros(N_ITEMS, np.float32)
    boost[plain[9]] = 100.0
    blocked = np.zeros(N_ITEMS, bool)
    blocked[plain[0]] = True
    catalogue = replace(snapshot.items.catalogue, item_rules=ItemRules(boost=boost, blocked=blocked))
    ruled = asked(replace(snapshot, items=replace(snapshot.items, catalogue=catalogue)), 5, 10).codes.tolist()
    assert ruled[0] == plain[9] and int(plain[0]) not in ruled


def test_contributions_are_what_the_score_loses_without_the_group(snapshot: Snapshot) -> None:
    ranked = asked(snapshot, 5, 10, device="tv", explain=True)
    neutral = asked(snapshot, 5, 60)
    assert ranked.contributions is not None
    scores = {int(code): float(score) for code, score in zip(neutral.codes, neutral.scores, strict=True)}
    for place, code in enumerate(ranked.codes.tolist()):
        assert ranked.contributions["device"][place] == pytest.approx(float(ranked.scores[place]) - scores[code], abs=1e-4)
    assert set(ranked.contributions) == {"retrieval", "popularity", "activity", "time", "device", "session"}
    assert np.abs(ranked.contributions["session"]).max() == 0 and np.abs(ranked.contributions["retrieval"]).max() > 0
    assert asked(snapshot, 5, 10).contributions is None


def test_the_p99_forgets_what_is_long_past() -> None:
    latency = LatencyTracker()
    for _ in range(100):
        latency.add(1.0)
    for _ in range(600):
        latency.add(0.001)
    assert latency.p99() == pytest.approx(0.001)
