"""The reference ranker from the catalogue's memory in one pass of compiled code, where that was built (setup.py); numpy_ranker.py does the
same without it.

numpy makes an array of each step: the candidates' vectors, their features, the first layer. Here a candidate's vector is read once, on the
way from memory to the score, and each candidate is worked out for itself: alone it has the score that it has among others, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recsys_batch.ranking.features import CANDIDATE_SCORE, PAIR_FEATURES, SESSION_COLUMN, Context, FeatureSpec, encode_context
from recsys_batch.ranking.numpy_ranker import N_EVENTS_COLUMN, NumpyRanker, multiply_each

try:
    from recsys_batch.ranking import _score_pairs
except ImportError:
    _score_pairs = None  # type: ignore[assignment]

_LANES = 8
_SESSION_ITEMS = 64
"""For sessions up to so many there is room from the start."""
_RETRIEVAL, _POPULARITY = 0, 1


def is_compiled() -> bool:
    """Say whether the compiled code is there."""
    return _score_pairs is not None


class CompiledRanker(NumpyRanker):
    """Scores candidates by their codes, within rounding of ``NumpyRanker``. Raises as it does; only where ``is_compiled``."""

    def __init__(self, weights: Mapping[str, np.ndarray], spec: FeatureSpec) -> None:
        super().__init__(weights, spec)
        d, n_hidden = weights["item"].shape
        self._n_hidden = -(-n_hidden // _LANES) * _LANES  # further units have no weights, and so no effect
        padded = {name: _pad(weights[name], self._n_hidden) for name in ("user", "item", "product", "features")}
        self._padded_user, self._padded_item, self._padded_product = padded["user"], padded["item"], padded["product"]
        self._padded_features, self._padded_bias = padded["features"], _pad(weights["bias"][None], self._n_hidden)[0]
        nothing = np.zeros(self._n_hidden, np.float32)
        by_name = dict(zip(spec.names, self._padded_features, strict=True))
        rows = [by_name[PAIR_FEATURES[_RETRIEVAL]], by_name[PAIR_FEATURES[_POPULARITY]], by_name[spec.names[SESSION_COLUMN + 1]]]
        rows += [by_name.get(CANDIDATE_SCORE, nothing), _pad(weights["output"].T, self._n_hidden)[0]]
        self._rows = np.ascontiguousarray(np.stack(rows), np.float32)
        self._scratch = np.empty((self._n_hidden + _SESSION_ITEMS) * d, np.float32)

    def score_codes(
        self,
        users: np.ndarray,
        codes: np.ndarray,
        retrieval: np.ndarray,
        n_events: np.ndarray,
        session: np.ndarray,
        context: Context | None,
        candidate_score: np.ndarray | None,
        vectors: np.ndarray,
        log_popularity: np.ndarray,
        norms: np.ndarray,
    ) -> np.ndarray:
        """Score candidates of the catalogue: float32 [B, C].

        Args:
            users: float32 [B, d]. codes: int64 [B, C]. retrieval: float32 [B, C], not scaled. n_events: [B], counts.
            session: int64 [B, S], codes of the session's items; -1 for none.
            context: without the session's similarity; None for the neutral one.
            candidate_score: float32 [B, C], the callers' own; None for 0.
            vectors, log_popularity, norms: float32 [n, d], [n], [n], of the catalogue.
        Raises:
            ValueError: a code is no place in the catalogue, or sizes differ.
        """
        (b, c), spec = codes.shape, self._spec
        scores = np.empty((b, c), np.float32)
        _score_pairs.score(
            b,
            c,
            session.shape[1],
            users.shape[1],
            self._n_hidden,
            users,
            codes,
            retrieval,
            candidate_score,
            session,
            self._per_user(users, n_events, session, context, norms),
            vectors,
            log_popularity,
            norms,
            self._padded_product,
            self._padded_item,
            self._rows,
            spec.mean[_RETRIEVAL],
            spec.scale[_RETRIEVAL],
            spec.mean[_POPULARITY],
            spec.scale[_POPULARITY],
            self._scratch_for(session.shape[1]),
            scores,
        )
        return scores

    def _scratch_for(self, n_session: int) -> np.ndarray:
        """Find room for the first layer's weights of a user and the session's vectors."""
        d = len(self._padded_item)
        return self._scratch if n_session <= _SESSION_ITEMS else np.empty((self._n_hidden + n_session) * d, np.float32)

    def _per_user(
        self, users: np.ndarray, n_events: np.ndarray, session: np.ndarray, context: Context | None, norms: np.ndarray
    ) -> np.ndarray:
        """Add up what all candidates of a user share in the first layer: float32 [B, h]."""
        per_user = multiply_each(users, self._padded_user)
        per_user += self._padded_bias
        mean, scale = self._spec.mean[N_EVENTS_COLUMN], self._spec.scale[N_EVENTS_COLUMN]
        activity = ((np.log1p(n_events) - mean) / scale).astype(np.float32)
        per_user += activity[:, None] * self._padded_features[N_EVENTS_COLUMN]
        if context is not None:
            shared = encode_context(context, self._spec)
            if session.shape[1]:
                shared[:, SESSION_COLUMN - len(PAIR_FEATURES)] = ((session >= 0) & (norms.take(session) > 0)).any(axis=1)
            per_user += multiply_each(shared, self._padded_features[len(PAIR_FEATURES) :])
        return per_user


def _pad(rows: np.ndarray, n_columns: int) -> np.ndarray:
    """Widen float32 [n, h] by columns of zeros."""
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, n_columns - rows.shape[1]))), np.float32)
