"""The compiled code against numpy, and against itself: a candidate's score does not depend on who else is there."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.ranking.compiled_ranker import CompiledRanker, is_compiled
from recsys_batch.ranking.features import (
    CANDIDATE_SCORE,
    CONTEXT_FEATURES,
    PAIR_FEATURES,
    Context,
    FeatureSpec,
    PairFeatures,
    compute_session_similarity,
)
from recsys_batch.ranking.numpy_ranker import NumpyRanker

pytestmark = pytest.mark.skipif(not is_compiled(), reason="this install has no compiled code: there was no C compiler")
SPEC = FeatureSpec((*PAIR_FEATURES, *CONTEXT_FEATURES, CANDIDATE_SCORE, "membership=gold"), (0.5, 2.0, 1.0), (2.0, 0.5, 3.0))


class Case:
    """A ranker of some size, a catalogue and a block of requests; further arguments of ``score`` stand for those of the block."""

    def __init__(self, seed: int, d: int, h: int, b: int, c: int, s: int, *, has_given: bool = True, is_neutral: bool = False) -> None:
        rng = np.random.default_rng(seed)

        def floats(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, dtype=np.float32) / np.float32(2)

        shapes = {"user": (d, h), "item": (d, h), "product": (d, h), "features": (len(SPEC.names), h), "bias": (h,), "output": (h, 1)}
        self.weights = {name: floats(*shape) for name, shape in shapes.items()}
        self.vectors, self.popularity = floats(300, d), floats(300)
        self.vectors[7] = 0.0  # has no direction
        self.norms = np.sqrt(np.einsum("nd,nd->n", self.vectors, self.vectors))
        self.users, self.codes, self.retrieval = floats(b, d), rng.integers(0, 300, (b, c)), floats(b, c)
        self.n_events, self.given = rng.integers(0, 50, b), floats(b, c) if has_given else None
        self.session = np.where(rng.random((b, s)) < 0.3, -1, rng.integers(0, 300, (b, s)))
        hours = [math.nan if n % 2 else 12.5 for n in range(b)]
        device = [("tv", None, "fridge")[n % 3] for n in range(b)]
        attributes = [{"membership": "gold"} if n % 2 else {} for n in range(b)]
        self.context = None if is_neutral else Context(np.array(hours), np.array([2.0] * b), device, attributes=attributes)
        self.ranker = CompiledRanker(self.weights, SPEC)

    def score(self, users: slice | list[int] = slice(None), places: slice | list[int] = slice(None)) -> np.ndarray:
        """Score some candidates of some users."""
        context = self.context
        if context is not None:
            numbers = np.arange(len(self.users))[users].tolist()
            lists = {name: [getattr(context, name)[n] for n in numbers] for name in ("device", "attributes")}
            context = Context(context.hour[users], context.weekday[users], lists["device"], attributes=lists["attributes"])
        given = None if self.given is None else np.ascontiguousarray(self.given[users][:, places])
        blocks = [np.ascontiguousarray(array[users][:, places]) for array in (self.codes, self.retrieval)]
        return self.ranker.score_codes(
            self.users[users], *blocks, self.n_events[users], self.session[users], context, given, self.vectors, self.popularity, self.norms
        )

    def score_by_numpy(self) -> np.ndarray:
        items, context = self.vectors[self.codes], self.context
        pair = PairFeatures.from_raw(
            SPEC,
            retrieval_score=self.retrieval,
            log_popularity=self.popularity[self.codes],
            n_events=self.n_events,
            candidate_score=self.given,
        )
        if context is not None and self.session.shape[1]:
            lengths = np.where(self.session < 0, np.float32(0), self.norms[self.session])
            similarity = compute_session_similarity(items, self.vectors[self.session], self.norms[self.codes], lengths)
            context = Context(context.hour, context.weekday, context.device, similarity, context.attributes)
        return NumpyRanker(self.weights, SPEC).score_pairs(self.users, items, pair, context)


SIZES = {"d": st.integers(1, 70), "h": st.integers(1, 70), "b": st.integers(1, 5), "c": st.integers(1, 40), "s": st.integers(0, 4)}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1000), st.fixed_dictionaries(SIZES), st.booleans(), st.booleans())
def test_scores_are_those_of_numpy_within_rounding_for_any_sizes(
    seed: int, sizes: dict[str, int], has_given: bool, is_neutral: bool
) -> None:
    case = Case(seed, **sizes | ({"s": 0} if is_neutral else {}), has_given=has_given, is_neutral=is_neutral)
    np.testing.assert_allclose(case.score(), case.score_by_numpy(), rtol=2e-4, atol=2e-4)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.data())
def test_every_part_of_a_block_has_the_scores_that_it_has_in_the_whole_bit_for_bit(seed: int, data: st.DataObject) -> None:
    case = Case(seed, d=64, h=32, b=5, c=30, s=3)
    whole = case.score()
    users = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    places = data.draw(st.lists(st.integers(0, 29), min_size=1, max_size=30))
    np.testing.assert_array_equal(case.score(users, places), whole[users][:, places])


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_similarity_to_a_session_does_not_depend_on_the_size_of_vectors(size: float) -> None:
    case = Case(3, d=16, h=8, b=1, c=20, s=3)
    similarity = np.zeros((len(SPEC.names), 8), np.float32)
    similarity[SPEC.names.index("session_similarity")] = 1.0
    nothing = {name: np.zeros_like(case.weights[name]) for name in ("user", "item", "product", "bias")}
    case.ranker = CompiledRanker({**nothing, "features": similarity, "output": np.ones((8, 1), np.float32)}, SPEC)
    case.session[:] = [[3, 4, 5]]
    plain = case.score()
    case.vectors, case.norms = case.vectors * np.float32(size), case.norms * np.float32(size)
    assert len(np.unique(plain)) > 10
    np.testing.assert_allclose(case.score(), plain, rtol=1e-4, atol=1e-5)


def test_what_is_no_number_is_seen_in_its_own_candidates_score_and_in_no_other() -> None:
    case = Case(1, d=16, h=24, b=2, c=10, s=2)
    whole = case.score()
    case.retrieval[1, 4], case.codes[:, 9] = np.nan, 11
    case.vectors[11] = np.inf
    scores = case.score()
    assert np.argwhere(~np.isfinite(scores)).tolist() == [[0, 9], [1, 4], [1, 9]]
    keep = np.isfinite(scores)
    np.testing.assert_array_equal(scores[keep], whole[keep])


@pytest.mark.parametrize("code", [-1, 300, 2**62])
def test_a_code_that_is_no_place_in_the_catalogue_is_refused(code: int) -> None:
    case = Case(1, d=8, h=8, b=1, c=3, s=1)
    case.codes[0, 1] = code
    with pytest.raises(ValueError, match="no place in the catalogue"):
        case.score()
    case = Case(1, d=8, h=8, b=1, c=3, s=1)
    case.session[0, 0] = -2 if code == -1 else code
    with pytest.raises((ValueError, IndexError), match=r"no place in the catalogue|out of bounds"):
        case.score()


def test_arrays_whose_sizes_differ_are_refused() -> None:
    case = Case(1, d=8, h=8, b=2, c=3, s=1)
    case.norms = case.norms[:-1]
    with pytest.raises(ValueError, match="another length"):
        case.score()
