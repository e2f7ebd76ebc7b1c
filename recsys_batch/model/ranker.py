"""The second stage: a small network over retrieved candidates, added to the retrieval score.

score = f_0 + gate * MLP(user, item, user * item, features), f_0 being the scaled retrieval score. The first layer is a sum of
four products, so that what belongs to a user or an item alone is computed once and not once per pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recsys_batch.errors import BundleError
from recsys_batch.ranking.features import PairFeatures
from recsys_batch.registry.bundle import Bundle

HIDDEN = 64
NAMES = ("user", "item", "product", "features", "bias", "output")
PREFIX = "ranker_"


@dataclass
class RankerParameters:
    """user, item, product float32 [d, hidden]; features [F, hidden]; bias [hidden]; output [hidden, 1]; gate scales the residual."""

    user: torch.Tensor
    item: torch.Tensor
    product: torch.Tensor
    features: torch.Tensor
    bias: torch.Tensor
    output: torch.Tensor
    gate: float = 1.0

    @classmethod
    def initial(cls, d: int, n_features: int, seed: int) -> RankerParameters:
        """He initialisation; the output starts at zero, so that training starts from the retrieval order."""
        generator = torch.Generator().manual_seed(seed)
        fan_in = 3 * d + n_features
        shapes = {"user": (d, HIDDEN), "item": (d, HIDDEN), "product": (d, HIDDEN), "features": (n_features, HIDDEN)}
        layers = {name: torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5 for name, shape in shapes.items()}
        return cls(**layers, bias=torch.zeros(HIDDEN), output=torch.zeros(HIDDEN, 1))

    def tensors(self) -> list[torch.Tensor]:
        return [getattr(self, name) for name in NAMES]

    def residual(self, users: torch.Tensor, items: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """float32 [B, C] of users [B, d], items [B, C, d], features [B, C, F]."""
        per_user = users @ self.user + self.bias
        hidden = per_user[:, None] + items @ self.item + (users[:, None] * items) @ self.product + features @ self.features
        return (torch.relu(hidden) @ self.output)[..., 0]

    def score(self, users: torch.Tensor, items: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """float32 [B, C]."""
        return features[..., 0] + self.gate * self.residual(users, items, features) if self.gate else features[..., 0]

    def arrays(self) -> dict[str, np.ndarray]:
        """For a bundle's weights; the gate is folded into the output layer."""
        arrays = {PREFIX + name: getattr(self, name).detach().numpy() for name in NAMES}
        arrays[PREFIX + "output"] = arrays[PREFIX + "output"] * np.float32(self.gate)
        return arrays


class Ranker:
    """Inference by torch."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        """``arrays`` as ``RankerParameters.arrays`` gives them.

        Raises:
            BundleError: one is missing.
        """
        missing = [name for name in NAMES if PREFIX + name not in arrays]
        if missing:
            raise BundleError(f"the ranker lacks the weights {', '.join(missing)}")
        weights: dict[str, Any] = {name: torch.from_numpy(np.array(arrays[PREFIX + name])) for name in NAMES}
        self._parameters = RankerParameters(**weights)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Ranker:
        return cls(bundle.tensors)

    def score_without_context(self, users: np.ndarray, items: np.ndarray, codes: np.ndarray, features: PairFeatures) -> np.ndarray:
        """``score`` of candidates under the neutral context, without a feature array and without a row per pair twice.

        What multiplies an item's embedding is one matrix per user, item + user * product, so a user's candidates are one product;
        of the features three are not zero: one belongs to the user, two are added as an outer product.

        Args:
            users: float32 [B, d]. items: float32 [n, d], the whole catalogue. codes: int64 [B, C], all valid.
            features: scaled, of the same pairs.

        Returns:
            float32 [B, C], within rounding of ``score``.
        """
        p = self._parameters
        n, c = codes.shape
        with torch.inference_mode():
            user = torch.from_numpy(np.require(users, requirements=["C", "W"]))
            vectors = torch.from_numpy(items.take(codes.ravel(), axis=0)).view(n, c, -1)
            pair = torch.from_numpy(np.stack([features.retrieval_score, features.log_popularity], axis=2))
            # One product per user throughout: its bits do not depend on how many users are in the block.
            constant = p.bias + torch.from_numpy(features.log_n_events)[:, None, None] * p.features[2]
            per_user = torch.baddbmm(constant, user[:, None], p.user.expand(n, -1, -1))
            hidden = torch.baddbmm(per_user.expand(n, c, -1), pair, p.features[:2].expand(n, -1, -1))
            hidden = hidden.baddbmm_(vectors, p.item + user[:, :, None] * p.product).relu_()
            return (pair[..., 0] + torch.bmm(hidden, p.output.expand(n, -1, -1))[..., 0]).numpy()

    def score(self, user_embeddings: np.ndarray, item_embeddings: np.ndarray, features: np.ndarray) -> np.ndarray:
        """float32 [B, C] from float32 [B, d], [B, C, d], [B, C, F]."""
        with torch.inference_mode():
            # np.require copies what is not writable (Arrow's memory), which torch would warn about.
            tensors = (
                torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in (user_embeddings, item_embeddings, features)
            )
            return self._parameters.score(*tensors).numpy()
