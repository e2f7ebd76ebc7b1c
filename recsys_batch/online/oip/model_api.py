"""Models as the Open Inference Protocol sees them: named tensors in, named tensors out.

snapshot_models.py implements ``OipModel`` and ``ModelRepository``; the batcher and the two wires call them. Nothing here knows a wire or
a snapshot.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recsys_batch.errors import quote, shorten
from recsys_batch.ids import parse_bigint

Tensors = Mapping[str, np.ndarray]

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(object),
}
"""The protocol's datatypes."""
_WHOLE = tuple(name for name in DTYPES if "INT" in name)
_TAKEN = {"INT32": (*_WHOLE, "BYTES"), "INT64": (*_WHOLE, "BYTES"), "FP32": (*_WHOLE, "FP16", "FP32", "FP64")}
"""Datatypes taken for one that a model declares, where no value is lost: clients' codecs send what numpy makes of Python's lists."""
_MAX_EXACT = 2**24
"""Whole numbers up to here are float32s."""


class InvalidRequest(Exception):
    """Tensors that the model does not take; the message says what was found and what is expected."""


class ModelUnknown(Exception):
    """There is no model of that name and version."""


@dataclass(frozen=True)
class TensorSpec:
    """A named input or output of a model.

    Attributes:
        datatype: the protocol's name, e.g. FP32. shape: -1 where any size goes. optional: whether a request may leave it out.
        max_rows: most of the first dimension; None for no bound.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    max_rows: int | None = None

    def check(self, datatype: str, shape: Sequence[int]) -> None:
        """Check a tensor of a request. A column [n, 1] is taken for [n], and datatypes that ``conform`` converts.

        Raises:
            InvalidRequest: another datatype or shape, or more rows than are answered at once.
        """
        size = shape[:1] if len(self.shape) == 1 and len(shape) == 2 and shape[1] == 1 else shape
        fits = len(size) == len(self.shape) and all(wanted in (-1, given) for wanted, given in zip(self.shape, size, strict=True))
        if datatype not in _TAKEN.get(self.datatype, (self.datatype,)) or not fits:
            found = f"{shorten(datatype, 60)} {quote(list(shape))}"
            raise InvalidRequest(f"input {self.name} is {found}, expected {self.datatype} {list(self.shape)}")
        if self.max_rows is not None and isinstance(size[0], int) and size[0] > self.max_rows:
            raise InvalidRequest(f"input {self.name} has {quote(size[0])} rows: at most {self.max_rows} are answered at once")

    def conform(self, array: np.ndarray) -> np.ndarray:
        """Bring a tensor that ``check`` took to the model's datatype and dimensions. Raises InvalidRequest: a value would be lost."""
        if len(self.shape) == 1:
            array = array.ravel()
        wanted = DTYPES[self.datatype]
        if array.dtype == wanted:
            return array
        if array.dtype == object:
            array = self._parse_digits(array)
        if array.dtype.kind == "f":
            return self._narrow(array)
        lowest, highest = (-_MAX_EXACT, _MAX_EXACT) if wanted.kind == "f" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
        for number in (int(array.min()), int(array.max())) if array.size else ():
            if not lowest <= number <= highest:
                raise InvalidRequest(f"input {self.name} holds {number}: expected {self.datatype}, {lowest} to {highest}")
        return array.astype(wanted)

    def _parse_digits(self, array: np.ndarray) -> np.ndarray:
        numbers = [parse_bigint(element.decode(errors="replace")) for element in array.tolist()]
        if None in numbers:
            wrong = array[numbers.index(None)]
            raise InvalidRequest(f"input {self.name} holds {quote(wrong)}: expected the decimal digits of an {self.datatype}")
        return np.array(numbers, np.int64)

    def _narrow(self, array: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            narrow = array.astype(DTYPES[self.datatype])
        beyond = np.isinf(narrow) & np.isfinite(array)
        if beyond.any():
            raise InvalidRequest(f"input {self.name} holds {array[beyond][0]}, which is beyond {self.datatype}")
        return narrow


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

    def joint_key(self, inputs: Tensors) -> Hashable | None:
        """Name the requests that ``infer_many`` can answer in one run with this one: those of equal keys. None: it runs alone."""
        lengths = {array.shape[0] if array.ndim else -1 for array in inputs.values()}
        if not self.rows_are_independent or len(lengths) != 1:
            return None
        return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))

    def infer_many(self, requests: Sequence[Tensors]) -> list[Tensors]:
        """Return what ``infer`` returns for each request of one key, within rounding, from one run. Raises as ``infer``, for all."""
        names = list(requests[0])
        outputs = self.infer({name: np.concatenate([inputs[name] for inputs in requests]) for name in names})
        ends = np.cumsum([len(inputs[names[0]]) for inputs in requests])
        parts = {name: np.split(array, ends[:-1]) for name, array in outputs.items()}
        return [{name: parts[name][n] for name in outputs} for n in range(len(requests))]

    def split(self, inputs: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        """Split a request into runs of a few milliseconds each, between which others are answered; their outputs are concatenated along
        the first dimension.
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
            raise InvalidRequest(f"model {model.name} has no input {quote(name)}; it takes {', '.join(known)}")
        known[name].check(datatype, shape)
    missing = [spec.name for spec in model.inputs if not spec.optional and spec.name not in tensors]
    if missing:
        raise InvalidRequest(f"model {model.name} lacks the input{'s' if len(missing) > 1 else ''} {', '.join(missing)}")


def conform_inputs(model: OipModel, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring inputs that ``validate_inputs`` took to what the model declares. Raises InvalidRequest: one of them cannot be."""
    specs = {spec.name: spec for spec in model.inputs}
    return {name: specs[name].conform(array) for name, array in arrays.items()}


def check_outputs(model: OipModel, names: Iterable[str]) -> None:
    """Check that outputs that a request names are the model's. Raises InvalidRequest: one is not."""
    known = [spec.name for spec in model.outputs]
    for name in names:
        if name not in known:
            raise InvalidRequest(f"model {model.name} has no output {quote(name)}; it gives {', '.join(known)}")


def count_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    """Count the bytes of tensors, a string as eight."""
    return sum(array.nbytes for array in arrays.values())
