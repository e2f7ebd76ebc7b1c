"""Scoring engines of the reference ranker: torch, or ONNX Runtime, which every install has. Called by the score task and the driver.

A run is scored by one of them on all nodes: the two differ in the last bits.
"""

import platform
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Literal

import pyarrow as pa

from recsys_batch.errors import RecsysBatchError

ScoringEngine = Literal["torch", "onnx", "none"]
"""What scores a run; "none": the model has no ranker, and the order of candidates stands."""
NODE_SCHEMA = pa.schema([("host", pa.string()), ("has_torch", pa.bool_())])


def has_torch() -> bool:
    """Say whether this machine's Python has torch, without loading it."""
    return find_spec("torch") is not None


def describe_node(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Describe the node of a task, for mapInArrow: a row of NODE_SCHEMA for each batch, whatever is in it."""
    for _ in batches:
        yield pa.RecordBatch.from_pydict({"host": [platform.node()], "has_torch": [has_torch()]}, schema=NODE_SCHEMA)


def require_torch() -> None:
    """Check that this node can score by torch.

    Raises:
        RecsysBatchError: it has no torch. The run fails: part of its scores by another engine would be other last bits.
    """
    if not has_torch():
        raise RecsysBatchError(
            f"{platform.node()} has no torch, by which this run is scored: install it there, "
            "or set scoring.engine = onnx, which begins a new run that no node needs torch for"
        )
