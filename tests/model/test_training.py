"""From tables to a bundle: what holds for every data set that training may meet."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.model import tower_training, training
from recsys_batch.model.content_tokens import ContentTokens, encode_tokens
from recsys_batch.model.ranker import Ranker
from recsys_batch.model.towers import Towers
from recsys_batch.model.training import fit_content_projection
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.registry.bundle import Bundle, load_bundle

Train = Callable[..., Bundle]


def scores_of(bundle: Bundle, items: pa.Table, codes: list[int]) -> np.ndarray:
    """Retrieval scores of one user with that history over all items."""
    towers = Towers.from_bundle(bundle)
    vectors = towers.encode_items(items)
    offsets = np.array([0, len(codes)])
    user = towers.encode_users(
        np.array(codes, dtype=np.int64), offsets, None, np.ones(len(codes), np.float32), [None], [None], vectors.history
    )
    return np.asarray(user @ vectors.embeddings.T)[0]


def test_it_beats_popularity_where_users_have_a_taste(bundle: Bundle) -> None:
    metrics, gate = bundle.manifest["metrics"], bundle.manifest["gate"]
    assert metrics["ndcg_at_10"] > 1.2 * metrics["popularity_ndcg_at_10"]
    assert metrics["recall_at_20"] > 1.1 * metrics["popularity_recall_at_20"]
    assert gate == {"challenger": metrics["ndcg_at_10"], "popularity": metrics["popularity_ndcg_at_10"]}


def test_the_same_tables_and_seed_give_the_same_bundle_to_the_last_bit(
    planted: Any, small: Config, train_on: Train, bundle: Bundle
) -> None:
    assert train_on(planted, small).digest == bundle.digest


def test_another_seed_gives_another_bundle(planted: Any, small: Config, train_on: Train, bundle: Bundle) -> None:
    other = small.model_copy(update={"training": small.training.model_copy(update={"seed": 99})})
    assert train_on(planted, other).digest != bundle.digest


def test_the_bundle_says_what_it_is(bundle: Bundle, planted: Any, small: Config) -> None:
    manifest = bundle.manifest
    assert (manifest["kind"], manifest["embedding_dim"]) == ("two_tower", 16)
    assert manifest["model"]["history_length"] == small.model.history_length
    assert (manifest["n_users"], manifest["n_items"]) == (240, 80)
    assert manifest["n_interactions"] == planted.interactions.num_rows
    newest = max(planted.interactions["event_ts"].to_pylist())
    assert manifest["trained_until"] == newest.isoformat()
    assert manifest["model"]["epochs"] < len(manifest["curves"]["towers_ndcg_at_20"]) <= small.training.max_epochs + 1
    assert FeatureSpec.from_dict(manifest["features"]).names == FeatureSpec.default().names


def test_what_was_written_is_what_is_read(bundle: Bundle, planted: Any) -> None:
    again = load_bundle(bundle.path)
    assert again.digest == bundle.digest
    np.testing.assert_array_equal(scores_of(again, planted.items, [1, 2]), scores_of(bundle, planted.items, [1, 2]))
    assert Ranker.from_bundle(again) is not None and again.ranker_path is not None


def test_a_budget_that_is_spent_ends_training_early_with_a_whole_bundle(
    planted: Any, small: Config, train_on: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps a second at every look, so the test does not depend on the machine."""
    ticks = itertools.count()
    monkeypatch.setattr(tower_training, "_PATIENCE", 1_000)  # so that only the clock ends it
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(ticks)))
    hurried = small.model_copy(update={"training": small.training.model_copy(update={"max_seconds": 40.0, "max_epochs": 100})})
    stages: list[str] = []
    result = train_on(planted, hurried, lambda stage, numbers: stages.append(stage))
    assert stages.count("towers") < 25 and stages.count("ranker") < 25
    assert np.isfinite(scores_of(result, planted.items, [1, 2])).all()


def test_without_times_it_says_so_and_trains_as_well(planted: Any, small: Config, train_on: Train) -> None:
    said: list[str] = []
    result = train_on(planted.without_time(), small, lambda stage, _: said.append(stage))
    assert any("events have no time" in stage for stage in said)
    assert result.manifest["trained_until"] is None and result.manifest["model"]["recency"] == 0
    assert result.manifest["metrics"]["ndcg_at_10"] > 1.2 * result.manifest["metrics"]["popularity_ndcg_at_10"]


def test_string_ids_give_the_same_model_as_numbers(planted: Any, small: Config, train_on: Train, bundle: Bundle) -> None:
    def renamed(table: pa.Table) -> pa.Table:
        names = pa.array([f"item {item:03d}" for item in table["item_id"].to_pylist()])
        return table.set_column(table.schema.get_field_index("item_id"), "item_id", names)

    result = train_on(replace(planted, interactions=renamed(planted.interactions), items=renamed(planted.items)), small)
    assert result.vocab["item_id"][0] == "item 000"
    np.testing.assert_array_equal(result.tensors["item_embedding"], bundle.tensors["item_embedding"])


def test_real_ratings_without_a_users_table_train(movielens: Any, small: Config, train_on: Train) -> None:
    result = train_on(movielens, small)
    assert result.vocab["user_token"] == [] and result.tensors["user_tokens"].shape == (0, 15)
    assert np.isfinite(result.manifest["metrics"]["ndcg_at_10"])


def test_users_with_one_interaction_each_train_and_are_judged_on_nothing(
    small: Config, train_on: Train, planted: Any, make_interactions: Any
) -> None:
    users = [f"u{user}" for user in range(30)]
    table = make_interactions(users, [user % 5 for user in range(30)], list(range(30)), [1.0] * 30)
    result = train_on(replace(planted, interactions=table, users=None), small)
    assert result.manifest["gate"] == {"challenger": 0.0, "popularity": 0.0}
    assert np.isfinite(scores_of(result, planted.items, [1])).all()


def test_a_single_interaction_is_enough_for_a_bundle(small: Config, train_on: Train, planted: Any, make_interactions: Any) -> None:
    result = train_on(replace(planted, interactions=make_interactions(["a"], [3], [1], [1.0]), users=None), small)
    assert result.manifest["n_items"] == 1
    assert np.isfinite(scores_of(result, planted.items, [3])).all()


def test_an_empty_training_is_an_error(small: Config, train_on: Train, planted: Any, make_interactions: Any) -> None:
    with pytest.raises(InputMissing, match="nothing to learn"):
        train_on(replace(planted, interactions=make_interactions(["a"], [3], [1], [-1.0])), small)


def test_content_vectors_are_the_ridge_regression_of_learned_vectors_on_tokens() -> None:
    rows = [["a"], ["a", "b"], ["b"], [], ["a"]]
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    bags = np.array([[token in row for token in "ab"] for row in rows], dtype=float)
    expected = np.linalg.solve(bags.T @ bags + 10.0 * np.eye(2), bags.T @ vectors)
    np.testing.assert_allclose(fit_content_projection(encode_tokens(ContentTokens.from_lists(rows), 1), vectors), expected, atol=1e-6)
    assert fit_content_projection(encode_tokens(ContentTokens.from_lists([[], []]), 1), vectors[:2]).shape == (0, 3)
