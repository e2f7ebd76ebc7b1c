"""Models as the protocol sees them: named tensors in, named tensors out."""

from __future__ import annotations

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
    """Attributes:
    datatype: the protocol's name, e.g. FP32.
    shape: -1 where any size goes.
    optional: whether a request may leave it out.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def check(self, datatype: str, shape: Sequence[int]) -> None:
        """Raises InvalidRequest where a tensor is another one than this."""
        fits = len(shape) == len(self.shape) and all(own in (-1, given) for own, given in zip(self.shape, shape, strict=True))
        if datatype != self.datatype or not fits:
            raise InvalidRequest(f"input {self.name} is {datatype} {list(shape)}, expected {self.datatype} {list(self.shape)}")


class OipModel(Protocol):
    """Attributes:
    rows: whether the first dimension of every tensor counts independent rows, so that requests can be joined.
    """

    name: str
    version: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    rows: bool

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs of inputs that fit ``inputs``; BYTES tensors are object arrays of bytes.

        Raises:
            InvalidRequest: tensors that do not fit each other.
        """
        ...

    def split(self, inputs: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        """A request cut into runs of a few milliseconds each, between which others are answered; the outputs' first dimension joins them.

        Raises:
            InvalidRequest: more than the model answers at once.
        """
        return [inputs]

    def held(self) -> AbstractContextManager[object]:
        """Keeps open what the model reads, whatever comes into use meanwhile."""
        return nullcontext()


def split_rows(inputs: Mapping[str, np.ndarray], names: Sequence[str], most: int) -> list[Mapping[str, np.ndarray]]:
    """Pieces of at most ``most`` rows of the tensors of those names, which have equally many; the others go with every piece."""
    n = len(inputs[names[0]])
    pieces = ({name: inputs[name][at : at + most] for name in names} for at in range(0, max(n, 1), most))
    return [{**inputs, **piece} for piece in pieces]


class ModelRepository(Protocol):
    def get(self, name: str, version: str | None) -> OipModel:
        """Raises ModelUnknown."""

    def names(self) -> list[str]: ...

    def ready(self) -> bool: ...


def validate_inputs(model: OipModel, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """Raises InvalidRequest unless the tensors (name -> datatype, shape) are the model's inputs."""
    known = {spec.name: spec for spec in model.inputs}
    for name, (datatype, shape) in tensors.items():
        if name not in known:
            raise InvalidRequest(f"model {model.name} has no input {name!r}; it takes {', '.join(known)}")
        known[name].check(datatype, shape)
    missing = [spec.name for spec in model.inputs if not spec.optional and spec.name not in tensors]
    if missing:
        raise InvalidRequest(f"model {model.name} lacks the input{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
