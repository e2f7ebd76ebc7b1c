"""The ranker as ONNX answers as torch does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import Ranker, RankerParameters
from recsys_batch.ranking.onnx_ranker import OnnxRanker

D, F = 9, 14


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ranker, OnnxRanker]:
    params = RankerParameters.initialize(D, F, seed=4)
    generator = torch.Generator().manual_seed(5)
    for tensor in params.tensors():
        tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    params.gate = 0.5
    path = tmp_path_factory.mktemp("onnx") / "ranker.onnx"
    path.write_bytes(export_ranker_onnx(params.to_arrays()))
    return Ranker(params.to_arrays()), OnnxRanker(path)


@pytest.mark.parametrize(("B", "C"), [(1, 1), (3, 200), (64, 7)])
def test_scores_agree_within_1e_4_and_order_up_to_ties(engines: tuple[Ranker, OnnxRanker], B: int, C: int) -> None:
    rng = np.random.default_rng(B)
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in ((B, D), (B, C, D), (B, C, F))]
    by_torch, by_onnx = (engine.score(*inputs) for engine in engines)
    assert by_onnx.shape == (B, C) and by_onnx.dtype == by_torch.dtype == np.float32
    np.testing.assert_allclose(by_onnx, by_torch, atol=1e-4)
    ordered = np.take_along_axis(by_torch, np.argsort(-by_onnx, axis=1, kind="stable"), axis=1)
    assert (np.diff(ordered, axis=1) <= 2e-4).all()
    assert C == 1 or by_torch.std() > 0.1  # the comparison is of something


def test_the_file_is_the_same_for_the_same_weights(tmp_path: Path) -> None:
    arrays = RankerParameters.initialize(D, F, seed=4).to_arrays()
    assert export_ranker_onnx(arrays) == export_ranker_onnx(arrays)
