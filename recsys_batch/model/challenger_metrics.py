"""Ranking metrics on held-out positives, and the baselines of a new model: popularity and the current champion. Used by training."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.evaluation.metrics import hit_matrix, ndcg_at_k, recall_at_k
from recsys_batch.model.ranker import Ranker
from recsys_batch.model.towers import Towers
from recsys_batch.model.training_data import Positives, TrainingData, split_user_blocks
from recsys_batch.ranking.features import FeatureSpec, compute_pair_features
from recsys_batch.ranking.top_k import select_top_k_per_row
from recsys_batch.registry.bundle import Bundle

NO_METRICS = {f"{name}_at_{k}": 0.0 for name in ("ndcg", "recall") for k in (10, 20)}
"""Metrics where nothing is held out: no evidence is no quality, and JSON has no NaN."""

N_RERANKED_CANDIDATES = 200
MIN_NEW_EVENTS = 1_000


def average_metrics(hits: np.ndarray, n_relevant: np.ndarray) -> dict[str, float]:
    """Average NDCG and recall at 10 and 20 over users; hits bool [n_users, K], n_relevant int64 [n_users], at least 1 each."""
    metrics = {"ndcg": ndcg_at_k, "recall": recall_at_k}
    return {f"{name}_at_{k}": float(metric(hits, n_relevant, k).mean()) for name, metric in metrics.items() for k in (10, 20)}


def measure_popularity(train: Positives, held_out: Positives) -> dict[str, float]:
    """Measure NDCG and recall of the most popular unseen items; names have the prefix ``popularity_``."""
    counts = train.item_counts.astype(np.float32)
    evaluable = np.flatnonzero(held_out.counts > 0)
    top_lists = []
    for part in split_user_blocks(evaluable, train.n_items):
        histories = train.select_users(part)
        scores = np.repeat(counts[None], histories.n_users, axis=0)
        scores[histories.rows, histories.codes] = -np.inf
        top_lists.append(select_top_k_per_row(scores, 20)[1])
    return {f"popularity_{name}": value for name, value in _measure_lists(top_lists, held_out.select_users(evaluable)).items()}


def select_events_after_training(champion: Bundle, data: TrainingData, held_out: Positives) -> Positives | None:
    """Select the held-out events that the champion was not trained on, so that it and the challenger compare fairly.

    Returns None where there are fewer than MIN_NEW_EVENTS; the metric stored when the champion was trained is used then.
    """
    if not data.has_time or not champion.manifest.get("trained_until"):
        return None
    until = np.datetime64(champion.manifest["trained_until"].replace("+00:00", ""), "us").astype(np.int64)
    newer = held_out.where(held_out.event_us > until)
    return newer if len(newer.codes) >= MIN_NEW_EVENTS else None


def measure_bundle_ndcg(
    bundle: Bundle,
    data: TrainingData,
    items: pa.Table,
    users: pa.Table | None,
    inputs: Positives,
    held_out: Positives,
    chosen: np.ndarray,
) -> np.ndarray:
    """Measure NDCG@10 of a bundle's towers and ranker on ``held_out``, given the histories ``inputs``: float64, of each user ``chosen``."""
    towers, ranker = Towers.from_bundle(bundle), Ranker.from_bundle(bundle)
    spec = FeatureSpec.from_dict(bundle.manifest["features"])
    item_rows = pc.index_in(data.item_ids, value_set=items["item_id"].combine_chunks())
    vectors = towers.encode_items(items.take(item_rows).combine_chunks())
    profiles = _user_profiles(data.user_ids, users)
    top_lists = []
    for part in split_user_blocks(chosen, inputs.n_items):
        histories = inputs.select_users(part)
        newest = histories.where(histories.positions < towers.history_length)
        segments, attributes = zip(*(profiles[user] for user in part), strict=True)
        stamps = newest.event_us if data.has_time else None
        weights = np.ones(len(newest.codes), dtype=np.float32)
        user_vectors = towers.encode_users(newest.codes, newest.offsets, stamps, weights, list(segments), list(attributes), vectors.history)
        scores = user_vectors @ vectors.embeddings.T
        scores[histories.rows, histories.codes] = -np.inf
        best, codes = select_top_k_per_row(scores, min(N_RERANKED_CANDIDATES, scores.shape[1]))
        is_candidate = np.isfinite(best)
        retrieval, popularity = np.where(is_candidate, best, 0.0).astype(np.float32), vectors.log_popularity[codes]
        features = compute_pair_features(spec, retrieval_score=retrieval, log_popularity=popularity, n_events=histories.counts)
        ranked = np.where(is_candidate, ranker.score(user_vectors, vectors.embeddings[codes], features), -np.inf).astype(np.float32)
        top_lists.append(np.take_along_axis(codes, select_top_k_per_row(ranked, 10)[1], axis=1))
    later = held_out.select_users(chosen)
    return ndcg_at_k(*hit_matrix(np.concatenate(top_lists), later.offsets, later.codes, later.n_items), 10)


def _user_profiles(user_ids: pa.Array, users: pa.Table | None) -> list[tuple[str | None, dict[str, str] | None]]:
    """Look up (segment, attributes) of each user; None where unknown."""
    if users is None:
        return [(None, None)] * len(user_ids)
    rows = users.select(["segment", "attributes"]).take(pc.index_in(user_ids, value_set=users["user_id"].combine_chunks()))
    return list(zip(rows["segment"].to_pylist(), rows["attributes"].to_pylist(maps_as_pydicts="strict"), strict=True))


def _measure_lists(top_lists: list[np.ndarray], held_out: Positives) -> dict[str, float]:
    if not top_lists:
        return NO_METRICS
    return average_metrics(*hit_matrix(np.concatenate(top_lists), held_out.offsets, held_out.codes, held_out.n_items))
