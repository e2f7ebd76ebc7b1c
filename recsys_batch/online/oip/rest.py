"""The Open Inference Protocol over HTTP: its paths, and errors of models as statuses.

server/worker.py puts ``OipRoutes`` among its routes. The models' semantics are model_api.py's, bodies infer_json.py's; the other wire is
grpc_server.py.
"""

from collections.abc import Awaitable, Sequence
from typing import Any
from urllib.parse import unquote

from recsys_batch import __version__
from recsys_batch.errors import shorten
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.http.router import HttpError, Request, Response, Route, error_response, json_response
from recsys_batch.online.oip.content_encoding import MAX_BODY_BYTES, unpack_body
from recsys_batch.online.oip.dynamic_batcher import ClientLeft, DynamicBatcher
from recsys_batch.online.oip.infer_json import JSON_LENGTH_HEADER, decode_infer_request, encode_infer_response
from recsys_batch.online.oip.model_api import InvalidRequest, ModelRepository, ModelUnknown, OipModel, TensorSpec, count_bytes
from recsys_batch.online.oip.offload import run_by_size
from recsys_batch.online.serving.admission import Admission

SERVER_NAME = "recsys_batch"
EXTENSIONS = ("binary_tensor_data", "model_repository")
CLIENT_LEFT = 499
"""Status that nobody receives, in metrics."""
_MAX_MESSAGE_LENGTH = 1000


class OipRoutes:
    """The protocol's endpoints of one worker, all paths under /v2.

    Args:
        large_bodies: bytes of bodies that the worker has room for.
    """

    def __init__(self, models: ModelRepository, batcher: DynamicBatcher, large_bodies: Admission) -> None:
        self._models, self._batcher, self._large_bodies = models, batcher, large_bodies

    def routes(self) -> list[Route]:
        """Declare the endpoints; health is open, as /healthz and /readyz are."""
        health = [Route("GET", f"/v2/health/{name}", self.answer, access="open", admission_controlled=False) for name in ("live", "ready")]
        rest = [Route("*", path, self.answer, max_body_bytes=MAX_BODY_BYTES) for path in ("/v2", "/v2/{rest*}")]
        return [*health, *rest]

    async def answer(self, request: Request) -> Response:
        """Answer a request to a path that begins with /v2."""
        return await answer_or_error(self._dispatch(request))

    async def _dispatch(self, request: Request) -> Response:
        method, path = request.method, request.path
        match [unquote(part, errors="replace") for part in path.strip("/").split("/")][1:]:
            case []:
                _require_method("GET", method, path)
                return json_response({"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)})
            case ["health", "live"]:
                _require_method("GET", method, path)
                return json_response({"live": True})
            case ["health", "ready"]:
                _require_method("GET", method, path)
                if not self._models.ready():
                    return error_response(503, "no snapshot is in use that is new enough to be shown")
                return json_response({"ready": True})
            case ["models", name, *rest]:
                version = rest[1] if len(rest) > 1 and rest[0] == "versions" else None
                model = self._models.get(name, version)
                match rest[2:] if version is not None else rest:
                    case []:
                        _require_method("GET", method, path)
                        return json_response(_model_metadata(model))
                    case ["ready"]:
                        _require_method("GET", method, path)
                        return json_response({"name": model.name, "ready": True})
                    case ["infer"]:
                        _require_method("POST", method, path)
                        return await self._infer(model, request)
        raise HttpError(404, f"the protocol has no {shorten(path, 100)}")

    async def _infer(self, model: OipModel, request: Request) -> Response:
        with model.lease():
            async with unpack_body(request, self._large_bodies) as body:
                json_length = request.headers.get(JSON_LENGTH_HEADER)
                decoded = await run_by_size(len(body), decode_infer_request, model, json_length, body)
                outputs = await self._batcher.infer(model, decoded.inputs, request.client_left)
        return await run_by_size(count_bytes(outputs), encode_infer_response, model, decoded, outputs)


async def answer_or_error(answer: Awaitable[Response]) -> Response:
    """Await an answer; errors of models become statuses."""
    try:
        return await answer
    except (InvalidRequest, BadRequest) as error:
        return error_response(400, shorten(str(error), _MAX_MESSAGE_LENGTH))
    except ModelUnknown as error:
        return error_response(404, shorten(str(error), _MAX_MESSAGE_LENGTH))
    except ClientLeft as error:
        return error_response(CLIENT_LEFT, str(error))


def _require_method(required: str, method: str, path: str) -> None:
    if method != required:
        raise HttpError(405, f"{shorten(path, 100)} takes {required}, not {method}", ("allow", required))


def _model_metadata(model: OipModel) -> dict[str, Any]:
    def describe(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]

    identity = {"name": model.name, "versions": [model.version], "platform": "onnxruntime"}
    return {**identity, "inputs": describe(model.inputs), "outputs": describe(model.outputs)}
