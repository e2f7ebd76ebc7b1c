"""The server process: has the addresses, starts workers and the processes beside them, and starts those again that die."""

import contextlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from recsys_batch.errors import UsageError
from recsys_batch.online.server.child_process import child_processes
from recsys_batch.online.server.listen_address import reserve_address, resolve_host
from recsys_batch.online.server.startup_checks import check_startup
from recsys_batch.online.settings import LIVE_MARK, ServerSettings

logger = logging.getLogger("recsys_batch.online")


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
    ending = _Ending()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.come())
    with contextlib.ExitStack() as children:
        for kind, module, count in _list_processes(settings):
            children.enter_context(child_processes(kind, module, count, state, ending.give_up))
        logger.info("serving %s on %s:%d with %d workers", settings.snapshots, settings.host, settings.port, settings.workers)
        ending.wait()
    if ending.start_failure is not None:
        raise UsageError(f"the server cannot start: {ending.start_failure}")


def _list_processes(settings: ServerSettings) -> Iterator[tuple[str, str, int]]:
    """List (kind, module, how many) of the processes that the server has."""
    yield "worker", "recsys_batch.online.server.worker", settings.workers
    if settings.grpc_port:
        yield "grpc", "recsys_batch.online.oip.grpc_server", settings.grpc_workers or settings.workers
    if settings.live != "off":
        yield "live", "recsys_batch.online.live.follower", 1


class _Ending:
    """The end of the server: somebody tells it to end, or one of its processes cannot start.

    Attributes:
        start_failure: why it has ended by itself; None where it was told to.
    """

    def __init__(self) -> None:
        self.start_failure: str | None = None
        self._event = threading.Event()

    def come(self) -> None:
        """End the server."""
        self._event.set()

    def give_up(self, why: str) -> None:
        """End the server because one of its processes cannot start."""
        self.start_failure = self.start_failure or why
        self._event.set()

    def wait(self) -> None:
        """Return once it has come."""
        self._event.wait()
