"""Train a bundle from Arrow tables: towers, ranker, then the towers again on all data. Evaluated on what users did later."""

import datetime as dt
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recsys_batch import __version__
from recsys_batch.config import Config
from recsys_batch.dataset.user_sample import TrainingSample
from recsys_batch.evaluation.bootstrap import bootstrap_gains
from recsys_batch.evaluation.metrics import ndcg_at_k
from recsys_batch.model.challenger_metrics import NO_METRICS, measure_bundle_ndcg, measure_popularity, select_events_after_training
from recsys_batch.model.content_tokens import ContentTokens, encode_tokens
from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.model.ranker_training import LABEL_SHARE, MAX_EVALUATION_USERS, RankerStage, fit_ranker, rerank_hits
from recsys_batch.model.ranking_samples import RankingData, retrieve_lists
from recsys_batch.model.tower_parameters import TowerParameters
from recsys_batch.model.tower_training import FittedTowers, fit_towers, refit_towers
from recsys_batch.model.towers import ANY_ITEM_TOKEN
from recsys_batch.model.training_data import Progress, TrainingData, bound_users, prepare_training_data, sample_evaluable_users
from recsys_batch.model.validation_split import split_positives
from recsys_batch.registry.bundle import Bundle, write_bundle

_TOWER_DEADLINE, _INNER_DEADLINE, _RANKER_DEADLINE = 0.4, 0.6, 0.8
"""Shares of the time budget after which towers, inner towers and ranker must have ended; the rest is for the refit on all data."""

_SPLITS = {
    "time": "validation is on what everybody did after one time",
    "user": "validation is on the newest sessions of each user, as too little after one time is of users with a history",
    "random": "validation is on a random part of each user's positives, as events have no time or users one session",
}
"""Kind of a validation split -> what training says about it."""

_MIN_TOKEN_ROWS = 5
_CONTENT_RIDGE = 10.0


def train_bundle(
    interactions: pa.Table,
    items: pa.Table,
    users: pa.Table | None,
    config: Config,
    directory: Path,
    progress: Progress,
    champion: Bundle | None = None,
    sample: TrainingSample | None = None,
) -> Bundle:
    """Train towers and ranker and write them as a bundle of kind "two_tower".

    Args:
        interactions, items, users: tables as in ``schemas``; users None where there is no table.
        progress: called with a stage and its metrics after each epoch.
        champion: the current champion, measured on the same held-out events for ``manifest["gate"]``.
        sample: whose users the tables hold, for ``manifest["sample"]``; None where they hold all.

    Raises InputMissing where there is no positive interaction.
    """
    # OMP_NUM_THREADS wins where it is set: more threads than cores cost more than they bring.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or min(os.cpu_count() or 1, 8))
    torch.manual_seed(config.training.seed)
    started, budget = time.monotonic(), config.training.max_seconds
    data = prepare_training_data(interactions, items, users, config)
    validation = split_positives(data.positives, config.training.validation_fraction, config.data.session_gap, config.training.seed)
    train, held_out = validation.train, validation.held_out
    progress(_SPLITS[validation.kind], {"users": validation.n_users})
    tokens = encode_tokens(data.user_tokens, _MIN_TOKEN_ROWS)
    fitted = fit_towers(train, held_out, tokens, data.has_time, config, started + budget * _TOWER_DEADLINE, progress)
    n_evaluated = bound_users(MAX_EVALUATION_USERS, train.n_items)
    evaluated = held_out.where(np.isin(held_out.rows, sample_evaluable_users(train, held_out, n_evaluated, config.training.seed)))
    outer = RankerStage(fitted.parameters, train, evaluated)
    labels = split_positives(train, LABEL_SHARE, config.data.session_gap, config.training.seed)
    older_towers = refit_towers(labels.train, fitted, tokens, data.has_time, config, started + budget * _INNER_DEADLINE)
    inner = RankerStage(older_towers, labels.train, labels.held_out)
    ranker, ranking, ranker_metrics = fit_ranker(inner, outer, tokens, config.training.seed, started + budget * _RANKER_DEADLINE, progress)
    metrics = {**NO_METRICS, **ranker_metrics, **measure_popularity(train, evaluated), "towers_ndcg_at_20": fitted.curve[fitted.epochs]}
    gate = {"challenger": metrics["ndcg_at_10"], "popularity": metrics["popularity_ndcg_at_10"]}
    if champion is not None:
        gate |= _compare_with_champion(champion, data, items, users, outer, tokens, ranker, ranking, config.training.promotion_confidence)
    towers = fitted.parameters
    if config.training.refit:
        towers = refit_towers(data.positives, fitted, tokens, data.has_time, config, started + budget)
        lists = RankerStage(towers, data.positives, data.positives).sample_lists(tokens, config.training.seed, n_evaluated)
        ranking = RankingData.from_samples(towers, data.positives, lists)
    tensors, vocab = _bundle_weights(data, towers, ranking, tokens, ranker)
    progress("done", {"seconds": time.monotonic() - started})
    split = {"kind": validation.kind, "users": validation.n_users}
    manifest = {**_bundle_manifest(data, fitted, ranker, ranking, config), "metrics": metrics, "gate": gate, "validation": split}
    if sample is not None:
        manifest["sample"] = sample.to_dict()
    return write_bundle(directory, manifest, tensors=tensors, vocab=vocab, ranker_onnx=export_ranker_onnx(ranker.to_arrays()))


def _compare_with_champion(
    champion: Bundle,
    data: TrainingData,
    items: pa.Table,
    users: pa.Table | None,
    outer: RankerStage,
    tokens: ContentTokens,
    ranker: RankerParameters,
    ranking: RankingData,
    confidence: float,
) -> dict[str, float]:
    """Measure NDCG@10 of champion, challenger and popularity on events new to the champion, and the interval of the gain over the champion.

    The champion's stored metric alone, where new events are too few.
    """
    stored = {"champion": champion.manifest["metrics"].get("ndcg_at_10", 0.0)}
    new_events = select_events_after_training(champion, data, outer.labels)
    if new_events is None:
        return stored
    chosen = sample_evaluable_users(outer.inputs, new_events, bound_users(MAX_EVALUATION_USERS, outer.inputs.n_items), 0)
    lists = retrieve_lists(outer.towers, tokens, outer.inputs, new_events, chosen)
    if lists is None:
        return stored
    then = measure_bundle_ndcg(champion, data, items, users, outer.inputs, new_events, chosen)
    now = ndcg_at_k(rerank_hits(ranker, ranking, lists), lists.n_relevant, 10)
    popularity = measure_popularity(outer.inputs, new_events)["popularity_ndcg_at_10"]
    gate = {"champion": float(then.mean()), "challenger": float(now.mean()), "popularity": popularity}
    if confidence > 0:
        for gain in bootstrap_gains({"ndcg": now}, {"ndcg": then}, confidence).values():
            gate |= {"gain_low": gain.low, "gain_high": gain.high, "confidence": confidence}
    return gate


def _bundle_manifest(
    data: TrainingData, fitted: FittedTowers, ranker: RankerParameters, ranking: RankingData, config: Config
) -> dict[str, Any]:
    newest = int(data.positives.event_us.max()) if data.has_time else None
    return {
        "kind": "two_tower",
        "code_version": __version__,
        "embedding_dim": fitted.hyperparameters.h + 1,
        "model": {
            "history_length": config.model.history_length,
            "recency": fitted.hyperparameters.recency,
            "ridge": fitted.hyperparameters.ridge,
            "epochs": fitted.epochs,
            "ranker_gate": ranker.gate,
            "seed": config.training.seed,
        },
        "features": ranking.spec.to_dict(),
        "curves": {"towers_ndcg_at_20": fitted.curve},
        "trained_until": dt.datetime.fromtimestamp(newest / 1e6, tz=dt.UTC).isoformat() if newest is not None else None,
        "n_interactions": len(data.positives.codes),
        "n_users": data.positives.n_users,
        "n_items": data.positives.n_items,
    }


def _bundle_weights(
    data: TrainingData, towers: TowerParameters, ranking: RankingData, tokens: ContentTokens, ranker: RankerParameters
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    history = towers.history.detach().numpy()
    item_tokens = encode_tokens(data.item_tokens.append_token(ANY_ITEM_TOKEN), 2)
    tensors = {
        "item_history": history,
        "item_embedding": ranking.embeddings,
        "item_content": fit_content_projection(item_tokens, np.concatenate([history, ranking.embeddings], axis=1)),
        "user_bias": towers.user_bias.detach().numpy(),
        "user_tokens": towers.user_tokens.detach().numpy(),
        "log_popularity": ranking.log_popularity,
        **ranker.to_arrays(),
    }
    vocab = {"item_id": data.item_ids.to_pylist(), "item_token": item_tokens.names.to_pylist(), "user_token": tokens.names.to_pylist()}
    return tensors, vocab


def fit_content_projection(tokens: ContentTokens, vectors: np.ndarray) -> np.ndarray:
    """Fit token vectors float32 [t, w] by ridge regression, so that their sums approximate the items' learned vectors [n, w].

    An item without training events is encoded as the sum of its tokens' vectors.
    """
    from scipy import sparse
    from scipy.sparse.linalg import splu

    n, t = len(tokens), len(tokens.names)
    if t == 0:
        return np.zeros((0, vectors.shape[1]), dtype=np.float32)
    bags = sparse.csr_matrix((np.ones(len(tokens.codes)), tokens.codes, tokens.offsets), shape=(n, t))
    normal = (bags.T @ bags + _CONTENT_RIDGE * sparse.identity(t)).tocsc()
    return np.asarray(splu(normal).solve(bags.T @ vectors.astype(np.float64)), dtype=np.float32)
