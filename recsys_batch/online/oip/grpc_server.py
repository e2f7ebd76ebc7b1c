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
from typing import Any, NoReturn

import grpc

from recsys_batch import __version__, logs
from recsys_batch.errors import InputMissing, RecsysBatchError, shorten
from recsys_batch.online import metrics
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.oip import grpc_predict_v2_pb2 as messages
from recsys_batch.online.oip.content_encoding import MAX_BODY_BYTES, MAX_BYTES_IN_FLIGHT
from recsys_batch.online.oip.dynamic_batcher import ROWS_PER_REQUEST, DynamicBatcher
from recsys_batch.online.oip.infer_protobuf import decode_inputs, encode_outputs, parse_infer_request
from recsys_batch.online.oip.model_api import InvalidRequest, ModelRepository, ModelUnknown, count_bytes
from recsys_batch.online.oip.offload import run_by_size
from recsys_batch.online.oip.rest import EXTENSIONS, SERVER_NAME
from recsys_batch.online.oip.snapshot_models import SnapshotModels
from recsys_batch.online.oip.snapshot_repository import SnapshotRepository
from recsys_batch.online.runtime.loop_monitor import LoopMonitor
from recsys_batch.online.runtime.parent_watch import end_with_parent
from recsys_batch.online.runtime.process_marks import mark_started
from recsys_batch.online.serving.admission import Admission, Overloaded
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.serving.worker_state import drop_dead_worker_gauges
from recsys_batch.online.settings import ADMIN_TOKEN, CLIENT_TOKEN, LOAD_LOCK, ServerSettings, settings_from_environment
from recsys_batch.online.snapshot.live_overlay import live_opener
from recsys_batch.online.snapshot.redis_store import open_remote_store

logger = logging.getLogger("recsys_batch.online")

_MAX_DETAILS_LENGTH = 500
"""Characters; details travel percent-encoded in a header, and a client takes 8 KiB of headers."""


class Servicer:
    """Implements inference.GRPCInferenceService: a request message in, an answer message out; of ModelInfer the message's bytes.

    Args:
        max_waiting: requests for inference that may wait or be worked on.
    """

    def __init__(self, models: ModelRepository, batcher: DynamicBatcher, snapshots: SnapshotRepository, max_waiting: int) -> None:
        self._models, self._batcher, self._snapshots = models, batcher, snapshots
        self._requests, self._bytes = Admission(max_waiting), Admission(MAX_BYTES_IN_FLIGHT)

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

    async def ModelInfer(self, raw: bytes) -> Any:  # noqa: N802
        with self._requests.hold(1, "requests"), self._bytes.hold(len(raw), "bytes of requests"):
            request = await run_by_size(len(raw), parse_infer_request, raw)
            model = self._models.get(request.model_name, request.model_version or None)
            with model.lease():
                inputs = await run_by_size(len(raw), decode_inputs, model, request)
                outputs = await self._batcher.infer(model, inputs)
            return await run_by_size(count_bytes(outputs), encode_outputs, model, request, outputs)

    async def RepositoryIndex(self, request: Any) -> Any:  # noqa: N802
        return messages.RepositoryIndexResponse(models=self._snapshots.index(request.ready))

    async def RepositoryModelLoad(self, request: Any) -> Any:  # noqa: N802
        parameters = {name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in request.parameters.items()}
        await self._snapshots.load(request.model_name, parameters)
        return messages.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any) -> Any:  # noqa: N802
        await self._snapshots.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()


_STATUS = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelUnknown: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    InputMissing: grpc.StatusCode.NOT_FOUND,
    RecsysBatchError: grpc.StatusCode.FAILED_PRECONDITION,
}
SPARE_RPCS = 32
"""Calls beyond those for inference that may be under way: health, metadata, and what is about to be refused with a sentence."""
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
            request_deserializer=None if name == "ModelInfer" else getattr(messages, f"{name}Request").FromString,
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
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, f"this server was started without an admin token ({ADMIN_TOKEN})")
        if tokens is not None and not _has_token(tokens, dict(context.invocation_metadata() or ())):
            whose = "admin's" if name in _ADMIN_METHODS else "client's"
            await refuse(
                context, grpc.StatusCode.UNAUTHENTICATED, f"this needs the {whose} token as metadata `authorization: Bearer TOKEN`"
            )
        try:
            answer = await method(request)
        except tuple(_STATUS) as error:
            await refuse(context, next(status for kind, status in _STATUS.items() if isinstance(error, kind)), str(error))
        except asyncio.CancelledError:  # by grpc, where nobody waits any more
            code = grpc.StatusCode.DEADLINE_EXCEEDED if context.time_remaining() == 0 else grpc.StatusCode.CANCELLED
            metrics.tally.add("grpc_requests", name, code.name)
            raise
        except Exception:
            logger.exception("%s over gRPC failed", name)
            await refuse(context, grpc.StatusCode.INTERNAL, "something went wrong here; the server's log says what")
        metrics.tally.add("grpc_requests", name, grpc.StatusCode.OK.name)
        return answer

    async def refuse(context: Any, code: grpc.StatusCode, message: str) -> NoReturn:
        metrics.tally.add("grpc_requests", name, code.name)
        await context.abort(code, shorten(message, _MAX_DETAILS_LENGTH))
        raise AssertionError("abort raises")

    name = method.__name__
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
    batcher = DynamicBatcher(settings.batch_rows, settings.batch_delay_us / 1e6, settings.max_waiting * ROWS_PER_REQUEST)
    server = grpc.aio.server(
        # The supervisor has the port, and nobody but its own processes may share it.
        options=[("grpc.max_receive_message_length", MAX_BODY_BYTES), ("grpc.so_reuseport", 1)],
        maximum_concurrent_rpcs=settings.max_waiting + SPARE_RPCS,
    )
    servicer = Servicer(models, batcher, SnapshotRepository(manager, state), settings.max_waiting)
    tokens = os.environ.get(CLIENT_TOKEN) or None, os.environ.get(ADMIN_TOKEN) or None
    server.add_generic_rpc_handlers((make_handlers(servicer, *tokens),))
    _listen(server, settings)
    await server.start()
    mark_started(state, "grpc")
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)

    async def report() -> None:
        metrics.tally.flush()
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
