"""Wire formats of model servers: a batch of candidates in, its scores out, float32 [B, d], [B, C, d], [B, C, F] -> [B, C]."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import msgspec
import numpy as np

from recsys_batch.ranking.onnx_ranker import INPUTS, OUTPUT

_JSON = {"Content-Type": "application/json"}
_HEADER_LENGTH = "Inference-Header-Content-Length"


class BadAnswer(Exception):
    """A server answered with something that is no scores."""


class WireRequest(NamedTuple):
    """A POST of scores; path below the server's address."""

    path: str
    headers: dict[str, str]
    body: bytes


class WireFormat(Protocol):
    """How one kind of model server is spoken to."""

    def encode(self, model: str, version: str, arrays: tuple[np.ndarray, ...]) -> WireRequest:
        """Encode the arrays of INPUTS, for one version of a model."""

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        """Decode scores, of any shape, by headers whose case does not matter. Raises BadAnswer: none are there."""

    def version_path(self, model: str, version: str) -> str:
        """Give the path that answers 200 where the server has the version ready."""


class OpenInference:
    """The Open Inference Protocol: with binary tensors, Triton's extension, or as JSON, which is all that MLServer takes."""

    def __init__(self, *, binary: bool = True) -> None:
        self._binary = binary

    def encode(self, model: str, version: str, arrays: tuple[np.ndarray, ...]) -> WireRequest:
        tensors: list[dict[str, Any]] = [
            {"name": name, "datatype": "FP32", "shape": array.shape} for name, array in zip(INPUTS, arrays, strict=True)
        ]
        path = self._infer_path(model, version)
        if not self._binary:
            for tensor, array in zip(tensors, arrays, strict=True):
                tensor["data"] = array.ravel().tolist()
            return WireRequest(path, _JSON, msgspec.json.encode({"inputs": tensors, "outputs": [{"name": OUTPUT}]}))
        raw = [np.ascontiguousarray(array, "<f4").tobytes() for array in arrays]
        for tensor, content in zip(tensors, raw, strict=True):
            tensor["parameters"] = {"binary_data_size": len(content)}
        head = msgspec.json.encode({"inputs": tensors, "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}]})
        return WireRequest(path, {_HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}, b"".join((head, *raw)))

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        n_head = headers.get(_HEADER_LENGTH)
        head = _decode_object(body if n_head is None else body[: int(n_head)])
        try:
            (output,) = (output for output in head["outputs"] if output["name"] == OUTPUT)
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                return np.array(output["data"], dtype=np.float32).reshape(output["shape"])
            start = int(n_head or 0)
            return np.frombuffer(body[start : start + size], "<f4").reshape(output["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(f"no output {OUTPUT}: {error}") from None

    def version_path(self, model: str, version: str) -> str:
        return f"{self._version_path(model, version)}/ready"

    def _infer_path(self, model: str, version: str) -> str:
        return f"{self._version_path(model, version)}/infer"

    def _version_path(self, model: str, version: str) -> str:
        return f"/v2/models/{quote(model, safe='')}/versions/{quote(version, safe='')}"


class TorchServe(OpenInference):
    """TorchServe with the handler of ``export-model``: binary tensors at the path of predictions, whose version it looks at."""

    def version_path(self, model: str, version: str) -> str:
        return f"/predictions/{quote(model, safe='')}/{quote(version, safe='')}"

    def _infer_path(self, model: str, version: str) -> str:
        return self.version_path(model, version)


class TensorFlowServing:
    """TensorFlow Serving's REST, columns of nested lists; it takes no binary tensors there."""

    def encode(self, model: str, version: str, arrays: tuple[np.ndarray, ...]) -> WireRequest:
        columns = {name: array.tolist() for name, array in zip(INPUTS, arrays, strict=True)}
        return WireRequest(f"{self.version_path(model, version)}:predict", _JSON, msgspec.json.encode({"inputs": columns}))

    def decode(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        answer = _decode_object(body)
        try:
            outputs = answer["outputs"]
            return np.array(outputs[OUTPUT] if isinstance(outputs, dict) else outputs, dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(f"no outputs: {error}") from None

    def version_path(self, model: str, version: str) -> str:
        return f"/v1/models/{quote(model, safe='')}/versions/{quote(version, safe='')}"


def _decode_object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadAnswer(f"no JSON object: {error}") from None
