"""The model's stages on made-up users, for a plan to time."""

from collections.abc import Callable

import numpy as np
import torch

from recsys_batch.model.ranker import Ranker, RankerParameters
from recsys_batch.model.towers import pool_history
from recsys_batch.ranking.features import FeatureSpec, PairFeatures


def make_trial_stages(
    rng: np.random.Generator, users: np.ndarray, items: np.ndarray, n_candidates: int, n_events: int
) -> tuple[Callable[[], object], Callable[[], object], dict[str, np.ndarray]]:
    """Make (what embeds the users by their events, what scores their candidates, the ranker's weights), on one thread.

    Args:
        users, items: float32 [B, d] and [n, d].
    """
    torch.set_num_threads(1)
    spec, n = FeatureSpec.default(), len(users)
    arrays = RankerParameters.initialize(users.shape[1], len(spec.names), 0).to_arrays()
    ranker = Ranker(arrays)
    codes = rng.integers(0, len(items), (n, n_candidates))
    retrieval, popularity = rng.standard_normal(codes.shape, dtype=np.float32), rng.random(codes.shape, dtype=np.float32)
    offsets = np.arange(n + 1) * n_events
    events = rng.integers(0, len(items), n * n_events)

    def score() -> object:
        features = PairFeatures.from_raw(spec, retrieval_score=retrieval, log_popularity=popularity, n_events=np.full(n, n_events))
        return ranker.score_without_context(users, items, codes, features)

    return lambda: pool_history(items, events, offsets, 0.9), score, arrays
