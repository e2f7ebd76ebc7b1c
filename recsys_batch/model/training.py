"""Training from tables to bundle: towers, then ranker, then all data; judged on the newest part of every user's positives."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recsys_batch import __version__
from recsys_batch.config import Config
from recsys_batch.model.challenger_metrics import mask_seen, measure_bundle_ndcg, measure_popularity
from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.model.ranker_training import JUDGED_USERS, LABEL_SHARE, NOT_JUDGED, RankerStage, fit_ranker, measure_ranker
from recsys_batch.model.ranking_samples import RankingData
from recsys_batch.model.tower_parameters import Tokens, TowerParameters, group_tokens
from recsys_batch.model.tower_training import FittedTowers, fit_towers, refit_towers
from recsys_batch.model.towers import ALWAYS
from recsys_batch.model.training_data import Positives, TrainingData, prepare_training_data, split_training_data
from recsys_batch.registry.bundle import Bundle, write_bundle

TrainingProgress = Callable[[str, Mapping[str, float]], None]

_TOWER_SHARE, _INNER_SHARE, _RANKER_SHARE = 0.4, 0.6, 0.8
"""Points of the time budget by which towers, inner towers and ranker must have ended; the rest is the training on all data."""

_MIN_TOKEN_ROWS = 5
_CONTENT_RIDGE = 10.0


def train_bundle(
    interactions: pa.Table,
    items: pa.Table,
    users: pa.Table | None,
    config: Config,
    directory: Path,
    progress: TrainingProgress,
    champion: Bundle | None = None,
) -> Bundle:
    """Train and write a bundle of kind "two_tower".

    Args:
        interactions, items, users: tables of the contract.
        progress: called with a stage and its numbers after each epoch.
        champion: the current one, to be judged on the same held-out events: see ``manifest["gate"]``.

    Raises:
        InputMissing: no positive interaction.
    """
    # A share of the machine that somebody has set stands: threads that wait for each other cost more than they bring.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or min(os.cpu_count() or 1, 8))
    torch.manual_seed(config.training.seed)
    began, budget = time.monotonic(), config.training.max_seconds
    data = prepare_training_data(interactions, items, users, config)
    if not data.has_time:
        progress("event_ts is missing, so validation is a random part of each user's positives", {})
    held_in, held_out = split_training_data(data.positives, config.training.validation_fraction)
    tokens = group_tokens(data.user_tokens, _MIN_TOKEN_ROWS)
    fitted = fit_towers(held_in, held_out, tokens, data.has_time, config, began + budget * _TOWER_SHARE, progress)
    judged = _of_some_users(held_out, held_in, config.training.seed)
    outer = RankerStage(fitted.parameters, held_in, judged)
    older, newer = split_training_data(held_in, LABEL_SHARE)
    inner = RankerStage(refit_towers(older, fitted, tokens, data.has_time, config, began + budget * _INNER_SHARE), older, newer)
    ranker, ranking, reached = fit_ranker(inner, outer, tokens, config.training.seed, began + budget * _RANKER_SHARE, progress)
    metrics = {**NOT_JUDGED, **reached, **measure_popularity(held_in, judged), "towers_ndcg_at_20": fitted.curve[fitted.epochs]}
    gate = {"challenger": metrics["ndcg_at_10"], "popularity": metrics["popularity_ndcg_at_10"]}
    if champion is not None:
        gate |= _against(champion, data, items, users, outer, tokens, ranker, ranking)
    final, positives = fitted.parameters, held_in
    if config.training.refit:
        final, positives = refit_towers(data.positives, fitted, tokens, data.has_time, config, began + budget), data.positives
        ranking = RankingData.of(
            final, positives, RankerStage(final, positives, positives).lists(tokens, config.training.seed, JUDGED_USERS)
        )
    tensors, vocab = _weights(data, final, positives, tokens, ranker)
    progress("done", {"seconds": time.monotonic() - began})
    manifest = _manifest(data, fitted, ranker, ranking, metrics, config, gate)
    return write_bundle(directory, manifest, tensors=tensors, vocab=vocab, ranker_onnx=export_ranker_onnx(ranker.arrays()))


def _of_some_users(held: Positives, inputs: Positives, seed: int) -> Positives:
    """``held`` of at most JUDGED_USERS users with a history: the same ones for everything that is compared."""
    able = np.flatnonzero((held.counts > 0) & (inputs.counts > 0))
    chosen = np.zeros(held.n_users, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(able)[:JUDGED_USERS]] = True
    return held.where(chosen[held.rows])


def _against(
    champion: Bundle,
    data: TrainingData,
    items: pa.Table,
    users: pa.Table | None,
    outer: RankerStage,
    tokens: Tokens,
    ranker: RankerParameters,
    ranking: RankingData,
) -> dict[str, float]:
    """NDCG@10 of all three on the held-out events that the champion has not seen; its own measurement where those are too few."""
    fresh = mask_seen(champion, data, outer.labels)
    if fresh is None:
        return {"champion": champion.manifest["metrics"].get("ndcg_at_10", 0.0)}
    lists = replace(outer, labels=fresh).lists(tokens, 0, JUDGED_USERS)
    return {
        "champion": measure_bundle_ndcg(champion, data, items, users, outer.inputs, fresh),
        "challenger": measure_ranker(ranker, ranking, lists)["ndcg_at_10"] if lists is not None else 0.0,
        "popularity": measure_popularity(outer.inputs, fresh)["popularity_ndcg_at_10"],
    }


def _manifest(
    data: TrainingData,
    fitted: FittedTowers,
    ranker: RankerParameters,
    ranking: RankingData,
    metrics: Mapping[str, float],
    config: Config,
    gate: Mapping[str, float],
) -> dict[str, Any]:
    newest = int(data.positives.event_us.max()) if data.has_time else None
    return {
        "kind": "two_tower",
        "code_version": __version__,
        "embedding_dim": fitted.plan.h + 1,
        "model": {
            "history_length": config.model.history_length,
            "recency": fitted.plan.recency,
            "ridge": fitted.plan.ridge,
            "epochs": fitted.epochs,
            "ranker_gate": ranker.gate,
            "seed": config.training.seed,
        },
        "features": ranking.spec.to_dict(),
        "metrics": dict(metrics),
        "gate": dict(gate),
        "curves": {"towers_ndcg_at_20": fitted.curve},
        "trained_until": dt.datetime.fromtimestamp(newest / 1e6, tz=dt.UTC).isoformat() if newest is not None else None,
        "n_interactions": len(data.positives.codes),
        "n_users": data.positives.n_users,
        "n_items": data.positives.n_items,
    }


def _weights(
    data: TrainingData, towers: TowerParameters, positives: Positives, tokens: Tokens, ranker: RankerParameters
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    history = towers.history.detach().numpy()
    embedding = np.concatenate([towers.embedding.detach().numpy(), towers.item_bias.detach().numpy()], axis=1)
    item_tokens = group_tokens([[*row, ALWAYS] for row in data.item_tokens], 2)
    tensors = {
        "item_history": history,
        "item_embedding": embedding,
        "item_content": content_projection(item_tokens, np.concatenate([history, embedding], axis=1)),
        "user_bias": towers.user_bias.detach().numpy(),
        "user_tokens": towers.user_tokens.detach().numpy(),
        "log_popularity": np.log1p(positives.item_counts).astype(np.float32),
        **ranker.arrays(),
    }
    vocab = {"item_id": data.item_ids.to_pylist(), "item_token": list(item_tokens.names), "user_token": list(tokens.names)}
    return tensors, vocab


def content_projection(tokens: Tokens, vectors: np.ndarray) -> np.ndarray:
    """float32 [t, w]: token vectors whose sums come nearest (ridge regression) to the items' learned vectors [n, w].

    What an item gets that training never saw: the sum of its tokens' vectors.
    """
    from scipy import sparse
    from scipy.sparse.linalg import splu

    n, t = len(tokens.offsets) - 1, len(tokens.names)
    if t == 0:
        return np.zeros((0, vectors.shape[1]), dtype=np.float32)
    bags = sparse.csr_matrix((np.ones(len(tokens.codes)), tokens.codes, tokens.offsets), shape=(n, t))
    normal = (bags.T @ bags + _CONTENT_RIDGE * sparse.identity(t)).tocsc()
    return np.asarray(splu(normal).solve(bags.T @ vectors.astype(np.float64)), dtype=np.float32)
