"""The protocol over HTTP: JSON, with tensors as JSON or, by the binary extension, as bytes behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
import numpy as np

from recsys_batch import __version__
from recsys_batch.online.api.encode import to_json
from recsys_batch.online.http.router import JSON_CONTENT_TYPE, HttpError, Response, error_response
from recsys_batch.online.oip.content_encoding import decompress
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.model_api import InvalidRequest, ModelRepository, ModelUnknown, OipModel, Overloaded, validate_inputs
from recsys_batch.online.oip.tensor_codec import datatype_of, tensor_from_bytes, tensor_from_values, tensor_to_bytes, tensor_to_values

JSON_LENGTH_HEADER = "inference-header-content-length"
SERVER_NAME = "recsys_batch"
EXTENSIONS = ("binary_tensor_data",)
MAX_BODY_BYTES = 16 * 2**20
"""200 candidates of 64 dimensions are 70 kB, and a request may bring a few hundred users' worth."""


async def handle(method: str, path: str, headers: Any, body: bytes, models: ModelRepository, batching: DynamicBatcher) -> Response:
    """Answer a request to ``path``, which begins with /v2; ``headers`` has ``get`` with names in lower case."""
    try:
        return await _answered(method, path, headers, body, models, batching)
    except InvalidRequest as error:
        return error_response(400, str(error))
    except ModelUnknown as error:
        return error_response(404, str(error))
    except Overloaded as error:
        return error_response(503, str(error), (("retry-after", "1"),))
    except HttpError as error:
        return error_response(error.status, str(error), error.headers)


async def _answered(method: str, path: str, headers: Any, body: bytes, models: ModelRepository, batching: DynamicBatcher) -> Response:
    parts = [unquote(part, errors="replace") for part in path.strip("/").split("/")][1:]
    match parts:
        case []:
            _only("GET", method, path)
            return _json({"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)})
        case ["health", "live"]:
            _only("GET", method, path)
            return _json({"live": True})
        case ["health", "ready"]:
            _only("GET", method, path)
            return _json({"ready": True}) if models.ready() else error_response(503, "no snapshot is in use that is new enough to be shown")
        case ["models", name, *rest]:
            version = rest[1] if len(rest) > 1 and rest[0] == "versions" else None
            model = models.get(name, version)
            match rest[2:] if version is not None else rest:
                case []:
                    _only("GET", method, path)
                    return _json(_model_metadata(model))
                case ["ready"]:
                    _only("GET", method, path)
                    return _json({"name": model.name, "ready": True})
                case ["infer"]:
                    _only("POST", method, path)
                    return await _infer(model, headers, body, batching)
    raise HttpError(404, f"the protocol has no {path[:100]}")


def _only(wanted: str, method: str, path: str) -> None:
    if method != wanted:
        raise HttpError(405, f"{path[:100]} takes {wanted}, not {method}", ("allow", wanted))


def _model_metadata(model: OipModel) -> dict[str, Any]:
    def told(specs: Any) -> list[dict[str, Any]]:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]

    described = {"name": model.name, "versions": [model.version], "platform": "onnxruntime"}
    return {**described, "inputs": told(model.inputs), "outputs": told(model.outputs)}


async def _infer(model: OipModel, headers: Any, body: bytes, batching: DynamicBatcher) -> Response:
    request, behind = _parsed(headers, decompress(body, headers.get("content-encoding"), MAX_BODY_BYTES))
    tensors = _objects(request, "inputs")
    validate_inputs(model, {_name(one): (_datatype(one), _shape(one)) for one in tensors})
    inputs, at = {}, 0
    for one in tensors:
        inputs[one["name"]], at = _tensor(one, behind, at)
    if at != len(behind):
        raise InvalidRequest(f"{len(behind) - at} bytes follow the last tensor")
    outputs = await batching.infer(model, inputs)
    return _encoded(request, model, outputs)


def _parsed(headers: Any, body: bytes) -> tuple[dict[str, Any], bytes]:
    """(JSON, bytes behind it)."""
    told = headers.get(JSON_LENGTH_HEADER)
    length = len(body)
    if told is not None:
        if not (told.isascii() and told.isdigit() and len(told) < 12 and int(told) <= len(body)):
            raise InvalidRequest(f"{JSON_LENGTH_HEADER} is {told[:40]!r}, but the body has {len(body)} bytes")
        length = int(told)
    try:
        request = msgspec.json.decode(body[:length])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise InvalidRequest("the body is not a JSON object")
    return request, body[length:]


def _objects(request: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = request.get(key)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InvalidRequest(f"{key} must be a list of objects")
    if len({_name(one) for one in found}) < len(found):
        raise InvalidRequest(f"{key} names a tensor twice")
    return found


def _name(tensor: Mapping[str, Any]) -> str:
    name = tensor.get("name")
    if not isinstance(name, str):
        raise InvalidRequest(f"a tensor's name is {str(name)[:40]!r}: expected text")
    return name


def _datatype(tensor: Mapping[str, Any]) -> str:
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str):
        raise InvalidRequest(f"the datatype of {tensor['name']} is {str(datatype)[:40]!r}: expected text")
    return datatype


def _shape(tensor: Mapping[str, Any]) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list):
        raise InvalidRequest(f"the shape of {tensor['name']} is {str(shape)[:40]!r}: expected a list")
    return shape


def _tensor(tensor: Mapping[str, Any], behind: bytes, at: int) -> tuple[np.ndarray, int]:
    """(array, where the next one's bytes begin)."""
    name, shape = tensor["name"], tensor["shape"]
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        return tensor_from_values(name, tensor["datatype"], shape, tensor.get("data")), at
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(behind) - at:
        raise InvalidRequest(f"binary_data_size of {name} is {str(size)[:40]}, but {len(behind) - at} bytes are left")
    return tensor_from_bytes(name, tensor["datatype"], shape, behind[at : at + size]), at + size


def _parameters(thing: Mapping[str, Any]) -> Mapping[str, Any]:
    found = thing.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidRequest(f"parameters are {str(found)[:40]!r}: expected an object")
    return found


def _encoded(request: Mapping[str, Any], model: OipModel, outputs: Mapping[str, np.ndarray]) -> Response:
    everything_binary = bool(_parameters(request).get("binary_data_output"))
    wanted = {name: everything_binary for name in outputs}
    if request.get("outputs") not in (None, []):  # none named: all of them, as over gRPC
        wanted = {}
        for one in _objects(request, "outputs"):
            if one["name"] not in outputs:
                raise InvalidRequest(f"model {model.name} has no output {one['name']!r}; it gives {', '.join(outputs)}")
            wanted[one["name"]] = bool(_parameters(one).get("binary_data", everything_binary))
    described, buffers = [], []
    for name, binary in wanted.items():
        array = outputs[name]
        tensor = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if binary:
            buffers.append(tensor_to_bytes(array))
            described.append({**tensor, "parameters": {"binary_data_size": len(buffers[-1])}})
        else:
            described.append({**tensor, "data": tensor_to_values(array)})
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": described}
    if isinstance(request.get("id"), str):
        answer["id"] = request["id"]
    header = to_json(answer)
    if not buffers:
        return Response(200, header)
    kind = ("content-type", "application/octet-stream")
    return Response(200, header + b"".join(buffers), (kind, (JSON_LENGTH_HEADER, str(len(header)))))


def _json(value: Any) -> Response:
    return Response(200, to_json(value), (JSON_CONTENT_TYPE,))
