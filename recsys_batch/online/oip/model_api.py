"""Models as the Open Inference Protocol sees them: named tensors in, named tensors out.

snapshot_models.py implements ``OipModel`` and ``ModelRepository``; the batcher and the two wires call them. Nothing here knows a wire or
a snapshot.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class InvalidRequest(Exception):
    """Tensors that the model does not take; the message says what was found and what is expected."""


class ModelUnknown(Exception):
    """There is no model of that name and version."""


class Overloaded(Exception):
    """Too many requests wait for a model."""


@dataclass(frozen=True)
class TensorSpec:
    """A named input or output of a model.

    Attributes:
        datatype: the protocol's name, e.g. FP32. shape: -1 where any size goes. optional: whether a request may leave it out.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def check(self, datatype: str, shape: Sequence[int]) -> None:
        """Check a tensor of a request. Raises InvalidRequest: another datatype or shape."""
        fits = len(shape) == len(self.shape) and all(size in (-1, given) for size, given in zip(self.shape, shape, strict=True))
        if datatype != self.datatype or not fits:
            raise InvalidRequest(f"input {self.name} is {datatype} {list(shape)}, expected {self.datatype} {list(self.shape)}")


class OipModel(Protocol):
    """A model that a request can name.

    Attributes:
        rows_are_independent: whether the first dimension of every tensor counts independent rows, so that requests can be joined.
    """

    name: str
    version: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    rows_are_independent: bool

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Run the model on tensors; BYTES tensors are object arrays of bytes. Raises InvalidRequest: they do not fit each other."""

    def split(self, inputs: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        """Split a request into runs of a few milliseconds each, between which others are answered; their outputs are concatenated along
        the first dimension.

        Raises:
            InvalidRequest: more than the model answers at once.
        """
        return [inputs]

    def lease(self) -> AbstractContextManager[object]:
        """Keep open what the model reads during the ``with`` block, whatever comes into use meanwhile."""
        return nullcontext()


def split_rows(inputs: Mapping[str, np.ndarray], names: Sequence[str], max_rows: int) -> list[Mapping[str, np.ndarray]]:
    """Split the named tensors, which have equally many rows, into runs of at most ``max_rows``; the others go with every run."""
    starts = range(0, max(len(inputs[names[0]]), 1), max_rows)
    return [{**inputs, **{name: inputs[name][start : start + max_rows] for name in names}} for start in starts]


class ModelRepository(Protocol):
    """The models that can be asked for now."""

    def get(self, name: str, version: str | None) -> OipModel:
        """Find a model; without a version, the one there is. Raises ModelUnknown: there is none of that name and version."""

    def ready(self) -> bool:
        """Tell whether models answer."""


def validate_inputs(model: OipModel, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """Check that tensors (name -> datatype, shape) are the model's inputs. Raises InvalidRequest: they are not."""
    known = {spec.name: spec for spec in model.inputs}
    for name, (datatype, shape) in tensors.items():
        if name not in known:
            raise InvalidRequest(f"model {model.name} has no input {name!r}; it takes {', '.join(known)}")
        known[name].check(datatype, shape)
    missing = [spec.name for spec in model.inputs if not spec.optional and spec.name not in tensors]
    if missing:
        raise InvalidRequest(f"model {model.name} lacks the input{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
