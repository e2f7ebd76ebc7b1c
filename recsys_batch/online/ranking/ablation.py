"""Contribution of each group of features to an item's score: the score minus that with the group made neutral (ablation)."""

import numpy as np

from recsys_batch.ranking.features import CANDIDATE_SCORE, CONTEXT_FEATURES, PAIR_FEATURES, FeatureSpec
from recsys_batch.ranking.numpy_ranker import NumpyRanker
from recsys_batch.ranking.onnx_ranker import OnnxRanker

_GROUP_OF = {"retrieval_score": "retrieval", "log_popularity": "popularity", "log_n_events": "activity", "has_session": "session"}


def feature_groups(spec: FeatureSpec) -> dict[str, list[int]]:
    """Columns of the feature array by group: retrieval, popularity, activity, time, device, session, candidate_score, attributes."""
    columns_by_group: dict[str, list[int]] = {}
    for column, name in enumerate(spec.names):
        columns_by_group.setdefault(_group(name, column), []).append(column)
    return columns_by_group


def _group(name: str, column: int) -> str:
    if name == CANDIDATE_SCORE:
        return name
    if column >= len(PAIR_FEATURES) + len(CONTEXT_FEATURES):
        return "attributes"
    prefix = name.partition("_")[0]
    return _GROUP_OF.get(name, prefix if prefix in ("device", "session") else "time")


def group_contributions(
    ranker: OnnxRanker | NumpyRanker, spec: FeatureSpec, user: np.ndarray, items: np.ndarray, features: np.ndarray
) -> dict[str, np.ndarray]:
    """float32 [k] per group; a group that is neutral in the request contributes 0.

    Args:
        user: float32 [1, d]. items: float32 [1, k, d]. features: float32 [1, k, F].
    """
    named = feature_groups(spec)
    ablated = np.repeat(features, len(named) + 1, axis=0)
    for row, columns in enumerate(named.values(), 1):
        ablated[row][:, columns] = 0.0
    n = len(ablated)
    scores = ranker.score(np.repeat(user, n, axis=0), np.repeat(items, n, axis=0), ablated)
    return {name: scores[0] - scores[row] for row, name in enumerate(named, 1)}
