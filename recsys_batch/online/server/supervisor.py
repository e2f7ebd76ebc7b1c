"""The server process: has the addresses, starts workers and the processes beside them, and starts those again that die."""

import contextlib
import logging
import os
import resource
import shutil
from pathlib import Path

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels

from recsys_batch.errors import UsageError
from recsys_batch.online.server.child_process import child_processes
from recsys_batch.online.server.listen_address import reserve_address, resolve_host
from recsys_batch.online.server.startup_checks import check_startup
from recsys_batch.online.server.worker_pool import WorkerPool
from recsys_batch.online.settings import LIVE_MARK, ServerSettings

logger = logging.getLogger("recsys_batch.online")

_MAX_CONNECTIONS, _SPARE_DESCRIPTORS = 4096, 256


def run_server(settings: ServerSettings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        UsageError: what is set cannot be used, somebody else has the address, or one of the processes cannot start.
    """
    state = Path(settings.state)
    shutil.rmtree(state, ignore_errors=True)
    try:
        settings = settings.model_copy(update={"host": resolve_host(settings.host), "server_pid": os.getpid()})
        check_startup(settings)
        with contextlib.ExitStack() as held:
            held.enter_context(reserve_address(settings.host, settings.port, "--port"))
            if settings.grpc_port:
                if settings.grpc_port == settings.port:
                    raise UsageError(f"--port and --grpc-port are both {settings.port}: choose another one for gRPC")
                held.enter_context(reserve_address(settings.host, settings.grpc_port, "--grpc-port"))
            _run_processes(settings, state)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _run_processes(settings: ServerSettings, state: Path) -> None:
    (state / "metrics").mkdir(parents=True)
    (state / LIVE_MARK).touch()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(state / "metrics")
    settings.export_to_environment()
    pool = _make_pool(settings, state)
    with contextlib.ExitStack() as children:
        if settings.grpc_port:
            n_grpc = settings.grpc_workers or settings.workers
            children.enter_context(child_processes("grpc", "recsys_batch.online.oip.grpc_server", n_grpc, state, pool.give_up))
        if settings.live != "off":
            children.enter_context(child_processes("live", "recsys_batch.online.live.follower", 1, state, pool.give_up))
        logger.info("serving %s on %s:%d with %d workers", settings.snapshots, settings.host, settings.port, settings.workers)
        pool.serve()
    if pool.start_failure is not None:
        raise UsageError(f"the server cannot start: {pool.start_failure}")


def _make_pool(settings: ServerSettings, state: Path) -> WorkerPool:
    return WorkerPool(
        "recsys_batch.online.server.worker:application",
        state=state,
        factory=True,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.RSGI,
        loop=Loops.uvloop,
        workers=settings.workers,
        runtime_threads=1,
        http=HTTPModes.auto if settings.tls_certificate else HTTPModes.http1,
        websockets=False,  # nobody speaks that here: an upgrade that is asked for is a request like any other
        # An idle connection counts as one whose next headers are late.
        http1_settings=HTTP1Settings(header_read_timeout=int(1000 * settings.read_timeout_seconds)),
        # Refusing is the application's: Granian's own bound would let requests wait unseen.
        backpressure=_bound_connections(settings.max_waiting),
        backlog=2048,
        workers_kill_timeout=3,
        log_enabled=True,
        log_level=LogLevels.warning,
        ssl_cert=settings.tls_certificate,
        ssl_key=settings.tls_key,
        ssl_ca=settings.tls_client_ca,
        ssl_client_verify=settings.tls_client_ca is not None,
    )


def _bound_connections(max_waiting: int) -> int:
    """Bound the connections of a worker, silent ones among them, and have the system allow as many descriptors as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    room = _MAX_CONNECTIONS if most == resource.RLIM_INFINITY else most - _SPARE_DESCRIPTORS
    return max(min(_MAX_CONNECTIONS, room), 4 * max_waiting, 64)
