"""The reference ranker in numpy scores as its ONNX model does, whatever is known of the request."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.errors import BundleError
from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.ranking.features import (
    CANDIDATE_SCORE,
    CONTEXT_FEATURES,
    PAIR_FEATURES,
    Context,
    FeatureSpec,
    PairFeatures,
    assemble_features,
)
from recsys_batch.ranking.numpy_ranker import NumpyRanker
from recsys_batch.ranking.onnx_ranker import OnnxRanker
from recsys_batch.registry.bundle import select_ranker_weights

D = 9
SPEC = FeatureSpec((*PAIR_FEATURES, *CONTEXT_FEATURES, "mood=good", "price", CANDIDATE_SCORE), (0.1, 2.0, 1.0), (0.5, 3.0, 2.0))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    params = RankerParameters.initialize(D, len(SPEC.names), seed=4)
    generator = torch.Generator().manual_seed(5)
    for tensor in params.tensors():
        tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    params.gate = 0.5
    return params.to_arrays()


@pytest.fixture(scope="module")
def weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return select_ranker_weights(arrays)


@pytest.fixture(scope="module")
def engines(
    arrays: dict[str, np.ndarray], weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[NumpyRanker, OnnxRanker]:
    path = tmp_path_factory.mktemp("onnx") / "ranker.onnx"
    path.write_bytes(export_ranker_onnx(arrays))
    return NumpyRanker(weights, SPEC), OnnxRanker(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 11), c=st.integers(0, 7), seed=st.integers(0, 99))
def test_scores_are_those_of_the_onnx_model(
    engines: tuple[NumpyRanker, OnnxRanker], data: st.DataObject, n: int, c: int, seed: int
) -> None:
    in_numpy, onnx = engines
    rng = np.random.default_rng(seed)
    users, items, raw = (rng.normal(size=shape).astype(np.float32) for shape in ((n, D), (n, c, D), (2, n, c)))
    own_scores = rng.normal(size=(n, c)).astype(np.float32) if data.draw(st.booleans(), "has scores") else None
    numbers = {"retrieval_score": raw[0], "log_popularity": raw[1], "n_events": rng.integers(0, 90, n)}
    pair = PairFeatures.from_raw(SPEC, **numbers, candidate_score=own_scores)
    context = None
    if data.draw(st.booleans(), "has a context"):
        has_time, has_session = (np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for _ in range(2))
        similarity = np.where(has_session[:, None], rng.normal(size=(n, c)), np.nan).astype(np.float32)
        context = Context(
            hour=np.where(has_time, rng.uniform(0, 24, n), np.nan),
            weekday=np.where(has_time, 3.0, np.nan),
            device=data.draw(st.lists(st.sampled_from([None, "tv", "watch"]), min_size=n, max_size=n)),
            session_similarity=similarity if data.draw(st.booleans(), "has sessions") else None,
            attributes=[{"mood": "good", "price": 2.5} if number % 2 else {} for number in range(n)],
        )
    features = assemble_features(SPEC, pair, context)
    expected = onnx.score(users, items, features)
    for scores in (in_numpy.score_pairs(users, items, pair, context), in_numpy.score(users, items, features)):
        assert scores.dtype == np.float32 and scores.shape == (n, c)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=2e-5)


def test_a_users_scores_do_not_depend_on_the_company(engines: tuple[NumpyRanker, OnnxRanker]) -> None:
    in_numpy, _ = engines
    rng = np.random.default_rng(3)
    users, items, raw = (rng.normal(size=shape).astype(np.float32) for shape in ((9, D), (9, 40, D), (2, 9, 40)))
    pair = PairFeatures.from_raw(SPEC, retrieval_score=raw[0], log_popularity=raw[1], n_events=np.arange(9))
    together = in_numpy.score_pairs(users, items, pair, None)
    for row in range(9):
        one = slice(row, row + 1)
        alone = PairFeatures(pair.retrieval_score[one], pair.log_popularity[one], pair.log_n_events[one])
        np.testing.assert_array_equal(in_numpy.score_pairs(users[one], items[one], alone, None)[0], together[row])


@pytest.mark.parametrize("wrong", ["missing", "shape", "dtype", "infinite", "features"])
def test_weights_that_do_not_fit_are_refused(weights: dict[str, np.ndarray], wrong: str) -> None:
    bad, spec = dict(weights), SPEC
    if wrong == "missing":
        del bad["bias"]
    elif wrong == "shape":
        bad["item"] = bad["item"][:-1]
    elif wrong == "dtype":
        bad["user"] = bad["user"].astype(np.float64)
    elif wrong == "infinite":
        bad["output"] = bad["output"] * np.float32(np.inf)
    else:
        spec = FeatureSpec.default()
    with pytest.raises(BundleError, match="the ranker"):
        NumpyRanker(bad, spec)
