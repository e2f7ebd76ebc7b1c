"""What a new model is compared with on the held-out events: popularity, and the current champion."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.evaluation.metrics import hit_matrix, ndcg_at_k, recall_at_k
from recsys_batch.model.ranker import Ranker
from recsys_batch.model.towers import Towers
from recsys_batch.model.training_data import Positives, TrainingData
from recsys_batch.ranking.features import FeatureSpec, compute_pair_features
from recsys_batch.ranking.top_k import select_top_k_per_row
from recsys_batch.registry.bundle import Bundle

N_JUDGED_CANDIDATES = 200
MIN_NEW_EVENTS = 1_000
_BLOCK, _CELLS = 256, 20_000_000  # users at once: fewer where the catalogue is large, 80 MB of scores


def measure_popularity(train: Positives, held: Positives) -> dict[str, float]:
    """NDCG and recall of the most popular unseen items, with the prefix ``popularity_``."""
    counts = train.item_counts.astype(np.float32)
    able = np.flatnonzero(held.counts > 0)
    lists = []
    for part in _blocks(able, train.n_items):
        mine = train.users(part)
        scores = np.repeat(counts[None], mine.n_users, axis=0)
        scores[mine.rows, mine.codes] = -np.inf
        lists.append(select_top_k_per_row(scores, 20)[1])
    return {f"popularity_{name}": value for name, value in _quality(lists, held.users(able)).items()}


def mask_seen(champion: Bundle, data: TrainingData, held_out: Positives) -> Positives | None:
    """The held-out events on which champion and challenger can be compared fairly: those that the champion has not trained on.

    None where there are too few of them; then the champion's own measurement, taken when it was trained, stands.
    """
    if not data.has_time or not champion.manifest.get("trained_until"):
        return None
    until = np.datetime64(champion.manifest["trained_until"].replace("+00:00", ""), "us").astype(np.int64)
    newer = held_out.where(held_out.event_us > until)
    return newer if len(newer.codes) >= MIN_NEW_EVENTS else None


def measure_bundle_ndcg(
    bundle: Bundle, data: TrainingData, items: pa.Table, users: pa.Table | None, inputs: Positives, held: Positives
) -> float:
    """NDCG@10 of a bundle's two stages on ``held``, given the histories ``inputs``."""
    towers, ranker, spec = (
        Towers.from_bundle(bundle),
        Ranker.from_bundle(bundle),
        FeatureSpec.from_dict(bundle.manifest["features"]),
    )
    place = pc.index_in(data.item_ids, value_set=items["item_id"].combine_chunks())
    vectors = towers.encode_items(items.take(place).combine_chunks())
    profile = _profiles(data.user_ids, users)
    able = np.flatnonzero((held.counts > 0) & (inputs.counts > 0))
    lists = []
    for part in _blocks(able, inputs.n_items):
        mine = inputs.users(part)
        newest = mine.where(mine.places < towers.history_length)
        segments, attributes = zip(*(profile[user] for user in part), strict=True)
        stamps = newest.event_us if data.has_time else None
        weights = np.ones(len(newest.codes), dtype=np.float32)
        vectors_of_users = towers.encode_users(
            newest.codes, newest.offsets, stamps, weights, list(segments), list(attributes), vectors.history
        )
        scores = vectors_of_users @ vectors.embeddings.T
        scores[mine.rows, mine.codes] = -np.inf
        best, codes = select_top_k_per_row(scores, min(N_JUDGED_CANDIDATES, scores.shape[1]))
        there = np.isfinite(best)
        features = compute_pair_features(
            spec,
            retrieval_score=np.where(there, best, 0.0).astype(np.float32),
            log_popularity=vectors.log_popularity[codes],
            n_events=mine.counts,
        )
        ranked = np.where(there, ranker.score(vectors_of_users, vectors.embeddings[codes], features), -np.inf).astype(np.float32)
        lists.append(np.take_along_axis(codes, select_top_k_per_row(ranked, 10)[1], axis=1))
    return _quality(lists, held.users(able))["ndcg_at_10"]


def _blocks(users: np.ndarray, n_items: int) -> list[np.ndarray]:
    step = max(1, min(_BLOCK, _CELLS // n_items))
    return [users[at : at + step] for at in range(0, len(users), step)]


def _profiles(user_ids: pa.Array, users: pa.Table | None) -> list[tuple[str | None, dict[str, str] | None]]:
    """(segment, attributes) of each user."""
    if users is None:
        return [(None, None)] * len(user_ids)
    place = pc.index_in(user_ids, value_set=users["user_id"].combine_chunks()).to_pylist()
    known = list(zip(users["segment"].to_pylist(), users["attributes"].to_pylist(maps_as_pydicts="strict"), strict=True))
    return [known[row] if row is not None else (None, None) for row in place]


def _quality(lists: list[np.ndarray], held: Positives) -> dict[str, float]:
    if not lists:  # nothing is held out: no evidence is no quality, and JSON has no NaN
        return {f"{name}_at_{k}": 0.0 for name in ("ndcg", "recall") for k in (10, 20)}
    hits, n_relevant = hit_matrix(np.concatenate(lists), held.offsets, held.codes, held.n_items)
    result = {f"ndcg_at_{k}": float(ndcg_at_k(hits, n_relevant, k).mean()) for k in (10, 20)}
    return {**result, **{f"recall_at_{k}": float(recall_at_k(hits, n_relevant, k).mean()) for k in (10, 20)}}
