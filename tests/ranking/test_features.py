"""The ranker's features: one definition, neutral where nothing is known, the same for one user as for many."""

import json

import numpy as np
import pytest

from recsys_batch.ranking.features import (
    CONTEXT_FEATURES,
    DEVICES,
    PAIR_FEATURES,
    Context,
    FeatureSpec,
    compute_pair_features,
    compute_session_similarity,
)
from recsys_batch.ranking.vector_lengths import row_lengths

RNG = np.random.default_rng(5)
SCORES = RNG.normal(size=(4, 6)).astype(np.float32)
POPULARITY = RNG.random((4, 6)).astype(np.float32)
N_EVENTS = np.array([0, 1, 7, 300])
SPEC = FeatureSpec.fit(SCORES, POPULARITY, N_EVENTS)


def features(context: Context | None, rows: slice = slice(None), spec: FeatureSpec = SPEC) -> np.ndarray:
    return compute_pair_features(
        spec, retrieval_score=SCORES[rows], log_popularity=POPULARITY[rows], n_events=N_EVENTS[rows], context=context
    )


def column(array: np.ndarray, name: str) -> np.ndarray:
    return array[..., SPEC.names.index(name)]


def context(hour: float = np.nan, weekday: float = np.nan, device: str | None = None, similarity: np.ndarray | None = None) -> Context:
    return Context(np.full(4, hour), np.full(4, weekday), [device] * 4, similarity)


def test_without_context_every_context_feature_is_zero() -> None:
    assert not features(None)[..., len(PAIR_FEATURES) :].any()


def test_a_context_in_which_nothing_is_known_equals_no_context() -> None:
    np.testing.assert_array_equal(features(context(similarity=np.full((4, 6), np.nan, np.float32))), features(None))


def test_pair_features_are_centred_and_scaled_by_what_the_spec_froze() -> None:
    spec = FeatureSpec(mean=(1.0, 2.0, 0.5), scale=(2.0, 4.0, 0.25))
    got = features(None, spec=spec)
    np.testing.assert_allclose(column(got, "retrieval_score"), (SCORES - 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(column(got, "log_popularity"), (POPULARITY - 2) / 4, rtol=1e-6)
    np.testing.assert_allclose(column(got, "log_n_events"), np.tile((np.log1p(N_EVENTS)[:, None] - 0.5) / 0.25, 6), rtol=1e-6)


def test_a_fitted_spec_gives_mean_0_and_deviation_1_and_stays_finite_where_a_feature_is_constant() -> None:
    got = features(None)[..., :2]
    np.testing.assert_allclose(got.mean(axis=(0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(got.std(axis=(0, 1)), 1, atol=1e-5)
    flat = FeatureSpec.fit(np.ones((4, 6)), np.ones((4, 6)), np.ones(4))
    assert np.isfinite(features(None, spec=flat)).all()


def test_a_users_features_do_not_depend_on_the_other_users() -> None:
    whole = Context(np.array([0.5, np.nan, 13, 23]), np.array([0.0, np.nan, 6, 3]), ["tv", None, "mobile", "watch"], POPULARITY)
    together = features(whole)
    for row in range(4):
        one = slice(row, row + 1)
        alone = Context(whole.hour[one], whole.weekday[one], whole.device[one], POPULARITY[one])
        np.testing.assert_array_equal(features(alone, one), together[one])


def test_the_day_and_the_week_are_circles() -> None:
    np.testing.assert_allclose(features(context(0, 0)), features(context(24, 7)), atol=1e-6)
    assert np.abs(features(context(0, 0)) - features(context(12, 0))).max() > 1


@pytest.mark.parametrize(("device", "name"), [("tablet", "device_tablet"), ("fridge", "device_other")])
def test_a_device_sets_one_feature_and_an_unknown_name_counts_as_other(device: str, name: str) -> None:
    got = features(context(device=device))
    assert (column(got, name) == 1).all()
    assert got[0, 0, [SPEC.names.index(f"device_{each}") for each in (*DEVICES, "other")]].sum() == 1


def test_session_similarity_is_the_largest_cosine_whatever_the_lengths() -> None:
    items = np.array([[[2, 0], [0, 3], [-1, 0]]], dtype=np.float32)
    session = np.array([[[5, 0], [0.1, 0.1], [0, 0]]], dtype=np.float32)
    np.testing.assert_allclose(compute_session_similarity(items, session), [[1, np.sqrt(0.5), -np.sqrt(0.5)]], rtol=1e-6)


@pytest.mark.parametrize("item_size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("session_size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("lengths_known", [False, True])
def test_session_similarity_takes_tiny_and_huge_vectors_for_what_they_are(
    item_size: float, session_size: float, lengths_known: bool
) -> None:
    items = np.array([[[2, 0], [0, 3], [-1, 0]]], dtype=np.float32) * np.float32(item_size)
    session = np.array([[[5, 0], [0.1, 0.1], [0, 0]]], dtype=np.float32) * np.float32(session_size)
    lengths = [row_lengths(vectors).astype(np.float32) for vectors in (items, session)] if lengths_known else [None, None]
    np.testing.assert_allclose(compute_session_similarity(items, session, *lengths), [[1, np.sqrt(0.5), -np.sqrt(0.5)]], rtol=1e-6)


def test_an_empty_session_is_unknown_and_not_dissimilar() -> None:
    similarity = compute_session_similarity(np.ones((4, 6, 2), np.float32), np.zeros((4, 3, 2), np.float32))
    assert np.isnan(similarity).all()
    got = features(context(similarity=similarity))
    assert not column(got, "has_session").any() and not column(got, "session_similarity").any()


def test_a_spec_survives_json() -> None:
    assert FeatureSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
    assert SPEC.names == (*PAIR_FEATURES, *CONTEXT_FEATURES)
