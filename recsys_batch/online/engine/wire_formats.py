"""Wire formats of model servers: a batch of candidates in, its scores out, float32 [B, d], [B, C, d], [B, C, F] -> [B, C]."""

from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import msgspec
import numpy as np

from recsys_batch.ranking.onnx_ranker import INPUTS, OUTPUT

_JSON = {"Content-Type": "application/json"}


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

    def decode(self, headers: dict[str, str], body: bytes) -> np.ndarray:
        """Decode scores, of any shape. Raises BadAnswer: none are there."""

    def version_path(self, model: str, version: str) -> str:
        """Give the path that answers 200 where the server has the version ready."""


class OpenInference:
    """The Open Inference Protocol with binary tensors: Triton, and whoever else takes them."""

    def encode(self, model: str, version: str, arrays: tuple[np.ndarray, ...]) -> WireRequest:
        raw = [np.ascontiguousarray(array, "<f4").tobytes() for array in arrays]
        inputs = [
            {"name": name, "datatype": "FP32", "shape": array.shape, "parameters": {"binary_data_size": len(content)}}
            for name, array, content in zip(INPUTS, arrays, raw, strict=True)
        ]
        head = msgspec.json.encode({"inputs": inputs, "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}]})
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        return WireRequest(f"{self._path(model, version)}/infer", headers, b"".join((head, *raw)))

    def decode(self, headers: dict[str, str], body: bytes) -> np.ndarray:
        n_head = headers.get("Inference-Header-Content-Length")
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
        return f"{self._path(model, version)}/ready"

    def _path(self, model: str, version: str) -> str:
        return f"/v2/models/{quote(model, safe='')}/versions/{quote(version, safe='')}"


class TensorFlowServing:
    """TensorFlow Serving's REST, columns of nested lists; it takes no binary tensors there."""

    def encode(self, model: str, version: str, arrays: tuple[np.ndarray, ...]) -> WireRequest:
        columns = {name: array.tolist() for name, array in zip(INPUTS, arrays, strict=True)}
        return WireRequest(f"{self.version_path(model, version)}:predict", _JSON, msgspec.json.encode({"inputs": columns}))

    def decode(self, headers: dict[str, str], body: bytes) -> np.ndarray:
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
