"""The towers at work: what an embedding depends on, and what it does not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from recsys_batch.errors import BundleError
from recsys_batch.model.tower_parameters import TowerParameters
from recsys_batch.model.towers import ANY_ITEM_TOKEN, Towers, pool_history
from recsys_batch.model.training_data import Positives
from recsys_batch.registry.bundle import Bundle, write_bundle

H, RECENCY = 3, 0.5
RNG = np.random.default_rng(8)
TENSORS = {
    "item_history": RNG.normal(size=(4, H)).astype(np.float32),
    "item_embedding": RNG.normal(size=(4, H + 1)).astype(np.float32),
    "item_content": RNG.normal(size=(3, 2 * H + 1)).astype(np.float32),
    "user_bias": RNG.normal(size=H).astype(np.float32),
    "user_tokens": RNG.normal(size=(2, H)).astype(np.float32),
    "log_popularity": np.array([3, 2, 1, 1], dtype=np.float32),
}
VOCAB = {
    "item_id": [10, 20, 30, 40],
    "item_token": [ANY_ITEM_TOKEN, "categories=Drama", "year=1995"],
    "user_token": ["gender=F", "segment=young"],
}
HISTORY = TENSORS["item_history"]


@pytest.fixture
def towers() -> Towers:
    return Towers(TENSORS, VOCAB, RECENCY, history_length=50)


def encode(towers: Towers, histories: list[list[int]], times: bool = True, start: int = 10**15, **profile: Any) -> np.ndarray:
    counts = [len(history) for history in histories]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    codes = np.array([code for history in histories for code in history], dtype=np.int64)
    stamps = start - np.arange(len(codes), dtype=np.int64) * 10**9 if times else None
    nothing = [None] * len(histories)
    segments, attributes = profile.get("segments", nothing), profile.get("attributes", nothing)
    return towers.encode_users(codes, offsets, stamps, np.ones(len(codes), np.float32), segments, attributes, HISTORY)


def test_a_user_is_the_pooled_history_with_newer_events_counting_more(towers: Towers) -> None:
    weights = np.array([1.0, 2.0, 3.0]) ** -RECENCY
    expected = (weights @ HISTORY[[2, 0, 1]]) / np.sqrt((weights**2).sum()) + TENSORS["user_bias"]
    np.testing.assert_allclose(encode(towers, [[2, 0, 1]])[0], [*expected, 1.0], rtol=1e-5)


def test_where_the_order_is_unknown_every_event_counts_the_same(towers: Towers) -> None:
    np.testing.assert_allclose(encode(towers, [[2, 0, 1]], times=False), encode(towers, [[1, 2, 0]], times=False), rtol=1e-5)
    assert np.abs(encode(towers, [[2, 0, 1]]) - encode(towers, [[1, 2, 0]])).max() > 0.01


def test_a_user_is_the_same_alone_as_in_any_batch_and_at_any_time(towers: Towers) -> None:
    histories = [[2, 0, 1], [], [3], [1, 3, 2, 0]]
    profile = {"segments": ["young", None, "old", "young"], "attributes": [None, {"gender": "F"}, {}, {"gender": "F"}]}
    together = encode(towers, histories, **profile)
    a_year_later = encode(towers, histories, start=10**15 + 31_536_000_000_000, **profile)
    np.testing.assert_array_equal(together, a_year_later)
    for row, history in enumerate(histories):
        alone = encode(towers, [history], **{name: values[row : row + 1] for name, values in profile.items()})
        np.testing.assert_array_equal(alone[0], together[row])


def test_pooling_is_what_training_does_within_rounding_and_the_same_bits_in_any_batch() -> None:
    rng = np.random.default_rng(4)
    counts = np.concatenate([[0, 5000, 1], rng.integers(0, 40, 3000), [0]])
    offsets, history = np.concatenate([[0], np.cumsum(counts)]), rng.normal(size=(500, 32)).astype(np.float32)
    codes = rng.integers(0, 500, offsets[-1])
    pooled = pool_history(history, codes, offsets, 0.37)
    zeros = {name: torch.zeros(0) for name in ("embedding", "item_bias", "user_bias", "user_tokens")}
    trained = TowerParameters(history=torch.from_numpy(history), recency=0.37, **zeros)
    events = Positives(500, offsets, codes, np.zeros(len(codes), np.int64))
    np.testing.assert_allclose(pooled, trained.pool(events).numpy(), rtol=1e-5, atol=2e-6)
    for user in (0, 1, 2, 1500, len(counts) - 1):
        own = slice(offsets[user], offsets[user + 1])
        np.testing.assert_array_equal(pool_history(history, codes[own], np.array([0, counts[user]]), 0.37)[0], pooled[user])
    assert pool_history(history, codes[:0], np.zeros(1, np.int64), 0.37).shape == (0, 32)


def test_a_user_without_events_is_what_is_known_of_everybody_and_of_the_profile(towers: Towers) -> None:
    got = encode(towers, [[], []], segments=["young", None])
    np.testing.assert_allclose(got[0], [*(TENSORS["user_bias"] + TENSORS["user_tokens"][1]), 1.0], rtol=1e-6)
    np.testing.assert_allclose(got[1], [*TENSORS["user_bias"], 1.0], rtol=1e-6)


def test_profile_tokens_that_training_never_saw_are_ignored(towers: Towers) -> None:
    known = encode(towers, [[0], [0]], segments=["young", None], attributes=[None, {"gender": "F"}])
    unknown = encode(towers, [[0], [0]], segments=["young", "robot"], attributes=[{"shoe": "42"}, {"gender": "F"}])
    np.testing.assert_array_equal(known, unknown)
    assert np.abs(known[0] - known[1]).max() > 0.01


def test_a_read_only_memory_map_serves_as_the_history(towers: Towers, tmp_path: Any) -> None:
    np.save(tmp_path / "history.npy", HISTORY)
    mapped = np.load(tmp_path / "history.npy", mmap_mode="r")
    got = towers.encode_users(np.array([1]), np.array([0, 1]), None, np.ones(1, np.float32), [None], [None], mapped)
    np.testing.assert_array_equal(got, encode(towers, [[1]], times=False))


def test_items_come_in_the_order_asked_for_and_new_ones_get_what_their_content_says(towers: Towers, make_items: Any) -> None:
    got = towers.encode_items(make_items([99, 30, 77], [["Drama", "Unheard"], ["Drama"], []]))
    np.testing.assert_array_equal(got.embeddings[1], TENSORS["item_embedding"][2])
    np.testing.assert_array_equal(got.history[1], TENSORS["item_history"][2])
    for row, tokens in ((0, [0, 1]), (2, [0])):
        expected = TENSORS["item_content"][tokens].sum(axis=0)
        np.testing.assert_allclose(np.concatenate([got.history[row], got.embeddings[row]]), expected, rtol=1e-6)
    assert got.log_popularity.tolist() == [0, 1, 0]


def test_string_ids_work_as_numbers_do(make_items: Any) -> None:
    towers = Towers(TENSORS, {**VOCAB, "item_id": ["a", "b", "c", "d"]}, RECENCY, 50)
    np.testing.assert_array_equal(towers.encode_items(make_items(["d", "a"], [[], []])).embeddings, TENSORS["item_embedding"][[3, 0]])


@pytest.mark.parametrize(("trained", "given"), [([1, 2, 3, 4], ["1", "2"]), (["a", "b", "c", "d"], [1, 2])])
def test_ids_of_another_type_than_the_trainings_are_refused(make_items: Any, trained: list[Any], given: list[Any]) -> None:
    towers = Towers(TENSORS, {**VOCAB, "item_id": trained}, RECENCY, 50)
    with pytest.raises(BundleError, match="trained on other item ids"):
        towers.encode_items(make_items(given, [[], []]))


def test_a_bundle_gives_the_towers_that_were_saved(towers: Towers, tmp_path: Any, make_items: Any) -> None:
    manifest = {"kind": "two_tower", "embedding_dim": H + 1, "model": {"recency": RECENCY, "history_length": 7}}
    loaded = Towers.from_bundle(write_bundle(tmp_path, manifest, tensors=TENSORS, vocab=VOCAB))
    np.testing.assert_array_equal(encode(loaded, [[2, 0, 1]]), encode(towers, [[2, 0, 1]]))
    assert loaded.history_length == 7


def test_a_bundle_without_towers_says_what_it_lacks(tmp_path: Any) -> None:
    with pytest.raises(BundleError, match="lacks item_history"):
        Towers.from_bundle(write_bundle(tmp_path, {"kind": "embeddings", "embedding_dim": 4}))


def test_after_training_an_unseen_item_is_liked_by_those_who_like_its_kind(bundle: Bundle, make_items: Any) -> None:
    towers = Towers.from_bundle(bundle)
    known = towers.encode_items(make_items(list(range(80)), [[]] * 80))
    new = towers.encode_items(make_items([1000, 1001], [["group 1"], ["group 2"]]))
    fans = [[item for item in range(40) if item % 4 == group] for group in (1, 2)]
    offsets = np.array([0, 10, 20])
    users = towers.encode_users(np.concatenate(fans), offsets, None, np.ones(20, np.float32), [None] * 2, [None] * 2, known.history)
    scores = users @ new.embeddings.T
    assert scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0]
    assert pa.array(bundle.vocab["item_id"]).type == pa.int64()


def test_items_that_a_sample_never_saw_lie_by_their_content_and_are_retrieved_for_those_who_like_it(
    planted: Any, small: Any, train_on: Any, make_items: Any
) -> None:
    """Training sees only events of the first 60 items, as a sample of users may; items 60 to 79 are in the catalogue alone."""
    seen = planted.interactions.filter(pc.less(planted.interactions["item_id"], 60))
    towers = Towers.from_bundle(train_on(replace(planted, interactions=seen), small))
    items = towers.encode_items(planted.items)
    kind = np.arange(80) % 4
    vectors = np.concatenate([items.embeddings, items.history], axis=1)[60:]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine, alike = vectors @ vectors.T, kind[60:, None] == kind[None, 60:]
    assert cosine[alike].min() > 0.999
    assert cosine[~alike].max() < 0.9
    histories = [np.flatnonzero((kind == group) & (np.arange(80) < 40)) for group in range(4)]
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    weights, nothing = np.ones(offsets[-1], np.float32), [None] * 4
    users = towers.encode_users(np.concatenate(histories), offsets, None, weights, nothing, nothing, items.history)
    best = np.argsort(-(users @ items.embeddings.T), axis=1, kind="stable")[:, :20]  # a quarter of the catalogue: one kind
    for group in range(4):
        unseen = np.flatnonzero((kind == group) & (np.arange(80) >= 60))
        assert set(unseen) <= set(best[group].tolist()), f"group {group}"
