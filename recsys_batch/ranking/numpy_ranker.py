"""The reference ranker in numpy, for the online side: what all candidates of a user share is worked out once, not once per pair. No torch.

The network is that of recsys_batch/model/ranker.py. An ONNX model of it takes an array of all features of all pairs; of these only the
scaled retrieval score, the popularity and the session's similarity differ between a user's candidates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recsys_batch.errors import BundleError
from recsys_batch.ranking.features import CANDIDATE_SCORE, PAIR_FEATURES, SESSION_COLUMN, Context, FeatureSpec, PairFeatures, encode_context

WEIGHT_SHAPES = {"user": "dh", "item": "dh", "product": "dh", "features": "fh", "bias": "h", "output": "ho"}
"""Axes of each weight: d dimensions of an embedding, h hidden units, f features, o one output."""
_PAIRS_AT_ONCE = 800
"""So that what is worked on, 50 KB per user of 200 candidates, stays in a core's cache."""
_MAX_USERS_AT_ONCE = 16
"""Each has a matrix of its own, 16 KB."""
N_EVENTS_COLUMN = PAIR_FEATURES.index("log_n_events")


class NumpyRanker:
    """Scores candidates with the reference ranker's weights, within rounding of its ONNX model.

    Args:
        weights: float32 by the names of WEIGHT_SHAPES.
        spec: the features that it was trained on.

    Raises BundleError: a weight is missing, of another shape than the spec and the others say, or not finite.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], spec: FeatureSpec) -> None:
        _check(weights, spec)
        self._spec = spec
        self._user, self._item, self._product = weights["user"], weights["item"], weights["product"]
        self._bias, self._features, self._output = weights["bias"], weights["features"], weights["output"]
        # relu(x) is (x + |x|) / 2: two passes that processors do at once take half the time of the maximum of x and 0.
        self._half_output = self._output[:, 0] / np.float32(2)

    def score(self, user_embeddings: np.ndarray, item_embeddings: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Score candidates: float32 [B, C] from float32 [B, d], [B, C, d], [B, C, F]."""
        with _quiet():
            per_user = _multiply_each(user_embeddings, self._user) + self._bias
            hidden = self._first_layer(user_embeddings, item_embeddings, features @ self._features, per_user)
            scores: np.ndarray = np.maximum(hidden, np.float32(0), out=hidden) @ self._output[:, 0]
            scores += features[..., 0]
        return scores

    def score_pairs(
        self, user_embeddings: np.ndarray, item_embeddings: np.ndarray, pair: PairFeatures, context: Context | None
    ) -> np.ndarray:
        """Score candidates without an array of all features: float32 [B, C].

        A user's scores are the same bits whoever else is in the block. Those of a candidate rest on its place and on C: BLAS multiplies
        rows in groups, which may add up in another order each.

        Args:
            user_embeddings: float32 [B, d]. item_embeddings: float32 [B, C, d].
            pair: scaled by the ranker's spec. context: None for the neutral one.
        """
        per_user = _multiply_each(user_embeddings, self._user)
        per_user += self._bias
        per_user += pair.log_n_events[:, None] * self._features[N_EVENTS_COLUMN]
        columns, rows = [pair.retrieval_score, pair.log_popularity], [0, 1]
        if context is not None:
            shared = encode_context(context, self._spec)
            if context.session_similarity is not None:
                has_session = np.isfinite(context.session_similarity[:, :1]).any(axis=1)  # all of a user's candidates have one, or none has
                shared[:, SESSION_COLUMN - len(PAIR_FEATURES)] = has_session
                similarity = context.session_similarity
                columns.append(similarity if has_session.all() else np.where(has_session[:, None], similarity, np.float32(0)))
                rows.append(SESSION_COLUMN + 1)
            per_user += _multiply_each(shared, self._features[len(PAIR_FEATURES) :])
        if pair.candidate_score is not None:
            columns.append(pair.candidate_score)
            rows.append(self._spec.names.index(CANDIDATE_SCORE))
        weights = self._features[rows]
        scores = np.empty(pair.retrieval_score.shape, dtype=np.float32)
        inputs = np.stack(columns, axis=2)
        n_users = min(max(_PAIRS_AT_ONCE // max(item_embeddings.shape[1], 1), 1), _MAX_USERS_AT_ONCE)
        for start in range(0, len(scores), n_users):
            part = slice(start, start + n_users)
            users, items, retrieval_score = user_embeddings[part], item_embeddings[part], pair.retrieval_score[part]
            with _quiet():
                hidden = self._first_layer(users, items, per_pair := inputs[part] @ weights, per_user[part])
                hidden += np.abs(hidden, out=per_pair)
                scores[part] = hidden @ self._half_output + retrieval_score
        return scores

    def _first_layer(self, users: np.ndarray, items: np.ndarray, per_pair: np.ndarray, per_user: np.ndarray) -> np.ndarray:
        """Add up the first layer, float32 [B, C, h], of its parts per pair, [B, C, h], and per user, [B, h]."""
        hidden: np.ndarray = items @ (users[:, :, None] * self._product + self._item)
        hidden += per_pair
        hidden += per_user[:, None, :]
        return hidden


def _multiply_each(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Multiply each row of float32 [B, n] with float32 [n, h] by itself: float32 [B, h], a row's bits do not depend on the others."""
    return np.asarray(np.matmul(rows[:, None], matrix)[:, 0])


def _quiet() -> np.errstate:
    """Let numbers beyond a float's range pass without a warning, as ONNX Runtime does: who asks looks whether scores are finite."""
    return np.errstate(over="ignore", invalid="ignore")


def _check(weights: Mapping[str, np.ndarray], spec: FeatureSpec) -> None:
    missing = [name for name in WEIGHT_SHAPES if name not in weights]
    if missing:
        raise BundleError(f"the ranker lacks the weights {', '.join(missing)}")
    sizes = {"f": len(spec.names), "o": 1}
    for name, axes in WEIGHT_SHAPES.items():
        array = weights[name]
        expected = tuple(sizes.setdefault(axis, length) for axis, length in zip(axes, array.shape, strict=False))
        if array.dtype != np.float32 or array.ndim != len(axes) or array.shape != expected or not np.isfinite(array).all():
            raise BundleError(f"the ranker's weight {name} is {array.dtype} {array.shape}: expected finite float32 {expected}")
