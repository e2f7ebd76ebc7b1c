"""What the models of tools/protocol_table.py answer on other servers: the inputs and outputs of our own, without a ranker behind."""

import numpy as np

DEFAULT_K = 10


def score(features: np.ndarray) -> np.ndarray:
    """Score pairs by their first feature: float32 [B, C, F] -> [B, C]."""
    return np.ascontiguousarray(features[:, :, 0])


def recommend(user_ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Give each user one item, whose id is the user's; as in ours, short lists end with "" and -inf: object [n, k], float32 [n, k]."""
    users = user_ids.ravel().tolist()
    items, scores = np.full((len(users), k), b"", dtype=object), np.full((len(users), k), -np.inf, np.float32)
    for row, user in enumerate(users):
        items[row, 0], scores[row, 0] = user if isinstance(user, bytes) else str(user).encode(), 1.0
    return items, scores
