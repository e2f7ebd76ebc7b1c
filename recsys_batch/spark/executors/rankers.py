"""The ranker of the score step: torch for the reference model, ONNX Runtime for an imported one, none for a bundle without a ranker."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.ranking.features import FeatureSpec, PairFeatures, compute_pair_features
from recsys_batch.ranking.onnx_ranker import OnnxRanker
from recsys_batch.registry.bundle import load_bundle

if TYPE_CHECKING:
    from recsys_batch.model.ranker import Ranker


@dataclass(frozen=True)
class BatchRanker:
    """Scores candidates under the neutral context, by torch (the reference ranker) or ONNX Runtime (an imported one)."""

    spec: FeatureSpec
    ranker: Ranker | OnnxRanker

    def score(self, users: np.ndarray, n_events: np.ndarray, codes: np.ndarray, retrieval: np.ndarray, catalogue: Catalogue) -> np.ndarray:
        """Score each user's candidates: float32 [B, C].

        Args:
            users: float32 [B, d]. n_events: [B], positive interactions of the user.
            codes: int64 [B, C], items of the catalogue. retrieval: float32 [B, C], their retrieval scores.
        """
        inputs = {"retrieval_score": retrieval, "log_popularity": catalogue.log_popularity[codes], "n_events": n_events}
        if isinstance(self.ranker, OnnxRanker):
            return self.ranker.score(users, catalogue.embeddings[codes], compute_pair_features(self.spec, **inputs))
        return self.ranker.score_without_context(users, catalogue.embeddings, codes, PairFeatures.from_raw(self.spec, **inputs))


@lru_cache(maxsize=1)
def open_batch_ranker(bundle_dir: str) -> BatchRanker | None:
    """Open a bundle's ranker, once per Python worker; None when the bundle has no ranker (the retrieval order stands)."""
    bundle = load_bundle(bundle_dir)
    if bundle.kind == "two_tower":
        from recsys_batch.model.ranker import Ranker  # torch, which an imported ranker does without

        return BatchRanker(FeatureSpec.from_dict(bundle.manifest["features"]), Ranker.from_bundle(bundle))
    if bundle.ranker_path is None:
        return None
    return BatchRanker(FeatureSpec.from_dict(bundle.manifest["features"]), OnnxRanker(bundle.ranker_path))
