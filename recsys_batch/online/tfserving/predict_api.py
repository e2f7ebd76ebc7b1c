"""TensorFlow Serving's REST API over our models: status, metadata and predict, with its paths, bodies and statuses.

server/worker.py puts ``TfServingRoutes`` among its routes. The models' semantics are oip/model_api.py's. What is answered was written from
that server's documentation and sources (api_rest.md, http_rest_api_util.cc).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recsys_batch.errors import quote, shorten
from recsys_batch.online.api.encode import to_json
from recsys_batch.online.http.router import Request, Response, Route, json_response
from recsys_batch.online.oip.content_encoding import MAX_BODY_BYTES, unpack_body
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.model_api import (
    InvalidRequest,
    ModelRepository,
    OipModel,
    TensorSpec,
    conform_inputs,
    count_bytes,
    validate_inputs,
)
from recsys_batch.online.oip.offload import run_by_size
from recsys_batch.online.oip.rest import answer_or_error
from recsys_batch.online.serving.admission import Admission
from recsys_batch.online.tfserving.json_tensor import is_base64_object, parse_json_object, rows_to_json, tensor_from_json

_PATH = re.compile(r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>[^/:]+)|/labels/(?P<label>[^/:]+))?(?P<action>/metadata|:predict)?")
_SIGNATURE = "serving_default"
_DTYPES = {"FP32": "DT_FLOAT", "INT32": "DT_INT32", "INT64": "DT_INT64", "BYTES": "DT_STRING"}


class TfServingRoutes:
    """The API's endpoints of one worker, all paths under /v1/models.

    Args:
        large_bodies: bytes of bodies that the worker has room for.
    """

    def __init__(self, models: ModelRepository, batcher: DynamicBatcher, large_bodies: Admission) -> None:
        self._models, self._batcher, self._large_bodies = models, batcher, large_bodies

    def routes(self) -> list[Route]:
        """Declare the endpoints."""
        predict = Route("POST", "/v1/models/{rest*}:predict", self.answer, max_body_bytes=MAX_BODY_BYTES)
        return [predict, Route("*", "/v1/models/{rest*}", self.answer)]

    async def answer(self, request: Request) -> Response:
        """Answer a request to a path that begins with /v1/models."""
        return await answer_or_error(self._dispatch(request))

    async def _dispatch(self, request: Request) -> Response:
        path = _PATH.fullmatch(request.path)
        match request.method, path and path["action"]:
            case "GET", None if path:
                return json_response(self._status(path))
            case "GET", "/metadata" if path:
                return json_response(_metadata(self._find(path)))
            case "POST", ":predict" if path:
                return await self._predict(self._find(path), request)
        raise InvalidRequest(f"Malformed request: {shorten(request.method, 20)} {shorten(request.path, 100)}")

    async def _predict(self, model: OipModel, request: Request) -> Response:
        with model.lease():
            async with unpack_body(request, self._large_bodies) as body:
                is_by_row, inputs = await run_by_size(len(body), _decode_predict, model, body)
                outputs = await self._batcher.infer(model, inputs, request.client_left)
        return Response(200, await run_by_size(count_bytes(outputs), _encode_rows if is_by_row else _encode_columns, outputs))

    def _find(self, path: re.Match[str]) -> OipModel:
        if path["label"] is None:
            return self._models.get(path["name"], path["version"])
        labelled = self._models.labelled(path["name"])
        if path["label"] not in labelled:
            raise InvalidRequest(f"Unrecognized servable version label: {shorten(path['label'], 100)}")
        return labelled[path["label"]]

    def _status(self, path: re.Match[str]) -> dict[str, Any]:
        is_one = path["version"] is not None or path["label"] is not None
        models = [self._find(path)] if is_one else self._models.labelled(path["name"]).values()
        numbers = sorted({model.version_number for model in models}, reverse=True)
        healthy = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        return {"model_version_status": [{"version": str(number), **healthy} for number in numbers]}


def _metadata(model: OipModel) -> dict[str, Any]:
    def describe(specs: Sequence[TensorSpec]) -> dict[str, Any]:
        return {spec.name: _tensor_info(spec) for spec in specs}

    signature = {"inputs": describe(model.inputs), "outputs": describe(model.outputs), "method_name": "tensorflow/serving/predict"}
    model_spec = {"name": model.name, "signature_name": "", "version": str(model.version_number)}
    return {"model_spec": model_spec, "metadata": {"signature_def": {"signature_def": {_SIGNATURE: signature}}}}


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in spec.shape]
    return {"dtype": _DTYPES[spec.datatype], "tensor_shape": {"dim": dims, "unknown_rank": False}, "name": f"{spec.name}:0"}


def _decode_predict(model: OipModel, body: bytes) -> tuple[bool, dict[str, np.ndarray]]:
    """Decode a body into (whether by row, inputs). Raises InvalidRequest: it does not fit the API or the model."""
    request = parse_json_object(body)
    signature = request.get("signature_name", _SIGNATURE)
    if signature not in ("", _SIGNATURE):
        raise InvalidRequest(f"Serving signature name: {quote(signature)} not found in signature def: use {_SIGNATURE}")
    if ("instances" in request) == ("inputs" in request):
        raise InvalidRequest("expected either the key instances (row format) or the key inputs (columnar format), and not both")
    is_by_row = "instances" in request
    values = _join_rows(model, request["instances"]) if is_by_row else _pick_columns(model, request["inputs"])
    datatypes = {spec.name: spec.datatype for spec in model.inputs}
    inputs = {name: tensor_from_json(name, datatypes[name], value) for name, value in values.items()}
    validate_inputs(model, {name: (datatypes[name], array.shape) for name, array in inputs.items()})
    return is_by_row, conform_inputs(model, inputs)


def _join_rows(model: OipModel, rows: Any) -> dict[str, list[Any]]:
    """Join rows into columns. Raises InvalidRequest: none, or rows that do not name the inputs, all the same ones."""
    if not isinstance(rows, list) or not rows:
        raise InvalidRequest(f"instances is {quote(rows)}: expected a list with one row or more")
    if not _is_named(rows[0]):
        return {_only_input(model): rows}
    known, required = {spec.name for spec in model.inputs}, {spec.name for spec in model.inputs if not spec.optional}
    names = set(rows[0])
    if not required <= names <= known:
        raise InvalidRequest(f"a row names {shorten(', '.join(sorted(names)), 200) or 'nothing'}; {_inputs(model)}, and nothing else")
    if not all(_is_named(row) and set(row) == names for row in rows):
        raise InvalidRequest(f"the first row names {', '.join(sorted(names))}: expected the same inputs in every row")
    columns = {name: [row[name] for row in rows] for name in sorted(names)}
    for spec in model.inputs:
        if spec.name in names and spec.shape[0] == 1:  # of the request, not of a row
            if any(value != columns[spec.name][0] for value in columns[spec.name]):
                raise InvalidRequest(f"input {spec.name} differs between rows: a request has one")
            del columns[spec.name][1:]
    return columns


def _pick_columns(model: OipModel, columns: Any) -> dict[str, Any]:
    """Pick the model's inputs, whatever stands beside them."""
    if not _is_named(columns):
        return {_only_input(model): columns}
    return {spec.name: columns[spec.name] for spec in model.inputs if spec.name in columns}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64_object(value)


def _only_input(model: OipModel) -> str:
    required = [spec.name for spec in model.inputs if not spec.optional]
    if len(required) > 1:
        raise InvalidRequest(f"values without names are for models with one input; {_inputs(model)}")
    return required[0]


def _inputs(model: OipModel) -> str:
    return f"model {model.name} takes " + ", ".join(f"{spec.name}{' (optional)' if spec.optional else ''}" for spec in model.inputs)


def _encode_rows(outputs: Mapping[str, np.ndarray]) -> bytes:
    """Encode outputs row by row; a single one without its name."""
    names = [to_json(name) for name in outputs]
    columns = [rows_to_json(array) for array in outputs.values()]
    if len(columns) == 1:
        rows = columns[0]
    else:
        rows = [b"{" + b",".join(b":".join(field) for field in zip(names, row, strict=True)) + b"}" for row in zip(*columns, strict=True)]
    return b'{"predictions":[' + b",".join(rows) + b"]}"


def _encode_columns(outputs: Mapping[str, np.ndarray]) -> bytes:
    """Encode outputs whole; a single one without its name."""
    columns = {name: b"[" + b",".join(rows_to_json(array)) + b"]" for name, array in outputs.items()}
    if len(columns) == 1:
        whole = next(iter(columns.values()))
    else:
        whole = b"{" + b",".join(to_json(name) + b":" + column for name, column in columns.items()) + b"}"
    return b'{"outputs":' + whole + b"}"
