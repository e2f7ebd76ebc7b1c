"""Which engine ranks: torch for the reference model, ONNX Runtime for a ranker that was brought, none without a ranker."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.ranking.features import FeatureSpec, PairFeatures, compute_pair_features
from recsys_batch.ranking.onnx_ranker import OnnxRanker
from recsys_batch.registry.bundle import load_bundle

if TYPE_CHECKING:
    from recsys_batch.model.ranker import Ranker


class BatchRanker(Protocol):
    """Scores candidates under the neutral context."""

    def score(self, users: np.ndarray, n_events: np.ndarray, codes: np.ndarray, retrieval: np.ndarray, catalogue: Catalogue) -> np.ndarray:
        """float32 [B, C].

        Args:
            users: float32 [B, d]. n_events: [B], positive interactions of the user.
            codes: int64 [B, C], items of the catalogue. retrieval: float32 [B, C], their retrieval scores.
        """


@dataclass(frozen=True)
class TorchBatchRanker:
    """The reference ranker."""

    spec: FeatureSpec
    ranker: Ranker

    def score(self, users: np.ndarray, n_events: np.ndarray, codes: np.ndarray, retrieval: np.ndarray, catalogue: Catalogue) -> np.ndarray:
        popularity = catalogue.log_popularity[codes]
        features = PairFeatures.from_raw(self.spec, retrieval_score=retrieval, log_popularity=popularity, n_events=n_events)
        return self.ranker.score_without_context(users, catalogue.embeddings, codes, features)


@dataclass(frozen=True)
class OnnxBatchRanker:
    """A ranker that somebody brought."""

    spec: FeatureSpec
    ranker: OnnxRanker

    def score(self, users: np.ndarray, n_events: np.ndarray, codes: np.ndarray, retrieval: np.ndarray, catalogue: Catalogue) -> np.ndarray:
        popularity = catalogue.log_popularity[codes]
        features = compute_pair_features(self.spec, retrieval_score=retrieval, log_popularity=popularity, n_events=n_events)
        return self.ranker.score(users, catalogue.embeddings[codes], features)


@lru_cache(maxsize=1)
def open_batch_ranker(bundle_dir: str) -> BatchRanker | None:
    """Built once per Python worker; None when the bundle has no ranker (the retrieval order stands)."""
    bundle = load_bundle(bundle_dir)
    if bundle.kind == "two_tower":
        from recsys_batch.model.ranker import Ranker  # torch, which a brought ranker does without

        return TorchBatchRanker(FeatureSpec.from_dict(bundle.manifest["features"]), Ranker.from_bundle(bundle))
    if bundle.ranker_path is None:
        return None
    return OnnxBatchRanker(FeatureSpec.from_dict(bundle.manifest["features"]), OnnxRanker(bundle.ranker_path))
