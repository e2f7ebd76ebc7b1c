"""Candidates that a request brings are ranked as retrieved ones are, whoever the user is, and nothing else comes into the answer."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.online.engine.remote_ranking import RemoteFailure, rank_many_remotely
from recsys_batch.online.ranking.cold_start import embed_session
from recsys_batch.online.ranking.exploration import Explorer
from recsys_batch.online.ranking.ladder import RankInput, rank, rank_many
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.online.ranking.request_candidates import look_up_candidates, make_candidate_record
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import UserRecord
from recsys_batch.ranking.business_rules import ItemRules
from recsys_batch.ranking.features import CANDIDATE_SCORE, FeatureSpec
from tests.online.ranking.test_ladder import N_ITEMS, N_USERS, NOON, asked, lists_of

FULL = {"when": NOON, "device": "tv", "session_item_ids": [3, 9, 41]}
GIVEN = [7, 400, 8, 7, 10**9, 12, 3, "12", "no item", 10**9, 99]
"""With two that are named twice and two that nobody knows."""


def own_candidates(snapshot: Snapshot, user: int) -> list[int]:
    lists = lists_of(snapshot, user)
    assert lists is not None
    return lists.codes.tolist()  # made-up items are numbered as they are coded


def with_catalogue(snapshot: Snapshot, **changed: Any) -> Snapshot:
    return replace(snapshot, items=replace(snapshot.items, catalogue=replace(snapshot.items.catalogue, **changed)))


class FailingRanker:
    """Gives an answer that is no score, or fails."""

    def __init__(self, answer: float | None = None) -> None:
        self.answer = answer

    def score(self, users: np.ndarray, items: np.ndarray, features: np.ndarray) -> np.ndarray:
        if self.answer is None:
            raise RuntimeError("broken")
        return np.full(items.shape[:2], self.answer, np.float32)


@pytest.mark.parametrize("context", [{}, FULL, {"categories": ["category 3", "category 5"]}], ids=["neutral", "context", "categories"])
def test_the_users_own_candidates_in_any_order_are_ranked_as_without_naming_them(snapshot: Snapshot, context: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    for user in range(0, N_USERS, 13):
        given = rng.permutation(own_candidates(snapshot, user)).tolist()
        plain, listed = (asked(snapshot, user, 20, explain=True, candidate_item_ids=ids, **context) for ids in (None, given))
        assert (listed.source, listed.degraded) == ("ranker", None)
        np.testing.assert_array_equal(listed.codes, plain.codes)
        np.testing.assert_array_equal(listed.scores, plain.scores)
        assert [given[place - 1] for place in listed.candidate_ranks] == listed.codes.tolist()
        assert listed.batch_ranks is not None and plain.batch_ranks is not None
        np.testing.assert_array_equal(listed.batch_ranks, plain.batch_ranks)
        np.testing.assert_array_equal(listed.batch_scores, plain.batch_scores)  # type: ignore[arg-type]
        assert listed.contributions is not None and set(listed.contributions) == set(plain.contributions or ())


def scores_of(snapshot: Snapshot, user: int, item_ids: Sequence[int] | None, **context: Any) -> dict[int, bytes]:
    """The bits of all scores, by code."""
    ranked = asked(snapshot, user, N_ITEMS, candidate_item_ids=item_ids, **context)
    assert ranked.source == "ranker"
    return {code: score.tobytes() for code, score in zip(ranked.codes.tolist(), ranked.scores, strict=True)}


@settings(max_examples=60, deadline=None)
@given(
    user=st.integers(0, N_USERS - 1).filter(lambda number: number % 10),
    context=st.sampled_from([{}, FULL, {"device": "tv"}, {"session_item_ids": [7]}]),
    data=st.data(),
)
def test_every_subset_of_a_users_candidates_has_the_scores_of_the_whole_list_to_the_last_bit(
    snapshot: Snapshot, user: int, context: dict[str, Any], data: st.DataObject
) -> None:
    whole = scores_of(snapshot, user, None, **context)
    others = [code for code in range(N_ITEMS) if code not in own_candidates(snapshot, user)]
    whole |= scores_of(snapshot, user, others, **context)
    given_ids = data.draw(st.lists(st.sampled_from(sorted(whole)), min_size=1, max_size=30, unique=True), "candidates")
    assert scores_of(snapshot, user, given_ids, **context) == {code: whole[code] for code in given_ids}
    assert scores_of(snapshot, user, given_ids[:1], **context) == {given_ids[0]: whole[given_ids[0]]}


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_what_was_not_retrieved_is_scored_by_the_snapshots_metric_and_what_was_keeps_its_score(
    snapshot: Snapshot, metric: Literal["ip", "cosine"]
) -> None:
    changed = replace(snapshot, manifest=replace(snapshot.manifest, facts=replace(snapshot.facts, metric=metric)))
    record = lists_of(snapshot, 5)
    assert record is not None and record.embedding is not None
    record = replace(record, retrieval=record.retrieval + np.float32(0.25))  # as no formula here would have it
    given = list(range(N_ITEMS))
    made = make_candidate_record(changed, record, look_up_candidates(changed, RankQuery(5, 1, candidate_item_ids=given), None))
    vectors = snapshot.items.catalogue.embeddings
    expected = vectors @ record.embedding
    if metric == "cosine":
        expected = expected / np.linalg.norm(vectors, axis=1) / np.linalg.norm(record.embedding)
    expected[record.codes] = record.retrieval
    np.testing.assert_allclose(made.retrieval, expected, atol=1e-6)


def test_ranks_in_the_published_list_are_those_of_the_whole_list(snapshot: Snapshot) -> None:
    record = lists_of(snapshot, 5)
    assert record is not None
    published = record.codes[record.top_places].tolist()
    given = [published[9], published[2], next(code for code in range(N_ITEMS) if code not in record.codes)]
    ranked = asked(snapshot, 5, 10, candidate_item_ids=given, explain=True)
    assert ranked.batch_ranks is not None and ranked.batch_scores is not None
    ranks = dict(zip(ranked.codes.tolist(), ranked.batch_ranks.tolist(), strict=True))
    scores = dict(zip(ranked.codes.tolist(), ranked.batch_scores.tolist(), strict=True))
    assert ranks == {given[0]: 10, given[1]: 3, given[2]: 0}
    assert (scores[given[0]], scores[given[1]]) == (record.top_scores[9], record.top_scores[2]) and math.isnan(scores[given[2]])


def test_unknown_ids_are_told_once_as_they_were_spelled_and_duplicates_count_once(snapshot: Snapshot) -> None:
    ranked = asked(snapshot, 5, 50, candidate_item_ids=GIVEN)
    assert sorted(ranked.codes.tolist()) == [3, 7, 8, 12, 99, 400]
    places = dict(zip(ranked.codes.tolist(), ranked.candidate_ranks.tolist(), strict=True))
    assert places == {7: 1, 400: 2, 8: 3, 12: 6, 3: 7, 99: 11}
    assert ranked.unknown_item_ids == [10**9, "no item"]
    assert asked(snapshot, 5).unknown_item_ids is None


IDS = st.integers(-2, N_ITEMS + 5) | st.integers(-2, N_ITEMS + 5).map(str) | st.sampled_from(["", "x", 2**70, "\ud800"])


@settings(max_examples=100, deadline=None)
@given(
    user=st.integers(-3, N_USERS + 3),
    k=st.integers(1, 30),
    given_ids=st.lists(IDS, max_size=40),
    session=st.lists(st.integers(0, N_ITEMS + 5), max_size=4),
    excluded=st.lists(st.integers(0, N_ITEMS + 5), max_size=40),
    scored=st.booleans(),
    state=st.sampled_from(["", "no ranker", "late", "failing", "no embedding", "store failed"]),
)
def test_an_answer_has_only_what_the_request_brought_each_once(
    snapshot: Snapshot,
    user: int,
    k: int,
    given_ids: list[int | str],
    session: list[int],
    excluded: list[int],
    scored: bool,
    state: str,
) -> None:
    if state in ("no ranker", "failing"):
        snapshot = replace(snapshot, ranker=FailingRanker() if state == "failing" else None)  # type: ignore[arg-type]
    record = None if state == "store failed" else lists_of(snapshot, user)
    if record is not None and state == "no embedding":
        record = replace(record, embedding=None)
    query = RankQuery(user, k, session_item_ids=session, exclude_item_ids=excluded, candidate_item_ids=given_ids)
    query.candidate_scores = [0.5] * len(given_ids) if scored else None
    query.deadline = 0.0 if state == "late" else None
    ranked = rank(snapshot, query, record, LatencyTracker(), store_failed=state == "store failed")
    names = {one: int(one) for one in given_ids if str(one).isdigit() and int(one) < N_ITEMS}
    assert set(ranked.unknown_item_ids or ()) == {one for one in given_ids if one not in names}
    assert len(set(ranked.unknown_item_ids or ())) == len(ranked.unknown_item_ids or ())
    shown, allowed = ranked.codes.tolist(), set(names.values()) - {*session, *excluded}
    assert set(shown) <= allowed and len(set(shown)) == len(shown) == min(k, len(allowed))
    assert [names[given_ids[place - 1]] for place in ranked.candidate_ranks] == shown
    assert np.isfinite(ranked.scores).all() and (np.diff(ranked.scores) <= 0).all()


def test_an_empty_list_and_one_of_strangers_are_answers_without_items(snapshot: Snapshot) -> None:
    for given_ids, unknown in (([], []), (["x", "x"], ["x"])):
        for user in (5, "nobody"):
            ranked = asked(snapshot, user, candidate_item_ids=given_ids)
            assert (ranked.codes.tolist(), ranked.source, ranked.degraded) == ([], "request", None)
            assert ranked.unknown_item_ids == unknown
    nothing_left = asked(snapshot, 5, candidate_item_ids=[4, 7], exclude_item_ids=[4, 7])
    assert (nothing_left.codes.tolist(), nothing_left.source) == ([], "ranker")


def test_somebody_without_history_is_ranked_by_the_session(snapshot: Snapshot) -> None:
    given_ids = list(range(40, 60))
    ranked = asked(snapshot, "nobody", 20, candidate_item_ids=given_ids, session_item_ids=[3, 45])
    assert (ranked.source, ranked.degraded) == ("ranker", None) and set(ranked.codes.tolist()) == {*given_ids} - {45}
    assert ranked.batch_scores is None or np.isnan(ranked.batch_scores).all()
    record = lists_of(snapshot, 5)
    assert record is not None
    listless = rank(
        snapshot,
        RankQuery(5, 20, session_item_ids=[3, 45], candidate_item_ids=given_ids),
        replace(record, embedding=None),
        LatencyTracker(),
    )
    np.testing.assert_array_equal(listless.codes, ranked.codes)
    late = asked(snapshot, "nobody", 20, candidate_item_ids=given_ids, session_item_ids=[3, 45], deadline=0.0)
    vector = embed_session(snapshot, np.array([3, 45]))
    nearest = sorted({*given_ids} - {45}, key=lambda code: -float(snapshot.items.catalogue.embeddings[code] @ vector))
    assert (late.source, late.degraded, late.codes.tolist()) == ("retrieval", "deadline", nearest)


def test_somebody_of_whom_nothing_is_known_gets_the_given_order(snapshot: Snapshot) -> None:
    record = lists_of(snapshot, 5)
    assert record is not None
    query = RankQuery("nobody", 3, candidate_item_ids=[9, "x", 400, 2, 11], exclude_item_ids=[400])
    users: list[tuple[UserRecord | None, bool, str]] = [
        (None, False, "unknown_user"),
        (None, True, "store_unavailable"),
        (replace(record, embedding=None), False, "no_embedding"),
    ]
    for known, store_failed, reason in users:
        ranked = rank(snapshot, query, known, LatencyTracker(), store_failed=store_failed)
        assert (ranked.source, ranked.degraded, ranked.codes.tolist()) == ("request", reason, [9, 2, 11])
        assert (ranked.candidate_ranks.tolist(), ranked.unknown_item_ids) == ([1, 4, 5], ["x"])
        np.testing.assert_allclose(ranked.scores, [1, 1 / 4, 1 / 5])


@pytest.mark.parametrize("reason", ["no_ranker", "deadline", "ranker_failed", "no number"])
def test_without_the_ranker_candidates_are_in_the_order_of_retrieval(snapshot: Snapshot, reason: str) -> None:
    record = lists_of(snapshot, 5)
    assert record is not None and record.embedding is not None
    given_ids = [1, 2, 3, 4, int(record.codes[5]), int(record.codes[0])]
    ranker = {"no_ranker": None, "deadline": snapshot.ranker, "ranker_failed": FailingRanker(), "no number": FailingRanker(math.nan)}[
        reason
    ]
    query = RankQuery(5, 5, candidate_item_ids=given_ids, explain=True, deadline=time.perf_counter() - 1 if reason == "deadline" else None)
    ranked = rank(replace(snapshot, ranker=ranker), query, record, LatencyTracker())  # type: ignore[arg-type]
    assert (ranked.source, ranked.degraded) == ("retrieval", "ranker_failed" if reason == "no number" else reason)
    products = snapshot.items.catalogue.embeddings[given_ids] @ record.embedding
    order = np.argsort(-products)[:5]
    assert ranked.candidate_ranks.tolist() == (order + 1).tolist()
    np.testing.assert_allclose(ranked.scores, products[order], atol=1e-6)
    assert ranked.batch_ranks is not None and 1 in ranked.batch_ranks.tolist() and 0 in ranked.batch_ranks.tolist()


def test_without_one_retrieval_score_that_is_a_number_the_given_order_stands(snapshot: Snapshot) -> None:
    record = lists_of(snapshot, 5)
    assert record is not None
    scores = record.retrieval.copy()
    given_ids = record.codes[:3].tolist()
    query = RankQuery(5, 2, candidate_item_ids=given_ids)
    without = replace(snapshot, ranker=None)
    for score in (math.nan, math.inf, -math.inf):
        scores[0] = score
        assert rank(without, query, replace(record, retrieval=scores), LatencyTracker()).codes.tolist() == given_ids[1:]
    nothing = rank(without, query, replace(record, retrieval=np.full_like(scores, math.nan)), LatencyTracker())
    assert (nothing.source, nothing.degraded, nothing.codes.tolist()) == ("request", "no_ranker", given_ids[:2])


def test_rules_of_the_business_hold_and_what_may_not_be_recommended_is_left_out(snapshot: Snapshot) -> None:
    given_ids = list(range(20))
    boost, blocked, retrievable = np.zeros(N_ITEMS, np.float32), np.zeros(N_ITEMS, bool), np.ones(N_ITEMS, bool)
    boost[4], blocked[5], retrievable[6] = 100.0, True, False
    everybodys, readers = np.ones(N_ITEMS, bool), np.ones(N_ITEMS, bool)
    everybodys[7], readers[8] = False, False
    ruled = with_catalogue(
        snapshot,
        item_rules=ItemRules(boost=boost, blocked=blocked),
        retrievable=retrievable,
        eligible={"all": everybodys, "readers": readers},
    )
    ruled = replace(ruled, manifest=replace(ruled.manifest, facts=replace(ruled.facts, segments=("readers", "others"))))
    record = lists_of(snapshot, 5)
    assert record is not None
    for segment, out in ((None, {5, 6, 7}), (0, {5, 6, 8}), (1, {5, 6, 7})):
        for known in (replace(record, segment=segment), None):
            name = None if segment is None else ruled.facts.segments[segment]
            query = RankQuery(5, 20, candidate_item_ids=given_ids, segment=name if known is None else "readers")
            shown = rank(ruled, query, known, LatencyTracker())
            assert shown.codes[0] == 4 and set(shown.codes.tolist()) == {*given_ids} - out, (segment, known)
            assert shown.unknown_item_ids == []


class EchoRanker:
    """Scores by the last feature."""

    def score(self, users: np.ndarray, items: np.ndarray, features: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(features[..., -1])


def test_the_callers_scores_are_a_feature_where_the_spec_names_it_and_of_no_effect_elsewhere(snapshot: Snapshot) -> None:
    spec = FeatureSpec((*FeatureSpec.default().names, "query_length", CANDIDATE_SCORE))
    spec.check()
    named = replace(snapshot, ranker=EchoRanker(), manifest=replace(snapshot.manifest, features=spec))  # type: ignore[arg-type]
    given: dict[str, Any] = {"candidate_item_ids": [9, "x", 2, 9, 11], "candidate_scores": [0.5, 9.0, -3.0, 8.0, 2.5]}
    scored = asked(named, 5, 5, **given, explain=True)
    assert (scored.codes.tolist(), scored.scores.tolist()) == ([11, 9, 2], [2.5, 0.5, -3.0])
    assert scored.contributions is not None and scored.contributions["candidate_score"].tolist() == [2.5, 0.5, -3.0]
    for neutral in (asked(named, 5, 5, candidate_item_ids=[9, 2], attributes={CANDIDATE_SCORE: 4.0}), asked(named, 5, 5)):
        assert set(neutral.scores.tolist()) == {0.0}
    together = rank_many(named, [RankInput(RankQuery(5, 5, **changed), lists_of(named, 5)) for changed in MIXED], LatencyTracker())
    assert [result.scores.tolist() for result in together] == [[2.5, 0.5, -3.0], [0.0, 0.0, 0.0]]
    plain, unnamed = (asked(snapshot, 5, 5, candidate_item_ids=[9, 2, 11], candidate_scores=scores) for scores in (None, [1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(unnamed.scores, plain.scores)


MIXED: list[dict[str, Any]] = [
    {"candidate_item_ids": [9, 2, 11], "candidate_scores": [0.5, -3.0, 2.5]},
    {"candidate_item_ids": [9, 2, 11]},
]


def mixed_inputs(snapshot: Snapshot) -> list[RankInput]:
    """Plain requests, and lists of as many candidates and of others."""
    given: Sequence[Sequence[int | str] | None] = [None, list(range(60)), GIVEN, list(range(200, 260)), [], None]
    return [RankInput(RankQuery(user, 7, candidate_item_ids=ids), lists_of(snapshot, user)) for user, ids in enumerate(given)]


def same(result: RankResult) -> tuple[Any, ...]:
    return result.codes.tolist(), result.candidate_ranks.tolist(), result.source, result.degraded, result.unknown_item_ids


def test_requests_that_are_ranked_together_get_what_each_gets_alone(snapshot: Snapshot) -> None:
    inputs = mixed_inputs(snapshot)
    together = rank_many(snapshot, inputs, LatencyTracker())
    assert list(map(same, together)) == [same(rank(snapshot, one.query, one.record, LatencyTracker())) for one in inputs]


def test_long_lists_do_not_make_the_ranker_look_slow_to_plain_requests_nor_the_other_way_round(snapshot: Snapshot) -> None:
    for slow_lists in (True, False):
        latency = LatencyTracker()
        (latency.of_lists() if slow_lists else latency).add(0.05)
        soon = time.perf_counter() + 0.02
        inputs = [RankInput(RankQuery(5, 5, deadline=soon, candidate_item_ids=ids), lists_of(snapshot, 5)) for ids in (None, [1, 2])]
        assert [result.degraded == "deadline" for result in rank_many(snapshot, inputs, latency)] == [not slow_lists, slow_lists]


def test_places_of_a_list_that_the_caller_brought_are_not_swapped(snapshot: Snapshot) -> None:
    explored = rank_many(snapshot, mixed_inputs(snapshot), LatencyTracker(), Explorer(0.9, 1))
    assert [result.exploration is not None for result in explored] == [True, False, False, False, False, True]
    assert same(explored[1]) == same(rank_many(snapshot, mixed_inputs(snapshot), LatencyTracker())[1])


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_server_ranks_them_as_the_snapshots_own_ranker_and_its_failure_leaves_the_order_of_retrieval(
    snapshot: Snapshot, fails: bool
) -> None:
    class Client:
        max_calls = 1

        async def score(
            self, version: str, users: np.ndarray, items: np.ndarray, features: np.ndarray, deadline: float | None = None
        ) -> Any:
            if fails:
                raise RemoteFailure("ranker_unavailable", "away")
            assert snapshot.ranker is not None
            return snapshot.ranker.score(users, items, features)

    local = replace(snapshot, ranker=None) if fails else snapshot
    expected = [same(result) for result in rank_many(local, mixed_inputs(snapshot), LatencyTracker())]
    ranked = asyncio.run(rank_many_remotely(snapshot, mixed_inputs(snapshot), LatencyTracker(), None, Client()))
    if fails:
        expected = [(*one[:3], "ranker_unavailable" if one[3] else None, one[4]) for one in expected]
        assert {result.source for result in ranked} == {"batch", "retrieval", "request"}
    assert list(map(same, ranked)) == expected
