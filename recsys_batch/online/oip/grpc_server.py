"""The Open Inference Protocol over gRPC, in processes of its own: grpc.aio's poller does not share one with a web server's loop
(grpc#42357).

server/supervisor.py starts it as a module, once or several times. The models' semantics are model_api.py's; the other wire is rest.py.
"""

import asyncio
import functools
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop

from recsys_batch import __version__, logs
from recsys_batch.errors import RecsysBatchError
from recsys_batch.online import metrics
from recsys_batch.online.oip import grpc_predict_v2_pb2 as messages
from recsys_batch.online.oip.content_encoding import MAX_BODY_BYTES, MAX_BYTES_IN_FLIGHT
from recsys_batch.online.oip.dynamic_batcher import ROWS_PER_REQUEST, DynamicBatcher
from recsys_batch.online.oip.grpc_calls import MessageReader
from recsys_batch.online.oip.grpc_handlers import make_handlers
from recsys_batch.online.oip.grpc_standard_services import ReadinessHealth, make_health_handlers, make_reflection_handlers
from recsys_batch.online.oip.infer_protobuf import decode_inputs, encode_outputs, parse_infer_request
from recsys_batch.online.oip.model_api import ModelRepository, ModelUnknown, count_bytes
from recsys_batch.online.oip.offload import run_by_size
from recsys_batch.online.oip.rest import EXTENSIONS, SERVER_NAME
from recsys_batch.online.oip.snapshot_models import SnapshotModels
from recsys_batch.online.oip.snapshot_repository import SnapshotRepository
from recsys_batch.online.runtime.blas_threads import limit_blas_threads
from recsys_batch.online.runtime.loop_monitor import LoopMonitor
from recsys_batch.online.runtime.parent_watch import end_with_parent
from recsys_batch.online.runtime.process_marks import mark_started
from recsys_batch.online.serving.admission import Admission
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.serving.worker_state import drop_dead_worker_gauges
from recsys_batch.online.settings import ADMIN_TOKEN, CLIENT_TOKEN, LOAD_LOCK, ServerSettings, settings_from_environment
from recsys_batch.online.snapshot.live_overlay import live_opener
from recsys_batch.online.snapshot.redis_store import open_remote_store

logger = logging.getLogger("recsys_batch.online")


class Servicer:
    """Implements inference.GRPCInferenceService: a request message in, an answer message out; of ModelInfer the bytes of both.

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

    @property
    def waiting(self) -> int:
        """Requests for inference that wait or are worked on."""
        return self._requests.waiting

    async def ModelInfer(self, raw: bytes, deadline: float | None = None) -> bytes:  # noqa: N802
        with self._requests.hold(1, "requests"), self._bytes.hold(len(raw), "bytes of requests"):
            request = await run_by_size(len(raw), parse_infer_request, raw)
            model = self._models.get(request.model_name, request.model_version or None)
            with model.lease():
                inputs = await run_by_size(len(raw), decode_inputs, model, request)
                outputs = await self._batcher.infer(model, inputs, deadline=deadline)
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
    servicer = Servicer(models, batcher, SnapshotRepository(manager, state), settings.max_waiting)
    health = ReadinessHealth(models.ready)
    server = make_server(servicer, health, settings.read_timeout_seconds)
    _listen(server, settings)
    await server.start()
    gc.collect()
    gc.freeze()
    mark_started(state, "grpc")
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)

    async def report() -> None:
        await health.update()
        metrics.GRPC_WAITING.set(servicer.waiting)
        metrics.tally.flush()
        metrics.count_failed_rounds()
        metrics.show_last_look("grpc", manager.looks)

    reports = LoopMonitor("reporting metrics")
    tasks = [asyncio.create_task(looks.repeat(do, seconds)) for looks, do in ((manager.looks, manager.poll), (reports, report))]
    await ending.wait()
    await health.enter_graceful_shutdown()
    await server.stop(grace=2)
    for task in tasks:
        task.cancel()


def make_server(servicer: Servicer, health: ReadinessHealth, read_seconds: float) -> grpc.aio.Server:
    """Make a server of the protocol's service, health and reflection; it listens nowhere yet. Tokens are from the environment.

    Args:
        read_seconds: in which the message of a call has to arrive.
    """
    server = grpc.aio.server(
        # The supervisor has the port, and nobody but its own processes may share it.
        options=[("grpc.max_receive_message_length", MAX_BODY_BYTES), ("grpc.so_reuseport", 1)],
    )
    tokens, reader = (os.environ.get(CLIENT_TOKEN) or None, os.environ.get(ADMIN_TOKEN) or None), MessageReader(read_seconds)
    handlers = make_handlers(servicer, *tokens, reader), make_health_handlers(health, reader), make_reflection_handlers(reader)
    server.add_generic_rpc_handlers(handlers)
    return server


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
    limit_blas_threads()
    drop_dead_worker_gauges(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    try:
        uvloop.run(run_grpc_server(settings))  # its turns are short, of which a call takes many
    except RecsysBatchError as error:
        logger.error("%s", error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    grpc_main()
