"""The Open Inference Protocol over HTTP: its paths, and errors of models as statuses.

server/worker.py puts ``OipRoutes`` among its routes. The models' semantics are model_api.py's, bodies infer_json.py's; the other wire is
grpc_server.py.
"""

from collections.abc import Awaitable, Sequence
from typing import Any

from recsys_batch import __version__
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.http.router import ClientGone, Request, Response, Route, error_response, json_response
from recsys_batch.online.oip.content_encoding import MAX_BODY_BYTES, unpack_body
from recsys_batch.online.oip.dynamic_batcher import ClientLeft, DynamicBatcher
from recsys_batch.online.oip.infer_json import JSON_LENGTH_HEADER, decode_infer_request, encode_infer_response
from recsys_batch.online.oip.model_api import InvalidRequest, ModelRepository, ModelUnknown, OipModel, TensorSpec, count_bytes
from recsys_batch.online.oip.offload import run_by_size
from recsys_batch.online.serving.admission import Admission

SERVER_NAME = "recsys_batch"
EXTENSIONS = ("binary_tensor_data", "model_repository")


class OipRoutes:
    """The protocol's endpoints of one worker, all paths under /v2.

    Args:
        large_bodies: bytes of bodies that the worker has room for.
    """

    def __init__(self, models: ModelRepository, batcher: DynamicBatcher, large_bodies: Admission) -> None:
        self._models, self._batcher, self._large_bodies = models, batcher, large_bodies

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
        model = self._find(request)
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
        return error_response(400, str(error))
    except ModelUnknown as error:
        return error_response(404, str(error))
    except ClientLeft as error:
        raise ClientGone(str(error)) from None


def _model_metadata(model: OipModel) -> dict[str, Any]:
    def describe(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]

    identity = {"name": model.name, "versions": [model.version], "platform": "onnxruntime"}
    return {**identity, "inputs": describe(model.inputs), "outputs": describe(model.outputs)}
