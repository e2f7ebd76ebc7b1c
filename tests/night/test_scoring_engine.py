"""Which engine scores a run: by what all nodes have, as the setting says, or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from recsys_batch.config import load_config
from recsys_batch.errors import ConfigError
from recsys_batch.night import scoring_engine
from recsys_batch.registry.bundle import Bundle, write_bundle
from recsys_batch.spark.executors.engines import NODE_SCHEMA

EVERYWHERE, NOWHERE, HALF = [("a", True), ("b", True)], [("a", False)], [("a", True), ("b", False), ("b", False)]


def bundle(folder: Path, kind: str = "two_tower", onnx: bool = True) -> Bundle:
    tensors = {"ranker_user": np.zeros((2, 2), np.float32)} if kind == "two_tower" else None
    return write_bundle(folder / "bundle", {"kind": kind, "embedding_dim": 2}, tensors=tensors, ranker_onnx=b"model" if onnx else None)


def choose(monkeypatch: pytest.MonkeyPatch, model: Bundle, nodes: list[tuple[str, bool]] | None, setting: str = "auto") -> str:
    """The engine where these nodes answer; None: nobody may be asked."""

    def ask(spark: Any) -> pa.Table:
        assert nodes is not None, "nodes were asked for nothing"
        return pa.Table.from_pylist([{"host": host, "has_torch": has} for host, has in nodes], schema=NODE_SCHEMA)

    monkeypatch.setattr(scoring_engine, "_ask_nodes", ask)
    session: Any = None
    return scoring_engine.choose_scoring_engine(session, load_config(None, [f"scoring.engine={setting}"]), model)


@pytest.mark.parametrize(("nodes", "expected"), [(EVERYWHERE, "torch"), (NOWHERE, "onnx"), (HALF, "onnx")])
def test_torch_scores_where_every_node_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, nodes: list[tuple[str, bool]], expected: str
) -> None:
    with caplog.at_level(logging.INFO, "recsys_batch.night"):
        assert choose(monkeypatch, bundle(tmp_path), nodes) == expected
    assert ("b of 2 nodes without torch" in caplog.text) is (nodes is HALF)


def test_the_setting_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = bundle(tmp_path)
    assert choose(monkeypatch, model, None, "onnx") == "onnx"
    assert choose(monkeypatch, model, EVERYWHERE, "torch") == "torch"
    with pytest.raises(ConfigError, match=r"scoring\.engine = torch, and there are b of 2 nodes without torch: install torch there"):
        choose(monkeypatch, model, HALF, "torch")


def test_a_model_without_onnx_needs_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = bundle(tmp_path, onnx=False)
    assert choose(monkeypatch, model, EVERYWHERE) == "torch"
    for setting, nodes in (("auto", HALF), ("onnx", None)):
        with pytest.raises(ConfigError, match=r"the model has no ranker\.onnx"):
            choose(monkeypatch, model, nodes, setting)


@pytest.mark.parametrize(("onnx", "expected"), [(True, "onnx"), (False, "none")])
@pytest.mark.parametrize("setting", ["auto", "torch", "onnx"])
def test_a_model_that_was_brought_asks_for_no_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, onnx: bool, expected: str, setting: str
) -> None:
    assert choose(monkeypatch, bundle(tmp_path, "embeddings", onnx), None, setting) == expected


def test_nodes_are_asked_by_a_task_per_core(spark: SparkSession) -> None:
    nodes = scoring_engine._ask_nodes(spark)
    assert nodes.schema.equals(NODE_SCHEMA) and len(nodes) == spark.sparkContext.defaultParallelism
    assert nodes["has_torch"].to_pylist() == [True] * len(nodes)  # these tests' own environment has it


def test_another_engine_is_another_setting_so_that_it_begins_a_new_run() -> None:
    by_default, by_onnx = (load_config(None, overrides).config_hash() for overrides in ([], ["scoring.engine=onnx"]))
    assert by_default == load_config(None, ["scoring.engine=auto"]).config_hash() != by_onnx
