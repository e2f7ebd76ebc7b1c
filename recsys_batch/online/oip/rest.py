"""The Open Inference Protocol over HTTP: JSON, with tensors as JSON or, by the binary extension, as bytes behind it.

server/worker.py puts ``OipRoutes`` among its routes. The models' semantics are model_api.py's; the other wire is grpc_server.py.
"""

import zlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from recsys_batch import __version__
from recsys_batch.errors import quote
from recsys_batch.online.api.decode import decode_json
from recsys_batch.online.api.encode import to_json
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.http.router import RETRY_AFTER, HttpError, Request, Response, Route, error_response, json_response
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.model_api import (
    InvalidRequest,
    ModelRepository,
    ModelUnknown,
    OipModel,
    Overloaded,
    TensorSpec,
    conform_inputs,
    validate_inputs,
)
from recsys_batch.online.oip.tensor_codec import datatype_of, tensor_from_bytes, tensor_from_values, tensor_to_bytes, tensor_to_values

JSON_LENGTH_HEADER = "inference-header-content-length"
SERVER_NAME = "recsys_batch"
EXTENSIONS = ("binary_tensor_data", "model_repository")
MAX_BODY_BYTES = 16 * 2**20
"""200 candidates of 64 dimensions are 70 kB, and a request may bring a few hundred users' worth."""
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32

Value = TypeVar("Value")


class OipRoutes:
    """The protocol's endpoints of one worker, all paths under /v2."""

    def __init__(self, models: ModelRepository, batcher: DynamicBatcher) -> None:
        self._models, self._batcher = models, batcher

    def routes(self) -> list[Route]:
        """Declare the endpoints; health is open, as /healthz and /readyz are. Only tensors may be long."""
        open_: dict[str, Any] = {"access": "open", "admission_controlled": False}
        models = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
        return [
            Route("GET", "/v2", self.describe_server),
            Route("GET", "/v2/health/live", self.live, **open_),
            Route("GET", "/v2/health/ready", self.ready, **open_),
            *(Route("GET", model, self.describe_model) for model in models),
            *(Route("GET", f"{model}/ready", self.model_ready) for model in models),
            *(Route("POST", f"{model}/infer", self.infer, max_body_bytes=MAX_BODY_BYTES) for model in models),
        ]

    async def describe_server(self, request: Request) -> Response:
        return json_response({"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)})

    async def live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        if not self._models.ready():
            return error_response(503, "no snapshot is in use that is new enough to be shown")
        return json_response({"ready": True})

    async def describe_model(self, request: Request) -> Response:
        return await answer_or_error(self._describe_model(request))

    async def model_ready(self, request: Request) -> Response:
        return await answer_or_error(self._model_ready(request))

    async def infer(self, request: Request) -> Response:
        return await answer_or_error(self._infer(request))

    def _find(self, request: Request) -> OipModel:
        return self._models.get(request.parameters["name"], request.parameters.get("version"))

    async def _describe_model(self, request: Request) -> Response:
        return json_response(_model_metadata(self._find(request)))

    async def _model_ready(self, request: Request) -> Response:
        return json_response({"name": self._find(request).name, "ready": True})

    async def _infer(self, request: Request) -> Response:
        return await _infer(self._find(request), request.headers, request.body, self._batcher)


async def answer_or_error(answer: Awaitable[Response]) -> Response:
    """Await an answer; errors of models become statuses."""
    try:
        return await answer
    except (InvalidRequest, BadRequest) as error:
        return error_response(400, str(error))
    except ModelUnknown as error:
        return error_response(404, str(error))
    except Overloaded as error:
        return error_response(503, str(error), (RETRY_AFTER,))


def decompress(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """Undo the Content-Encoding of a body: gzip, deflate (as zlib, RFC 9110), identity or none. No more than ``max_bytes`` are unpacked.

    Raises:
        HttpError: 415, another encoding; 413, more bytes than that. InvalidRequest: not what it says it is.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        raise HttpError(415, f"content-encoding is {quote(name)}: expected gzip, deflate or none", ("accept-encoding", "gzip, deflate"))
    decompressor = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        unpacked = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not {name}: {error}") from None
    if len(unpacked) > max_bytes:
        raise HttpError(413, f"the body has more than {max_bytes} bytes when unpacked, which is the most that is taken")
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidRequest(f"the body is not {name}: it {'has bytes behind its end' if decompressor.eof else 'ends early'}")
    return unpacked


def _model_metadata(model: OipModel) -> dict[str, Any]:
    def describe(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]

    identity = {"name": model.name, "versions": [model.version], "platform": "onnxruntime"}
    return {**identity, "inputs": describe(model.inputs), "outputs": describe(model.outputs)}


async def _infer(model: OipModel, headers: Any, body: bytes, batcher: DynamicBatcher) -> Response:
    request, binary = _split_body(headers, decompress(body, headers.get("content-encoding"), MAX_BODY_BYTES))
    tensors = _tensor_objects(request, "inputs")
    validate_inputs(model, {tensor["name"]: (_field(tensor, "datatype", str), _field(tensor, "shape", list)) for tensor in tensors})
    inputs, offset = {}, 0
    for tensor in tensors:
        inputs[tensor["name"]], offset = _decode_tensor(tensor, binary, offset)
    if offset != len(binary):
        raise InvalidRequest(f"{len(binary) - offset} bytes follow the last tensor")
    return _encode_response(request, model, await batcher.infer(model, conform_inputs(model, inputs)))


def _split_body(headers: Any, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a body into (parsed JSON, binary tensors behind it)."""
    header = headers.get(JSON_LENGTH_HEADER)
    length = len(body)
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) < 12 and int(header) <= len(body)):
            raise InvalidRequest(f"{JSON_LENGTH_HEADER} is {quote(header)}, but the body has {len(body)} bytes")
        length = int(header)
    request = decode_json(body[:length])
    if not isinstance(request, dict):
        raise InvalidRequest("the body is not a JSON object")
    return request, body[length:]


def _tensor_objects(request: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    tensors = request.get(key)
    if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
        raise InvalidRequest(f"{key} must be a list of objects")
    if len({_field(tensor, "name", str) for tensor in tensors}) < len(tensors):
        raise InvalidRequest(f"{key} names a tensor twice")
    return tensors


def _field(tensor: Mapping[str, Any], key: str, kind: type[Value]) -> Value:
    value = tensor.get(key)
    if not isinstance(value, kind):
        what = "a tensor's name" if key == "name" else f"the {key} of {quote(tensor['name'])}"
        raise InvalidRequest(f"{what} is {quote(value)}: expected {'text' if kind is str else 'a list'}")
    return value


def _decode_tensor(tensor: Mapping[str, Any], binary: bytes, offset: int) -> tuple[np.ndarray, int]:
    """Decode a tensor; returns (array, where the next one's bytes begin)."""
    name, shape = tensor["name"], tensor["shape"]
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        return tensor_from_values(name, tensor["datatype"], shape, tensor.get("data")), offset
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary) - offset:
        raise InvalidRequest(f"binary_data_size of {quote(name)} is {quote(size)}, but {len(binary) - offset} bytes are left")
    return tensor_from_bytes(name, tensor["datatype"], shape, binary[offset : offset + size]), offset + size


def _parameters(owner: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters are {quote(parameters)}: expected an object")
    return parameters


def _encode_response(request: Mapping[str, Any], model: OipModel, outputs: Mapping[str, np.ndarray]) -> Response:
    all_binary = bool(_parameters(request).get("binary_data_output"))
    is_binary = dict.fromkeys(outputs, all_binary)
    if request.get("outputs") not in (None, []):  # none named: all of them, as over gRPC
        is_binary = {}
        for output in _tensor_objects(request, "outputs"):
            if output["name"] not in outputs:
                raise InvalidRequest(f"model {model.name} has no output {quote(output['name'])}; it gives {', '.join(outputs)}")
            is_binary[output["name"]] = bool(_parameters(output).get("binary_data", all_binary))
    tensors, buffers = [], []
    for name, binary in is_binary.items():
        array = outputs[name]
        tensor = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if binary:
            buffers.append(tensor_to_bytes(array))
            tensors.append({**tensor, "parameters": {"binary_data_size": len(buffers[-1])}})
        else:
            tensors.append({**tensor, "data": tensor_to_values(array)})
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": tensors}
    if isinstance(request.get("id"), str):
        answer["id"] = request["id"]
    header = to_json(answer)
    if not buffers:
        return Response(200, header)
    content_type = ("content-type", "application/octet-stream")
    return Response(200, header + b"".join(buffers), (content_type, (JSON_LENGTH_HEADER, str(len(header)))))
