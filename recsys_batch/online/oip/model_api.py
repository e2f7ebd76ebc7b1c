"""Models as the Open Inference Protocol sees them: named tensors in, named tensors out.

snapshot_models.py implements ``OipModel`` and ``ModelRepository``; the batcher and the two wires call them. Nothing here knows a wire or
a snapshot.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recsys_batch.ids import parse_bigint


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
        """Check a tensor of a request. A column [n, 1] is taken for [n], BYTES for INT64: codecs of other servers' clients send both.

        Raises:
            InvalidRequest: another datatype or shape.
        """
        if len(self.shape) == 1 and len(shape) == 2 and shape[1] == 1:
            shape = shape[:1]
        fits = len(shape) == len(self.shape) and all(size in (-1, given) for size, given in zip(self.shape, shape, strict=True))
        if datatype not in (self.datatype, "BYTES" if self.datatype == "INT64" else None) or not fits:
            raise InvalidRequest(f"input {self.name} is {datatype} {list(shape)}, expected {self.datatype} {list(self.shape)}")

    def conform(self, array: np.ndarray) -> np.ndarray:
        """Bring a tensor that ``check`` took to the model's datatype and dimensions. Raises InvalidRequest: BYTES that are no INT64."""
        if len(self.shape) == 1:
            array = array.ravel()
        if self.datatype != "INT64" or array.dtype != object:
            return array
        numbers = [parse_bigint(element.decode(errors="replace")) for element in array.tolist()]
        if None in numbers:
            raise InvalidRequest(f"input {self.name} holds {array[numbers.index(None)][:40]!r}: expected the decimal digits of an INT64")
        return np.array(numbers, np.int64)


class OipModel(Protocol):
    """A model that a request can name.

    Attributes:
        version_number: for clients to whom versions are numbers; the newer model's is greater.
        rows_are_independent: whether the first dimension of every tensor counts independent rows, so that requests can be joined.
    """

    name: str
    version: str
    version_number: int
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    rows_are_independent: bool

    async def prepare(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Add to a request's tensors what the model has to ask a network for. Raises InvalidRequest: more than it answers at once."""
        return inputs

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
        """Find a model; without a version, the stable one. Raises ModelUnknown: there is none of that name and version, which may be spelt
        as its number.
        """

    def labelled(self, name: str) -> Mapping[str, OipModel]:
        """Find the versions of a model by their labels, the stable one first. Raises ModelUnknown: there is none of that name."""

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


def conform_inputs(model: OipModel, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring inputs that ``validate_inputs`` took to what the model declares. Raises InvalidRequest: one of them cannot be."""
    specs = {spec.name: spec for spec in model.inputs}
    return {name: specs[name].conform(array) for name, array in arrays.items()}
