"""Which engine ranks: torch for the reference model, ONNX Runtime for a ranker that was brought, none without a ranker."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from recsys_batch.bundle import load_bundle
from recsys_batch.features import FeatureSpec


class RankerLike(Protocol):
    def score(self, user_embeddings: np.ndarray, item_embeddings: np.ndarray, features: np.ndarray) -> np.ndarray:
        """float32 [B, C] from float32 [B, d], [B, C, d], [B, C, F]."""
        ...


@dataclass(frozen=True)
class Ranking:
    """A ranker and the features that it takes."""

    spec: FeatureSpec
    ranker: RankerLike


@lru_cache(maxsize=1)
def open_ranking(bundle_dir: str) -> Ranking | None:
    """Built once per Python worker; None when the bundle has no ranker (the retrieval order stands)."""
    bundle = load_bundle(bundle_dir)
    if bundle.kind == "two_tower":
        from recsys_batch.model.ranker import Ranker

        return Ranking(FeatureSpec.from_dict(bundle.manifest["features"]), Ranker.from_bundle(bundle))
    if bundle.ranker_path is None:
        return None
    from recsys_batch.onnx_ranker import OnnxRanker

    return Ranking(FeatureSpec.from_dict(bundle.manifest["features"]), OnnxRanker(bundle.ranker_path))
