"""The reference ranker from the catalogue's memory in one pass of compiled code, where that was built (setup.py); numpy_ranker.py does the
same without it.

numpy makes an array of each step: the candidates' vectors, their features, the first layer. Here a candidate's vector is read once, on the
way from memory to the score, and each candidate is worked out for itself: alone it has the score that it has among others, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recsys_batch.ranking.features import CANDIDATE_SCORE, PAIR_FEATURES, SESSION_COLUMN, Context, FeatureSpec, encode_context
from recsys_batch.ranking.numpy_ranker import N_EVENTS_COLUMN, NumpyRanker

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
        n_hidden = weights["item"].shape[1]
        self._n_hidden: int = -(-n_hidden // _LANES) * _LANES  # further units have no weights, and so no effect
        self._padded_user, self._padded_product, self._padded_item = (
            _pad(weights[name], self._n_hidden) for name in ("user", "product", "item")
        )
        bias, output = _pad(weights["bias"][None], self._n_hidden)[0], _pad(weights["output"].T, self._n_hidden)[0]
        by_name = dict(zip(spec.names, _pad(weights["features"], self._n_hidden), strict=True))
        has_session, similarity = spec.names[SESSION_COLUMN : SESSION_COLUMN + 2]
        self._shared_names = [name for name in spec.names[N_EVENTS_COLUMN:] if name not in (has_session, similarity, CANDIDATE_SCORE)]
        self._shared_rows = np.stack([bias, by_name[has_session], *(by_name[name] for name in self._shared_names)])
        names = (PAIR_FEATURES[_RETRIEVAL], PAIR_FEATURES[_POPULARITY], similarity, CANDIDATE_SCORE)
        self._rows = np.stack([*(by_name.get(name, np.zeros_like(bias)) for name in names), output])
        self._shared_columns = [spec.names.index(name) - len(PAIR_FEATURES) for name in self._shared_names[1:]]
        self._scratch = np.empty(self._scratch_size(_SESSION_ITEMS), np.float32)

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
        n_session = session.shape[1]
        _score_pairs.score(
            b,
            c,
            n_session,
            len(self._shared_names),
            users.shape[1],
            self._n_hidden,
            users,
            self._describe_users(n_events, context),
            codes,
            retrieval,
            candidate_score,
            session,
            vectors,
            log_popularity,
            norms,
            self._padded_user,
            self._padded_product,
            self._padded_item,
            self._shared_rows,
            self._rows,
            spec.mean[_RETRIEVAL],
            spec.scale[_RETRIEVAL],
            spec.mean[_POPULARITY],
            spec.scale[_POPULARITY],
            self._scratch if n_session <= _SESSION_ITEMS else np.empty(self._scratch_size(n_session), np.float32),
            scores,
        )
        return scores

    def _describe_users(self, n_events: np.ndarray, context: Context | None) -> np.ndarray:
        """Encode what all candidates of a user share, but for whether there is a session: float32 [B, n_shared]."""
        described = np.zeros((len(n_events), len(self._shared_names)), np.float32)
        described[:, 0] = (np.log1p(n_events) - self._spec.mean[N_EVENTS_COLUMN]) / self._spec.scale[N_EVENTS_COLUMN]
        if context is not None:
            described[:, 1:] = encode_context(context, self._spec)[:, self._shared_columns]
        return described

    def _scratch_size(self, n_session: int) -> int:
        """Count the floats of a user's first layer and session."""
        d = len(self._padded_item)
        return (d + 1) * self._n_hidden + max(n_session, _LANES) * d


def _pad(rows: np.ndarray, n_columns: int) -> np.ndarray:
    """Widen float32 [n, h] by columns of zeros."""
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, n_columns - rows.shape[1]))), np.float32)
