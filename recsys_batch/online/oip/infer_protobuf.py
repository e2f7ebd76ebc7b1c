"""Messages of inference over gRPC: tensors in typed or raw contents, decoded; outputs encoded raw.

Used by grpc_server.py; pure functions, so that it can run them in another thread.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from recsys_batch.online.oip import grpc_predict_v2_pb2 as messages
from recsys_batch.online.oip.model_api import InvalidRequest, OipModel, check_outputs, conform_inputs, validate_inputs
from recsys_batch.online.oip.tensor_codec import datatype_of, tensor_from_bytes, tensor_from_flat, tensor_to_bytes

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parse_infer_request(raw: bytes) -> Any:
    """Parse a ModelInferRequest. Raises InvalidRequest: the bytes are none."""
    try:
        return messages.ModelInferRequest.FromString(raw)
    except DecodeError:
        raise InvalidRequest("the message is no ModelInferRequest") from None


def decode_inputs(model: OipModel, request: Any) -> dict[str, np.ndarray]:
    """Decode the tensors of a request to what the model declares. Raises InvalidRequest: they do not fit it."""
    validate_inputs(model, {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in request.inputs})
    check_outputs(model, [tensor.name for tensor in request.outputs])
    if len({tensor.name for tensor in request.inputs}) < len(request.inputs):
        raise InvalidRequest("inputs name a tensor twice")
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(f"there are {len(raw)} raw_input_contents for {len(request.inputs)} inputs")
    arrays = {}
    for number, tensor in enumerate(request.inputs):
        name, datatype, shape = tensor.name, tensor.datatype, list(tensor.shape)
        if raw:
            arrays[name] = tensor_from_bytes(name, datatype, shape, raw[number])
        elif datatype not in _CONTENTS:
            raise InvalidRequest(f"input {name} is {datatype!r}, which has no typed contents: send raw_input_contents")
        else:
            arrays[name] = tensor_from_flat(name, datatype, shape, getattr(tensor.contents, _CONTENTS[datatype]))
    return conform_inputs(model, arrays)


def encode_outputs(model: OipModel, request: Any, outputs: Mapping[str, np.ndarray]) -> bytes:
    """Encode the outputs that are asked for, in that order; all of them where none are named. Returns a ModelInferResponse's bytes."""
    names = [tensor.name for tensor in request.outputs] or list(outputs)
    head = _encode_head(model.name, model.version, tuple((name, datatype_of(outputs[name]), outputs[name].shape) for name in names))
    raw = [tensor_to_bytes(outputs[name]) for name in names]
    # Bytes of two messages behind each other are those of one that has the fields of both.
    return head + bytes(messages.ModelInferResponse(id=request.id, raw_output_contents=raw).SerializeToString())


@functools.lru_cache(maxsize=128)
def _encode_head(name: str, version: str, tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """Encode what answers of equal shapes have in common."""
    answer = messages.ModelInferResponse(model_name=name, model_version=version)
    for tensor, datatype, shape in tensors:
        answer.outputs.add(name=tensor, datatype=datatype, shape=shape)
    return bytes(answer.SerializeToString())
