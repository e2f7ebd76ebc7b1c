"""The ranker of a bundle, as what is exported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from recsys_batch.errors import BundleError, UsageError
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.ranking.onnx_ranker import INPUTS, OUTPUT, OnnxRanker
from recsys_batch.registry.bundle import RANKER_FILE, RANKER_PREFIX, Bundle

_EXAMPLE_CANDIDATES = 3


@dataclass(frozen=True)
class ExportableRanker:
    """A ranker under the name and version that a model server has it by.

    Attributes:
        name: of the model on the server. version: a decimal number, as the servers want; the registry's.
        onnx_path: the model's file: INPUTS -> OUTPUT, float32.
        weights: of the reference ranker by name, float32: user, item, product [d, h], features [F, h], bias [h], output [h, 1]; empty for a
            ranker that somebody brought as ONNX.
        dim: d. n_features: F.
    """

    name: str
    version: str
    onnx_path: Path
    weights: Mapping[str, np.ndarray] = field(repr=False)
    dim: int
    n_features: int

    @cached_property
    def example(self) -> dict[str, np.ndarray]:
        """Arrays of INPUTS for one query of _EXAMPLE_CANDIDATES candidates, made up, and the scores of OUTPUT for them."""
        rng = np.random.default_rng(0)
        shapes = (1, self.dim), (1, _EXAMPLE_CANDIDATES, self.dim), (1, _EXAMPLE_CANDIDATES, self.n_features)
        arrays = [rng.standard_normal(shape).astype(np.float32).round(4) for shape in shapes]
        return dict(zip(INPUTS, arrays, strict=True)) | {OUTPUT: OnnxRanker(self.onnx_path).score(*arrays)}


def ranker_of_bundle(bundle: Bundle, name: str, version: str) -> ExportableRanker:
    """Take the ranker of a bundle. Raises BundleError: it has none; UsageError: a server cannot have it by that name or version."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise UsageError(f"online.engine_model is {name!r}: a model's name is of letters, digits, ., _ and -, as it names a folder, too")
    if re.fullmatch(r"[1-9][0-9]*", version) is None:
        raise UsageError(f"model version {version!r} is no whole number above 0, as model servers want: pass one with --model-version")
    onnx_path = bundle.ranker_path
    if onnx_path is None:
        raise BundleError(f"{bundle.path} has no {RANKER_FILE}: there is no ranker to export; its lists are in the order of the retrieval")
    tensors = bundle.tensors.items() if bundle.kind == "two_tower" else ()
    weights = {key.removeprefix(RANKER_PREFIX): array for key, array in tensors if key.startswith(RANKER_PREFIX)}
    n_features = len(FeatureSpec.from_dict(bundle.manifest["features"]).names)
    return ExportableRanker(name, version, onnx_path, weights, bundle.embedding_dim, n_features)
