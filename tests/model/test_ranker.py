"""The second stage: what it adds to the retrieval order, what it is taught on, and when it is let in."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recsys_batch.config import Config
from recsys_batch.dataset.histories import NO_TIME
from recsys_batch.errors import BundleError
from recsys_batch.model import ranker_training
from recsys_batch.model.challenger_metrics import NO_METRICS
from recsys_batch.model.content_tokens import ContentTokens
from recsys_batch.model.ranker import Ranker, RankerParameters
from recsys_batch.model.ranker_training import RankerStage, _sample_context, fit_ranker, measure_ranker
from recsys_batch.model.ranking_samples import RankingData, retrieve_lists
from recsys_batch.model.tower_parameters import Hyperparameters, TowerParameters, initialize_parameters
from recsys_batch.model.training_data import Positives, prepare_training_data
from recsys_batch.model.validation_split import split_positives
from recsys_batch.ranking.features import PAIR_FEATURES, FeatureSpec, PairFeatures

LATER = 1e12
D, F = 5, len(FeatureSpec.default().names)
NO_TOKENS = ContentTokens.empty(0)


def inputs_of(B: int, C: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(B)
    users, items, features = (rng.normal(size=shape).astype(np.float32) for shape in ((B, D), (B, C, D), (B, C, F)))
    return users, items, features


def trained(gate: float) -> RankerParameters:
    params = RankerParameters.initialize(D, F, seed=4)
    generator = torch.Generator().manual_seed(5)
    params = replace(params, output=torch.randn(params.output.shape, generator=generator), gate=gate)
    params.bias += 0.3
    return params


def test_the_score_is_the_retrieval_score_and_a_gated_network_of_all_inputs() -> None:
    params = trained(0.5)
    users, items, features = inputs_of(2, 3)
    first = np.concatenate([weights.numpy() for weights in (params.user, params.item, params.product, params.features)])
    for b in range(2):
        for c in range(3):
            everything = np.concatenate([users[b], items[b, c], users[b] * items[b, c], features[b, c]])
            hidden = np.maximum(everything @ first + params.bias.numpy(), 0)
            expected = features[b, c, 0] + 0.5 * (hidden @ params.output.numpy())[0]
            got = Ranker(params.to_arrays()).score(users[b : b + 1], items[b : b + 1, c : c + 1], features[b : b + 1, c : c + 1])
            assert got[0, 0] == pytest.approx(expected, abs=1e-4)


def test_a_closed_gate_leaves_the_retrieval_order() -> None:
    users, items, features = inputs_of(4, 9)
    np.testing.assert_array_equal(Ranker(trained(0.0).to_arrays()).score(users, items, features), features[..., 0])


def test_a_score_does_not_depend_on_other_users_or_candidates() -> None:
    users, items, features = inputs_of(4, 9)
    ranker = Ranker(trained(1.0).to_arrays())
    together = ranker.score(users, items, features)
    alone = ranker.score(users[2:3], items[2:3, 5:6], features[2:3, 5:6])
    assert alone[0, 0] == pytest.approx(together[2, 5], abs=1e-5)


@pytest.mark.parametrize("n_users", [1, 2, 3, 7])
def test_scores_of_the_night_have_the_same_bits_in_blocks_of_any_size(n_users: int) -> None:
    rng, n_items, d, n_candidates = np.random.default_rng(3), 500, 64, 200
    params = replace(RankerParameters.initialize(d, F, seed=4), gate=1.0)
    params = replace(params, output=torch.randn(params.output.shape, generator=torch.Generator().manual_seed(5)))
    users, items = (rng.normal(size=(n, d)).astype(np.float32) for n in (64, n_items))
    codes = rng.integers(0, n_items, (64, n_candidates))
    pairs = [rng.normal(size=codes.shape).astype(np.float32) for _ in range(2)]
    events = rng.normal(size=64).astype(np.float32)
    ranker = Ranker(params.to_arrays())
    together = ranker.score_without_context(users, items, codes, PairFeatures(*pairs, events))
    block = slice(5, 5 + n_users)
    features = PairFeatures(*(values[block] for values in pairs), events[block])
    np.testing.assert_array_equal(ranker.score_without_context(users[block], items, codes[block], features), together[block])


def test_missing_weights_are_named() -> None:
    arrays = trained(1.0).to_arrays()
    del arrays["ranker_product"]
    with pytest.raises(BundleError, match="lacks the weights product"):
        Ranker(arrays)


def towers_of(data: Positives, seed: int = 1) -> TowerParameters:
    return initialize_parameters(Hyperparameters(20.0, 0.0, 5.0, 8), data, 0, seed)


@pytest.fixture(scope="module")
def stages(planted: Any, small: Config) -> tuple[RankerStage, RankerStage]:
    """(inner, outer) on the planted market."""
    positives = prepare_training_data(planted.interactions, planted.items, None, small).positives
    train, held, _ = split_positives(positives, 0.1)
    older, newer, _ = split_positives(train, 0.2)
    return RankerStage(towers_of(older), older, newer), RankerStage(towers_of(train), train, held)


def test_lists_hold_no_input_and_every_retrieved_label_is_marked(stages: tuple[RankerStage, RankerStage]) -> None:
    stage = stages[0]
    chosen = np.arange(0, stage.inputs.n_users, 3)
    lists = retrieve_lists(stage.towers, NO_TOKENS, stage.inputs, stage.labels, chosen)
    assert lists is not None
    for row, user in enumerate(chosen):
        seen = set(stage.inputs.codes[slice(*stage.inputs.offsets[user : user + 2])].tolist())
        later = set(stage.labels.codes[slice(*stage.labels.offsets[user : user + 2])].tolist())
        listed = lists.items[row][lists.is_candidate[row]].tolist()
        assert not seen & set(listed) and len(listed) == 80 - len(seen)
        assert set(lists.items[row][lists.relevant[row]].tolist()) == later & set(listed)
        assert (lists.n_relevant[row], lists.n_events[row]) == (len(later), len(seen))
    assert (np.diff(lists.scores, axis=1) <= 0).all(where=lists.is_candidate[:, 1:])


def test_the_time_of_a_list_is_its_newest_labels_and_unknown_without_label(make_positives: Any) -> None:
    inputs, labels = make_positives([[0], [1], [2]], 6), make_positives([[3, 4], [], [5]], 6, [90, 80, 70])
    lists = retrieve_lists(towers_of(inputs), NO_TOKENS, inputs, labels, np.arange(3))
    assert lists is not None and lists.label_us.tolist() == [90, NO_TIME, 70]
    assert lists.session.tolist() == [[0, -1, -1], [1, -1, -1], [2, -1, -1]]


def test_half_of_the_users_are_taught_without_context(stages: tuple[RankerStage, RankerStage]) -> None:
    lists = stages[0].sample_lists(NO_TOKENS, 1, 1_000)
    assert lists is not None
    data = RankingData.from_samples(stages[0].towers, stages[0].inputs, lists)
    context = _sample_context(data, lists, np.random.default_rng(0))
    features = data.compute_features(lists, context)[..., len(PAIR_FEATURES) :]
    neutral = ~features.any(axis=(1, 2))
    assert 0.35 < neutral.mean() < 0.65
    # 1970-01-01T00:00Z was a Thursday, and all of the market's events lie within three weeks of it
    known = np.isfinite(context.hour)
    assert (context.weekday[known] == (lists.label_us[known] // 86_400_000_000 + 3) % 7).all() and known.any()


def test_the_ranker_is_no_worse_than_the_towers_on_what_is_held_out(stages: tuple[RankerStage, RankerStage]) -> None:
    inner, outer = stages
    params, data, metrics = fit_ranker(inner, outer, NO_TOKENS, 3, LATER, lambda *_: None)
    lists = outer.sample_lists(NO_TOKENS, 3, 1_000)
    assert lists is not None
    towers_alone = measure_ranker(replace(params, gate=0.0), data, lists)
    assert metrics["ndcg_at_20"] >= towers_alone["ndcg_at_20"]


def test_the_ranker_learns_what_the_towers_cannot_say(make_positives: Any) -> None:
    """Everybody's next items are unpopular ones, which the towers know nothing of: the ranker has to turn popularity round."""
    rng = np.random.default_rng(0)
    histories = []
    for _ in range(900):  # with 300 it depends on the processor whether the retrieval order is ever passed
        old = rng.permutation(20)[: rng.integers(6, 12)]
        new = 20 + np.minimum((20 * rng.random(4) ** 0.5).astype(int), 19)
        histories.append([*dict.fromkeys(new.tolist()), *old.tolist()])
    everything = make_positives(histories, 40)
    train, held, _ = split_positives(everything, 0.15)
    older, newer, _ = split_positives(train, 0.15)
    inner, outer = RankerStage(towers_of(older), older, newer), RankerStage(towers_of(train), train, held)
    params, data, metrics = fit_ranker(inner, outer, NO_TOKENS, 3, LATER, lambda *_: None)
    lists = outer.sample_lists(NO_TOKENS, 3, 1_000)
    assert lists is not None and params.gate > 0
    assert metrics["ndcg_at_20"] > 1.05 * measure_ranker(replace(params, gate=0.0), data, lists)["ndcg_at_20"]


def test_a_gain_that_may_be_luck_leaves_the_gate_closed(stages: tuple[RankerStage, RankerStage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker_training, "_MIN_STANDARD_ERRORS", 1e9)
    params, _, _ = fit_ranker(*stages, NO_TOKENS, 3, LATER, lambda *_: None)
    assert params.gate == 0.0


def test_at_its_deadline_the_ranker_stops_with_a_closed_gate(stages: tuple[RankerStage, RankerStage]) -> None:
    params, _, metrics = fit_ranker(*stages, NO_TOKENS, 3, time.monotonic() - 1, lambda *_: None)
    assert params.gate == 0.0 and metrics["ndcg_at_10"] > 0


def test_without_labels_the_gate_stays_closed_and_nothing_is_claimed(make_positives: Any) -> None:
    inputs, labels = make_positives([[0], [1]], 3), make_positives([[], []], 3)
    stage = RankerStage(towers_of(inputs), inputs, labels)
    params, data, metrics = fit_ranker(stage, stage, NO_TOKENS, 3, LATER, lambda *_: None)
    assert params.gate == 0.0 and metrics == {} and data.spec == FeatureSpec.default()
    assert set(NO_METRICS) == {"ndcg_at_10", "ndcg_at_20", "recall_at_10", "recall_at_20"}
