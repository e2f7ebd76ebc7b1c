"""The ranker, second stage of the model: a small network over retrieved candidates, added to the retrieval score.

score = f_0 + gate * MLP(user, item, user * item, features), f_0 being the scaled retrieval score. The first layer is a sum of
four products, so that the terms of a user or an item alone are computed once and not once per pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recsys_batch.errors import BundleError
from recsys_batch.ranking.features import PairFeatures
from recsys_batch.registry.bundle import RANKER_PREFIX, Bundle

HIDDEN_DIM = 64
PARAMETER_NAMES = ("user", "item", "product", "features", "bias", "output")


@dataclass
class RankerParameters:
    """Ranker weights: user, item, product float32 [d, hidden]; features [F, hidden]; bias [hidden]; output [hidden, 1]; residual gate."""

    user: torch.Tensor
    item: torch.Tensor
    product: torch.Tensor
    features: torch.Tensor
    bias: torch.Tensor
    output: torch.Tensor
    gate: float = 1.0

    @classmethod
    def initialize(cls, d: int, n_features: int, seed: int) -> RankerParameters:
        """Draw weights by He initialisation; the output starts at zero, so that training starts from the retrieval order."""
        generator = torch.Generator().manual_seed(seed)
        fan_in = 3 * d + n_features
        shapes = {"user": (d, HIDDEN_DIM), "item": (d, HIDDEN_DIM), "product": (d, HIDDEN_DIM), "features": (n_features, HIDDEN_DIM)}
        layers = {name: torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5 for name, shape in shapes.items()}
        return cls(**layers, bias=torch.zeros(HIDDEN_DIM), output=torch.zeros(HIDDEN_DIM, 1))

    def tensors(self) -> list[torch.Tensor]:
        """Trainable tensors in the order of PARAMETER_NAMES."""
        return [getattr(self, name) for name in PARAMETER_NAMES]

    def residual(self, users: torch.Tensor, items: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Compute the network output float32 [B, C] for users [B, d], items [B, C, d], features [B, C, F]."""
        per_user = users @ self.user + self.bias
        hidden = per_user[:, None] + items @ self.item + (users[:, None] * items) @ self.product + features @ self.features
        return (torch.relu(hidden) @ self.output)[..., 0]

    def score(self, users: torch.Tensor, items: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Score candidates, float32 [B, C]: scaled retrieval score plus gated residual."""
        return features[..., 0] + self.gate * self.residual(users, items, features) if self.gate else features[..., 0]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Export the weights for a bundle, with the gate folded into the output layer."""
        arrays = {RANKER_PREFIX + name: getattr(self, name).detach().numpy() for name in PARAMETER_NAMES}
        arrays[RANKER_PREFIX + "output"] = arrays[RANKER_PREFIX + "output"] * np.float32(self.gate)
        return arrays


class Ranker:
    """Scores candidates with torch; a user's scores do not depend on the batch."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Load weights exported by ``RankerParameters.to_arrays``; raises BundleError where one is missing."""
        missing = [name for name in PARAMETER_NAMES if RANKER_PREFIX + name not in arrays]
        if missing:
            raise BundleError(f"the ranker lacks the weights {', '.join(missing)}")
        weights: dict[str, Any] = {name: torch.from_numpy(np.array(arrays[RANKER_PREFIX + name])) for name in PARAMETER_NAMES}
        self._parameters = RankerParameters(**weights)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Ranker:
        """Load the ranker of a bundle."""
        return cls(bundle.tensors)

    def score_without_context(self, users: np.ndarray, items: np.ndarray, codes: np.ndarray, features: PairFeatures) -> np.ndarray:
        """Score candidates under the neutral context, without building a feature array or copying pairs twice.

        An item's embedding is multiplied by one matrix per user, item + user * product, so a user's candidates are one product;
        three features are not zero: one is per user, two are added as an outer product.

        Args:
            users: float32 [B, d]. items: float32 [n, d], the whole catalogue. codes: int64 [B, C], all valid.
            features: scaled, of the same pairs.

        Returns:
            float32 [B, C], within rounding of ``score``.
        """
        weights = self._parameters
        n, c = codes.shape
        with torch.inference_mode():
            user = torch.from_numpy(np.require(users, requirements=["C", "W"]))
            vectors = torch.from_numpy(items.take(codes.ravel(), axis=0)).view(n, c, -1)
            pair = torch.from_numpy(np.stack([features.retrieval_score, features.log_popularity], axis=2))
            # One product per user throughout: its bits do not depend on how many users are in the block.
            constant = weights.bias + torch.from_numpy(features.log_n_events)[:, None, None] * weights.features[2]
            per_user = torch.baddbmm(constant, user[:, None], weights.user.expand(n, -1, -1))
            hidden = torch.baddbmm(per_user.expand(n, c, -1), pair, weights.features[:2].expand(n, -1, -1))
            hidden = hidden.baddbmm_(vectors, weights.item + user[:, :, None] * weights.product).relu_()
            if n == 1:  # a batch of one is multiplied by another kernel, with other last bits
                hidden = hidden.repeat(2, 1, 1)
            scores = torch.bmm(hidden, weights.output.expand(len(hidden), -1, -1))[:n, :, 0]
            return (pair[..., 0] + scores).numpy()

    def score(self, user_embeddings: np.ndarray, item_embeddings: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Score candidates, float32 [B, C], from float32 [B, d], [B, C, d], [B, C, F]."""
        with torch.inference_mode():
            # np.require copies what is not writable (Arrow's memory), which torch would warn about.
            tensors = (
                torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in (user_embeddings, item_embeddings, features)
            )
            return self._parameters.score(*tensors).numpy()
