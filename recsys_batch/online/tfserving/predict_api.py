"""TensorFlow Serving's REST API over our models: status, metadata and predict, with its paths, bodies and statuses.

server/worker.py puts ``TfServingRoutes`` among its routes. The models' semantics are oip/model_api.py's. What is answered was written from
that server's documentation and sources (api_rest.md, http_rest_api_util.cc).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recsys_batch.errors import quote, shorten
from recsys_batch.online.http.router import Request, Response, Route, json_response
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.model_api import InvalidRequest, ModelRepository, OipModel, TensorSpec, validate_inputs
from recsys_batch.online.oip.rest import MAX_BODY_BYTES, answer_or_error, decompress
from recsys_batch.online.tfserving.json_tensor import is_base64_object, parse_json_object, tensor_from_json, tensor_to_json, to_bare_json

_PATH = re.compile(r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>[^/:]+)|/labels/(?P<label>[^/:]+))?(?P<action>/metadata|:predict)?")
_SIGNATURE = "serving_default"
_DTYPES = {"FP32": "DT_FLOAT", "INT32": "DT_INT32", "INT64": "DT_INT64", "BYTES": "DT_STRING"}


class TfServingRoutes:
    """The API's endpoints of one worker, all paths under /v1/models."""

    def __init__(self, models: ModelRepository, batcher: DynamicBatcher) -> None:
        self._models, self._batcher = models, batcher

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
                body = decompress(request.body, request.headers.get("content-encoding"), MAX_BODY_BYTES)
                return await _predict(self._find(path), parse_json_object(body), self._batcher)
        raise InvalidRequest(f"Malformed request: {shorten(request.method, 20)} {shorten(request.path, 100)}")

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


async def _predict(model: OipModel, request: Mapping[str, Any], batcher: DynamicBatcher) -> Response:
    if request.get("signature_name", _SIGNATURE) not in ("", _SIGNATURE):
        raise InvalidRequest(f"Serving signature name: {quote(request['signature_name'])} not found in signature def: use {_SIGNATURE}")
    if ("instances" in request) == ("inputs" in request):
        raise InvalidRequest("expected either the key instances (row format) or the key inputs (columnar format), and not both")
    is_by_row = "instances" in request
    values = _join_rows(model, request["instances"]) if is_by_row else _pick_columns(model, request["inputs"])
    datatypes = {spec.name: spec.datatype for spec in model.inputs}
    inputs = {name: tensor_from_json(name, datatypes[name], value) for name, value in values.items()}
    validate_inputs(model, {name: (datatypes[name], array.shape) for name, array in inputs.items()})
    outputs = await batcher.infer(model, inputs)
    return Response(200, to_bare_json(_predictions(outputs) if is_by_row else _columns(outputs)))


def _join_rows(model: OipModel, rows: Any) -> dict[str, list[Any]]:
    """Join rows into columns. Raises InvalidRequest: none, or rows that do not name the inputs, all the same ones."""
    if not isinstance(rows, list) or not rows:
        raise InvalidRequest(f"instances is {quote(rows)}: expected a list with one row or more")
    if not _is_named(rows[0]):
        return {_only_input(model): rows}
    known, required = {spec.name for spec in model.inputs}, {spec.name for spec in model.inputs if not spec.optional}
    names = set(rows[0])
    if not required <= names <= known:
        raise InvalidRequest(f"a row names {', '.join(sorted(names)) or 'nothing'}; {_inputs(model)}, and nothing else")
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


def _predictions(outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Encode outputs row by row; a single one without its name."""
    columns = [tensor_to_json(array) for array in outputs.values()]
    if len(columns) == 1:
        return {"predictions": columns[0]}
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]}


def _columns(outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Encode outputs whole; a single one without its name."""
    columns = {name: tensor_to_json(array) for name, array in outputs.items()}
    return {"outputs": next(iter(columns.values())) if len(columns) == 1 else columns}
