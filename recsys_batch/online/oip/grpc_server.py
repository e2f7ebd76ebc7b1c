"""The Open Inference Protocol over gRPC, in a process of its own: grpc.aio's poller does not share one with a web server's loop
(grpc#42357).

server/supervisor.py starts it as a module. The models' semantics are model_api.py's; the other wire is rest.py.
"""

import asyncio
import functools
import hmac
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from recsys_batch import __version__, logs
from recsys_batch.errors import InputMissing, RecsysBatchError
from recsys_batch.online import metrics
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.oip import grpc_predict_v2_pb2 as messages
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.model_api import InvalidRequest, ModelRepository, ModelUnknown, Overloaded, conform_inputs, validate_inputs
from recsys_batch.online.oip.rest import EXTENSIONS, SERVER_NAME
from recsys_batch.online.oip.snapshot_models import SnapshotModels
from recsys_batch.online.oip.snapshot_repository import SnapshotRepository
from recsys_batch.online.oip.tensor_codec import datatype_of, tensor_from_bytes, tensor_from_values, tensor_to_bytes
from recsys_batch.online.runtime.loop_monitor import LoopMonitor
from recsys_batch.online.runtime.parent_watch import end_with_parent
from recsys_batch.online.runtime.process_marks import mark_started
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.serving.worker_state import drop_dead_worker_gauges
from recsys_batch.online.settings import ADMIN_TOKEN, CLIENT_TOKEN, LOAD_LOCK, ServerSettings, settings_from_environment
from recsys_batch.online.snapshot.live_overlay import live_opener
from recsys_batch.online.snapshot.redis_store import open_remote_store

logger = logging.getLogger("recsys_batch.online")

_MAX_BYTES = 16 * 2**20
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


class Servicer:
    """Implements inference.GRPCInferenceService: a request message in, an answer message out."""

    def __init__(self, models: ModelRepository, batcher: DynamicBatcher, snapshots: SnapshotRepository) -> None:
        self._models, self._batcher, self._snapshots = models, batcher, snapshots

    async def ServerLive(self, request: Any) -> Any:  # noqa: N802
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any) -> Any:  # noqa: N802
        return messages.ServerReadyResponse(ready=self._models.ready())

    async def ModelReady(self, request: Any) -> Any:  # noqa: N802
        try:
            self._models.get(request.name, request.version or None)
        except ModelUnknown:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any) -> Any:  # noqa: N802
        return messages.ServerMetadataResponse(name=SERVER_NAME, version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: Any) -> Any:  # noqa: N802
        model = self._models.get(request.name, request.version or None)
        metadata = messages.ModelMetadataResponse(name=model.name, versions=[model.version], platform="onnxruntime")
        for specs, field in ((model.inputs, metadata.inputs), (model.outputs, metadata.outputs)):
            for spec in specs:
                field.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return metadata

    async def ModelInfer(self, request: Any) -> Any:  # noqa: N802
        model = self._models.get(request.model_name, request.model_version or None)
        validate_inputs(model, {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in request.inputs})
        outputs = await self._batcher.infer(model, conform_inputs(model, _decode_inputs(request)))
        answer = messages.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
        for name in [tensor.name for tensor in request.outputs] or outputs:
            if name not in outputs:
                raise InvalidRequest(f"model {model.name} has no output {name!r}; it gives {', '.join(outputs)}")
            answer.outputs.add(name=name, datatype=datatype_of(outputs[name]), shape=outputs[name].shape)
            answer.raw_output_contents.append(tensor_to_bytes(outputs[name]))
        return answer

    async def RepositoryIndex(self, request: Any) -> Any:  # noqa: N802
        return messages.RepositoryIndexResponse(models=self._snapshots.index(request.ready))

    async def RepositoryModelLoad(self, request: Any) -> Any:  # noqa: N802
        parameters = {name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in request.parameters.items()}
        await self._snapshots.load(request.model_name, parameters)
        return messages.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any) -> Any:  # noqa: N802
        await self._snapshots.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()


def _decode_inputs(request: Any) -> dict[str, np.ndarray]:
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
            arrays[name] = tensor_from_values(name, datatype, shape, list(getattr(tensor.contents, _CONTENTS[datatype])))
    return arrays


_STATUS = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelUnknown: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    InputMissing: grpc.StatusCode.NOT_FOUND,
    RecsysBatchError: grpc.StatusCode.FAILED_PRECONDITION,
}
_OPEN_METHODS = ("ServerLive", "ServerReady")
"""Asked without a token, as /v2/health is."""
_CLIENT_METHODS = ("ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
_ADMIN_METHODS = ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")


def make_handlers(servicer: Servicer, client_token: str | None, admin_token: str | None) -> grpc.GenericRpcHandler:
    """Make the service's handlers; every error becomes a status with a sentence.

    Args:
        client_token: what clients must send; None for nothing.
        admin_token: what the admin must send, and clients may; None where nobody is admin.
    """
    accepted = {
        **dict.fromkeys(_OPEN_METHODS),
        **dict.fromkeys(_CLIENT_METHODS, [token for token in (client_token, admin_token) if token] if client_token else None),
        **dict.fromkeys(_ADMIN_METHODS, [admin_token] if admin_token else []),
    }
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            _guard(getattr(servicer, name), tokens),
            request_deserializer=getattr(messages, f"{name}Request").FromString,
            response_serializer=getattr(messages, f"{name}Response").SerializeToString,
        )
        for name, tokens in accepted.items()
    }
    return grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)


def _guard(method: Callable[[Any], Any], tokens: list[str] | None) -> Callable[[Any, Any], Any]:
    """Wrap a method of the service.

    Args:
        tokens: one of which is needed; None where everybody may, empty where nobody may.
    """

    async def call(request: Any, context: Any) -> Any:
        if tokens == []:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"this server was started without an admin token ({ADMIN_TOKEN})")
        if tokens is not None and not _has_token(tokens, dict(context.invocation_metadata() or ())):
            whose = "admin's" if method.__name__ in _ADMIN_METHODS else "client's"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"this needs the {whose} token as metadata `authorization: Bearer TOKEN`")
        try:
            return await method(request)
        except tuple(_STATUS) as error:
            await context.abort(next(status for kind, status in _STATUS.items() if isinstance(error, kind)), str(error))
        except Exception:
            logger.exception("%s over gRPC failed", method.__name__)
            await context.abort(grpc.StatusCode.INTERNAL, "something went wrong here; the server's log says what")

    return call


def _has_token(tokens: list[str], metadata: Mapping[str, Any]) -> bool:
    scheme, _, sent_token = str(metadata.get("authorization", "")).partition(" ")
    return scheme.lower() == "bearer" and any(hmac.compare_digest(sent_token.strip().encode(), token.encode()) for token in tokens)


async def run_grpc_server(settings: ServerSettings) -> None:
    """Serve until SIGTERM, following snapshots as the HTTP workers do.

    Raises:
        RecsysBatchError: the address cannot be listened on.
    """
    open_remote, state = functools.partial(open_remote_store, settings), Path(settings.state)
    seconds = settings.poll_ms / 1000
    manager = SnapshotManager(Path(settings.snapshots), open_remote, state / LOAD_LOCK, live_opener(settings), poll_seconds=seconds)
    with manager.looks.round():
        await manager.poll()
    models = SnapshotModels(manager, settings.max_k, FreshnessPolicy(settings.max_age_hours, settings.max_age_hard_hours))
    batcher = DynamicBatcher(settings.batch_rows, settings.batch_delay_us / 1e6, settings.max_waiting)
    # The supervisor has the port, and nobody but its own processes may share it.
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", _MAX_BYTES), ("grpc.so_reuseport", 1)])
    servicer = Servicer(models, batcher, SnapshotRepository(manager, state))
    tokens = os.environ.get(CLIENT_TOKEN) or None, os.environ.get(ADMIN_TOKEN) or None
    server.add_generic_rpc_handlers((make_handlers(servicer, *tokens),))
    _listen(server, settings)
    await server.start()
    mark_started(state, "grpc")
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)

    async def report() -> None:
        metrics.count_failed_rounds()
        metrics.show_last_look("grpc", manager.looks)

    reports = LoopMonitor("reporting metrics")
    tasks = [asyncio.create_task(looks.repeat(do, seconds)) for looks, do in ((manager.looks, manager.poll), (reports, report))]
    await ending.wait()
    await server.stop(grace=2)
    for task in tasks:
        task.cancel()


def _listen(server: grpc.aio.Server, settings: ServerSettings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address, credentials = f"{host}:{settings.grpc_port}", load_credentials(settings)
    try:
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise RecsysBatchError(f"gRPC cannot listen on {address}: {error}") from None


def load_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """Read the certificate that HTTP has, too; None where there is none."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    pair = settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes()
    authorities = settings.tls_client_ca.read_bytes() if settings.tls_client_ca is not None else None
    return grpc.ssl_server_credentials([pair], root_certificates=authorities, require_client_auth=authorities is not None)


def grpc_main() -> None:
    """Run the process that ``serve`` starts."""
    logs.configure(os.environ.get("RECSYS_BATCH_LOG_FORMAT", "text"))
    settings = settings_from_environment()
    end_with_parent(settings.server_pid, "the server")
    drop_dead_worker_gauges(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    try:
        asyncio.run(run_grpc_server(settings))
    except RecsysBatchError as error:
        logger.error("%s", error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    grpc_main()
