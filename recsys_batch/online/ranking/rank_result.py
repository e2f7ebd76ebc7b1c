"""The answer of a ranking, and the words for where it comes from and for what it lacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys_batch.online.ranking.exploration import Exploration

RETRIEVAL_ORDER, GIVEN_ORDER = LISTED_SOURCES = ("retrieval", "request")
"""What orders candidates that a request brings where the ranker does not: their retrieval scores, or the request's own order."""
ANSWER_SOURCES = ("ranker", "batch", "popular", *LISTED_SOURCES)
UNKNOWN_USER, NO_EMBEDDING, NO_RANKER, DEADLINE, RANKER_FAILED, STORE_UNAVAILABLE, STALE = LOCAL_REASONS = (
    "unknown_user",
    "no_embedding",
    "no_ranker",
    "deadline",
    "ranker_failed",
    "store_unavailable",
    "stale_snapshot",
)
RANKER_UNAVAILABLE, MODEL_MISMATCH = REMOTE_REASONS = ("ranker_unavailable", "model_mismatch")
REASONS = (*LOCAL_REASONS, *REMOTE_REASONS)
"""Why an answer is not all that it could be. The last two are a model server's: it does not answer in time, or has another model."""


@dataclass(slots=True)
class RankResult:
    """An answer before it is put into words: places of equal length k' <= k, best first.

    Attributes:
        codes: int, items of the snapshot. scores: float32.
        candidate_ranks: from 1; 0 where the item was not retrieved for the user. Of candidates that the request brings, places in its list.
        batch_scores: float32, of the published top-K; NaN where the item is not in it, None where there is no such list.
        stages: seconds by name.
        batch_ranks: places in the published top-K, from 1; 0 where the item is not in it. None where it takes working out, and the
            request did not ask to explain.
        contributions: feature group -> float32 [k'], where the request asked to explain and the ranker ranked.
        exploration: how likely each place was, where places may have been swapped.
        unknown_item_ids: of candidates that the request brings, those that the snapshot does not have; None where it brings none.
    """

    codes: np.ndarray
    scores: np.ndarray
    candidate_ranks: np.ndarray
    batch_scores: np.ndarray | None
    source: str
    degraded: str | None
    stages: Mapping[str, float]
    batch_ranks: np.ndarray | None = None
    contributions: dict[str, np.ndarray] | None = None
    exploration: Exploration | None = None
    unknown_item_ids: Sequence[int | str] | None = None
