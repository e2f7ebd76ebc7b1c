"""Training of the towers: what the loss is asked to predict, when it stops, and that it learns."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.config import Config, load_config
from recsys_batch.model import tower_parameters, tower_training
from recsys_batch.model.challenger_metrics import measure_popularity
from recsys_batch.model.content_tokens import ContentTokens, encode_tokens
from recsys_batch.model.tower_parameters import Hyperparameters, TowerParameters, initialize_parameters
from recsys_batch.model.tower_training import _Trainer, fit_towers, make_validator, refit_towers, search_hyperparameters
from recsys_batch.model.training_data import Positives, TrainingData, bound_users, prepare_training_data
from recsys_batch.model.validation_split import split_positives

LATER = 1e12
QUIET: Callable[..., None] = lambda *_: None  # noqa: E731
NO_TOKENS = ContentTokens.empty(0)


@pytest.fixture(scope="module")
def data(planted: Any, small: Config) -> TrainingData:
    return prepare_training_data(planted.interactions, planted.items, planted.users, small)


@pytest.fixture(scope="module")
def parts(data: TrainingData) -> tuple[Positives, Positives]:
    return split_positives(data.positives, 0.2)[:2]


def tokens(data: TrainingData) -> ContentTokens:
    return encode_tokens(data.user_tokens, 5)


def random_towers(n_items: int, n_tokens: int, h: int = 15) -> TowerParameters:
    generator = torch.Generator().manual_seed(1)
    draw = [0.1 * torch.randn(n_items, h, generator=generator) for _ in range(2)]
    return TowerParameters(*draw, torch.zeros(n_items, 1), torch.zeros(h), torch.zeros(n_tokens, h), recency=0.3)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=20), st.booleans(), st.integers(0, 2**31))
def test_every_user_has_an_input_and_a_target(counts: list[int], has_time: bool, seed: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    codes = np.concatenate([np.arange(count) for count in counts]).astype(np.int64)
    mine = Positives(30, offsets, codes, -codes)
    trainer = _Trainer(random_towers(30, 0), mine, NO_TOKENS, has_time, load_config(None, [f"training.seed={seed}"]))
    is_input = trainer._split(mine)
    assert (mine.where(is_input).counts > 0).all() and (mine.where(~is_input).counts > 0).all()


def test_a_target_is_never_in_the_history_it_is_predicted_from(data: TrainingData, small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[tuple[set[tuple[int, int]], set[tuple[int, int]]]] = []
    shown: list[Positives] = []
    pool, full_loss = TowerParameters.encode_users, _Trainer._full_loss
    as_set = lambda part: set(zip(part.rows.tolist(), part.codes.tolist(), strict=True))  # noqa: E731

    def users(self: TowerParameters, inputs: Positives, *rest: Any) -> torch.Tensor:
        shown.append(inputs)
        return pool(self, inputs, *rest)

    def loss(self: _Trainer, vectors: torch.Tensor, targets: Positives) -> torch.Tensor:
        pairs.append((as_set(shown[-1]), as_set(targets)))
        return full_loss(self, vectors, targets)

    monkeypatch.setattr(TowerParameters, "encode_users", users)
    monkeypatch.setattr(_Trainer, "_full_loss", loss)
    _Trainer(random_towers(80, 0), data.positives, NO_TOKENS, True, small).train_epoch(LATER)
    assert pairs and all(not inputs & targets for inputs, targets in pairs)
    assert sum(len(inputs) + len(targets) for inputs, targets in pairs) == len(data.positives.codes)


def test_a_split_by_time_predicts_the_newest_from_what_came_before(
    data: TrainingData, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower_training, "_TIME_SPLIT_SHARE", 1.0)
    mine = data.positives
    is_input = _Trainer(random_towers(80, 0), mine, NO_TOKENS, True, small)._split(mine)
    newest_input = np.full(mine.n_users, 10**9)
    np.minimum.at(newest_input, mine.rows[is_input], mine.positions[is_input])
    assert (mine.positions[~is_input] < newest_input[mine.rows[~is_input]]).all()


def test_the_best_epoch_is_what_is_returned_and_it_is_no_worse_than_the_start(
    data: TrainingData, parts: tuple[Positives, Positives], small: Config
) -> None:
    train, held = parts
    fitted = fit_towers(train, held, tokens(data), True, small, LATER, QUIET)
    reached = make_validator(train, held, small.training.seed).ndcg(fitted.parameters, tokens(data))
    assert reached == pytest.approx(fitted.curve[fitted.epochs], abs=1e-9)
    assert fitted.curve[fitted.epochs] >= fitted.curve[0]


def test_training_from_random_weights_passes_popularity(
    data: TrainingData, parts: tuple[Positives, Positives], small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert learned(data, parts, small, monkeypatch) > 1.2 * measure_popularity(*parts)["popularity_ndcg_at_20"]


def test_the_sampled_softmax_learns_too(
    data: TrainingData, parts: tuple[Positives, Positives], small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower_training, "_FULL_SOFTMAX_ITEMS", 0)
    monkeypatch.setattr(tower_training, "_EXTRA_NEGATIVES", 20)
    assert learned(data, parts, small, monkeypatch) > 1.2 * measure_popularity(*parts)["popularity_ndcg_at_20"]


def learned(data: TrainingData, parts: tuple[Positives, Positives], small: Config, monkeypatch: pytest.MonkeyPatch) -> float:
    """NDCG@20 on the held-out part after 25 epochs from random weights."""
    n_tokens = len(tokens(data).names)
    begun = Hyperparameters(50.0, 0.3, 1.0, 15), random_towers(data.positives.n_items, n_tokens)
    monkeypatch.setattr(tower_training, "search_hyperparameters", lambda *_: begun)
    settings = small.training.model_copy(update={"max_epochs": 25, "learning_rate": 0.02, "batch_size": 64})
    return max(fit_towers(*parts, tokens(data), True, small.model_copy(update={"training": settings}), LATER, QUIET).curve)


def test_the_sampled_loss_is_the_full_loss_where_every_item_is_drawn(
    data: TrainingData, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = random_towers(80, 0)
    monkeypatch.setattr(tower_training, "_EXTRA_NEGATIVES", 5_000)
    trainer = _Trainer(params, data.positives, NO_TOKENS, True, small)
    mine = data.positives.select_users(np.arange(50))
    vectors = params.encode_users(mine, NO_TOKENS, np.arange(50))
    assert trainer._sampled_loss(vectors, mine).item() == pytest.approx(trainer._full_loss(vectors, mine).item(), rel=1e-5)


def test_the_correction_undoes_that_popular_items_are_drawn_more_often(make_positives: Any, small: Config) -> None:
    """All logits equal: the sampled loss with logQ estimates log n; without, popular targets would look too likely."""
    n, rng = 2_000, np.random.default_rng(0)
    histories = [np.unique((n * rng.random(40) ** 3).astype(int)).tolist() for _ in range(600)]
    data = make_positives(histories, n)
    params = replace(random_towers(n, 0), history=torch.zeros(n, 15), embedding=torch.zeros(n, 15))
    trainer = _Trainer(params, data, NO_TOKENS, False, small)
    losses = []
    for at in range(0, 600, 20):
        mine = data.select_users(np.arange(at, at + 20))
        pool_of = trainer._sampled_loss(torch.zeros(20, 15), mine)
        log_q = np.log1p(-((1 - trainer._frequency[mine.codes]) ** len(mine.codes)) * (1 - 1 / n) ** 4096)
        losses.append(float(pool_of.detach()) - log_q.mean())
    # -(0 - log_q) + log sum exp(-log_q) with an unbiased sum is log n + mean log_q
    assert np.mean(losses) == pytest.approx(np.log(n), abs=0.02)


def test_at_its_deadline_training_stops_with_the_closed_form_start(
    data: TrainingData, parts: tuple[Positives, Positives], small: Config
) -> None:
    fitted = fit_towers(*parts, tokens(data), True, small, time.monotonic() - 1, QUIET)
    assert fitted.epochs == 0 and len(fitted.curve) == 1


def test_a_recent_change_of_taste_is_answered_by_recency(make_positives: Any, small: Config) -> None:
    """Users move on from one half of the catalogue to the other: only the newest events predict the next."""
    rng = np.random.default_rng(1)
    histories = []
    for user in range(300):
        new, old = (0, 20) if user % 2 else (20, 0)
        histories.append([*(new + rng.permutation(20)[:5]).tolist(), *(old + rng.permutation(20)[:15]).tolist()])
    train, held, _ = split_positives(make_positives(histories, 40), 0.1)
    plan, _ = search_hyperparameters(train, make_validator(train, held, 1), NO_TOKENS, True, small, LATER)
    assert plan.recency > 0
    assert search_hyperparameters(train, make_validator(train, held, 1), NO_TOKENS, False, small, LATER)[0].recency == 0


def test_the_narrowest_width_that_is_nearly_the_best_is_chosen(make_positives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 tastes do not fit into 8 dimensions; 2 do."""
    monkeypatch.setattr(tower_training, "EMBEDDING_DIMS", (8, 64))
    chosen = {}
    for n_tastes in (2, 48):
        rng = np.random.default_rng(n_tastes)
        per_taste = 240 // n_tastes
        histories = [(user % n_tastes * per_taste + rng.permutation(per_taste)[:4]).tolist() for user in range(960)]
        train, held, _ = split_positives(make_positives(histories, 240), 0.1)
        plan, params = search_hyperparameters(train, make_validator(train, held, 1), NO_TOKENS, False, load_config(None), LATER)
        assert params.embedding.shape == (240, plan.h)
        chosen[n_tastes] = plan.h
    assert chosen == {2: 7, 48: 63}


def test_turning_towers_onto_others_changes_no_score(data: TrainingData, small: Config) -> None:
    ours = initialize_parameters(Hyperparameters(50.0, 0.3, 2.0, 15), data.positives, 0, seed=1)
    other = random_towers(80, 0)
    turned = ours.rotate_onto(other)
    chosen = np.arange(data.positives.n_users)
    before, after = (each.score_items(each.encode_users(data.positives, NO_TOKENS, chosen)) for each in (ours, turned))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    distance = [float(torch.linalg.norm(each.embedding - other.embedding)) for each in (ours, turned)]
    assert distance[1] < distance[0]


def test_the_training_on_all_data_lies_near_the_towers_that_the_ranker_saw(
    data: TrainingData, parts: tuple[Positives, Positives], small: Config
) -> None:
    fitted = fit_towers(*parts, tokens(data), True, small, LATER, QUIET)
    again = refit_towers(data.positives, fitted, tokens(data), True, small, LATER)
    a, b = fitted.parameters.embedding.flatten(), again.embedding.detach().flatten()
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) > 0.7


def test_users_with_one_interaction_each_leave_the_start_as_it_is(make_positives: Any, small: Config) -> None:
    train, held, _ = split_positives(make_positives([[user % 5] for user in range(20)], 5), 0.1)
    fitted = fit_towers(train, held, NO_TOKENS, True, small, LATER, QUIET)
    assert np.isfinite(fitted.parameters.embedding.numpy()).all() and fitted.epochs == 0


def test_a_step_of_a_large_catalogue_has_adams_gradients_and_moves_the_rows_that_it_touched_alone(
    data: TrainingData, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps agree but for SparseAdam's epsilon, which counts for more in the first steps (of gradients below 1e-5)."""
    monkeypatch.setattr(tower_training, "_FULL_SOFTMAX_ITEMS", 0)
    monkeypatch.setattr(tower_training, "_EXTRA_NEGATIVES", 5)
    start, stepped = random_towers(80, len(tokens(data).names)), []
    for limit in (0, 10**9):
        monkeypatch.setattr(tower_parameters, "SPARSE_GRADIENT_ITEMS", limit)
        params = start.copy()
        _Trainer(params, data.positives, tokens(data), True, small)._train_batch(np.arange(4))
        assert params.history.grad is not None and params.history.grad.is_sparse == (limit == 0)
        stepped.append(params)
    for name, value in stepped[0].tensors().items():
        dense = stepped[1].tensors()[name]
        assert value.grad is not None and dense.grad is not None
        torch.testing.assert_close(value.grad.to_dense(), dense.grad)
        is_large = dense.grad.abs() > 1e-5
        torch.testing.assert_close(value[is_large], dense[is_large], atol=5e-4, rtol=0)  # a step is 5e-3
        if name in ("history", "embedding", "item_bias"):
            moved = (value != start.tensors()[name]).any(dim=1)
            assert torch.equal(moved, (dense.grad != 0).any(dim=1)) and 0 < int(moved.sum()) < 80


def test_a_large_catalogue_is_evaluated_on_fewer_users() -> None:
    assert [bound_users(5_000, n, 10**9) for n in (80, 200_000, 10**6, 10**10)] == [5_000, 5_000, 1_000, 1]
