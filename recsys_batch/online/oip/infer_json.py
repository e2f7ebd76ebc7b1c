"""Bodies of inference over HTTP: JSON, with tensors as JSON or, by the binary extension, as bytes behind it.

Used by rest.py; pure functions, so that it can run them in another thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from recsys_batch.errors import quote, shorten
from recsys_batch.online.api.encode import to_json
from recsys_batch.online.http.router import Response
from recsys_batch.online.oip.bare_json import decode_bare_json
from recsys_batch.online.oip.model_api import InvalidRequest, OipModel, check_outputs, conform_inputs, validate_inputs
from recsys_batch.online.oip.tensor_codec import datatype_of, tensor_from_bytes, tensor_from_values, tensor_to_bytes, tensor_to_json

JSON_LENGTH_HEADER = "inference-header-content-length"

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded request.

    Attributes:
        inputs: as the model declares them.
        is_binary: outputs of the answer, in its order: whether they go as bytes.
        request_id: echoed; None for none.
    """

    inputs: Mapping[str, np.ndarray]
    is_binary: Mapping[str, bool]
    request_id: str | None


def decode_infer_request(model: OipModel, json_length: str | None, body: bytes) -> InferRequest:
    """Decode a body.

    Args:
        json_length: the header of that name, None where there is none.
    Raises:
        InvalidRequest, BadRequest: it does not fit the protocol or the model. HttpError: 413, more JSON than is taken.
    """
    request, binary = _split_body(json_length, body)
    request_id = request.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidRequest(f"id is {quote(request_id)}: expected text")
    is_binary = _outputs_wanted(request, model)
    tensors = _tensor_objects(request, "inputs")
    validate_inputs(model, {tensor["name"]: (_field(tensor, "datatype", str), _field(tensor, "shape", list)) for tensor in tensors})
    inputs, offset = {}, 0
    for tensor in tensors:
        inputs[tensor["name"]], offset = _decode_tensor(tensor, binary, offset)
    if offset != len(binary):
        raise InvalidRequest(f"{len(binary) - offset} bytes follow the last tensor")
    return InferRequest(conform_inputs(model, inputs), is_binary, request_id)


def encode_infer_response(model: OipModel, request: InferRequest, outputs: Mapping[str, np.ndarray]) -> Response:
    """Encode the outputs that the request asks for."""
    tensors, buffers = [], []
    for name, is_binary in request.is_binary.items():
        array = outputs[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if is_binary:
            buffers.append(tensor_to_bytes(array))
            tensors.append({**tensor, "parameters": {"binary_data_size": len(buffers[-1])}})
        else:
            tensors.append({**tensor, "data": msgspec.Raw(tensor_to_json(array))})
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": tensors}
    if request.request_id is not None:
        answer["id"] = request.request_id
    header = to_json(answer)
    if not buffers:
        return Response(200, header)
    content_type = ("content-type", "application/octet-stream")
    return Response(200, b"".join((header, *buffers)), (content_type, (JSON_LENGTH_HEADER, str(len(header)))))


def _split_body(json_length: str | None, body: bytes) -> tuple[dict[str, Any], memoryview]:
    """Split a body into (parsed JSON, binary tensors behind it)."""
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit() and len(json_length) < 12 and int(json_length) <= len(body)):
            raise InvalidRequest(f"{JSON_LENGTH_HEADER} is {quote(json_length)}, but the body has {len(body)} bytes")
        length = int(json_length)
    request = decode_bare_json(body if length == len(body) else body[:length])
    if not isinstance(request, dict):
        raise InvalidRequest("the body is not a JSON object")
    return request, memoryview(body)[length:]


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
        what = "a tensor's name" if key == "name" else f"the {key} of {shorten(tensor['name'], 60)}"
        raise InvalidRequest(f"{what} is {quote(value)}: expected {'text' if kind is str else 'a list'}")
    return value


def _decode_tensor(tensor: Mapping[str, Any], binary: memoryview, offset: int) -> tuple[np.ndarray, int]:
    """Decode a tensor; returns (array, where the next one's bytes begin)."""
    name, shape = tensor["name"], tensor["shape"]
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        return tensor_from_values(name, tensor["datatype"], shape, tensor.get("data")), offset
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary) - offset:
        raise InvalidRequest(f"binary_data_size of {name} is {quote(size)}, but {len(binary) - offset} bytes are left")
    return tensor_from_bytes(name, tensor["datatype"], shape, binary[offset : offset + size]), offset + size


def _parameters(owner: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters are {quote(parameters)}: expected an object")
    return parameters


def _outputs_wanted(request: Mapping[str, Any], model: OipModel) -> dict[str, bool]:
    """Name the outputs that are asked for, and whether as bytes; none named are all of them, as over gRPC."""
    all_binary = bool(_parameters(request).get("binary_data_output"))
    known = [spec.name for spec in model.outputs]
    if request.get("outputs") in (None, []):
        return dict.fromkeys(known, all_binary)
    wanted = _tensor_objects(request, "outputs")
    check_outputs(model, [output["name"] for output in wanted])
    return {output["name"]: bool(_parameters(output).get("binary_data", all_binary)) for output in wanted}
