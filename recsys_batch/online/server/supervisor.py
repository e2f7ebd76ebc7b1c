"""The server process: starts Granian's workers, and again those that die."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels

from recsys_batch.errors import UsageError
from recsys_batch.online.settings import LIVE_MARK, REDIS_URL, ServerSettings

_LONGEST_PAUSE_SECONDS = 30.0


def run_server(settings: ServerSettings, *, certificate: Path | None = None, key: Path | None = None) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        certificate, key: PEM files for TLS, both or neither.

    Raises:
        UsageError: one of them alone, or a file that is not there; live lists are wanted, and nothing here reads tables,
            or no Redis is named for them.
    """
    if (certificate is None) != (key is None):
        raise UsageError("TLS needs --tls-certificate and --tls-key, found one of them")
    for path in (certificate, key):
        if path is not None and not path.is_file():
            raise UsageError(f"{path} is not a file")
    if settings.live != "off" and importlib.util.find_spec("deltalake") is None:
        install = "pip install 'recsys-batch[online,read]'"
        raise UsageError(
            f"online.live = {settings.live} reads the warehouse by deltalake, which is not installed: {install}, or set it to off"
        )
    if settings.live == "redis" and not os.environ.get(REDIS_URL):
        raise UsageError(f"online.live = redis needs a server: name it in {REDIS_URL}")
    state = Path(settings.state)
    shutil.rmtree(state, ignore_errors=True)
    (state / "metrics").mkdir(parents=True)
    (state / LIVE_MARK).touch()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(state / "metrics")
    settings.export_to_environment()
    server = Granian(
        "recsys_batch.online.server.worker:application",
        factory=True,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.RSGI,
        loop=Loops.uvloop,
        workers=settings.workers,
        runtime_threads=1,
        http=HTTPModes.auto if certificate else HTTPModes.http1,
        websockets=False,  # nobody speaks that here: an upgrade that is asked for is a request like any other
        # An idle connection counts as one whose next headers are late.
        http1_settings=HTTP1Settings(header_read_timeout=int(1000 * settings.read_timeout_seconds)),
        # Refusing is the application's: Granian's own bound would let requests wait unseen.
        backpressure=max(1024, 4 * settings.max_waiting),
        backlog=2048,
        respawn_failed_workers=True,
        respawn_interval=0.2,
        workers_kill_timeout=3,
        log_enabled=True,
        log_level=LogLevels.warning,
        ssl_cert=certificate,
        ssl_key=key,
    )
    with contextlib.ExitStack() as processes:
        if settings.grpc_port:
            processes.enter_context(supervised_process("recsys_batch.online.oip.grpc_server"))
        if settings.live != "off":
            processes.enter_context(supervised_process("recsys_batch.online.live.follower"))
        try:
            server.serve()
        finally:
            shutil.rmtree(state, ignore_errors=True)


@contextlib.contextmanager
def supervised_process(module: str) -> Iterator[None]:
    """Keep a process of that module running during the ``with`` block: started again where it dies, ended with the block.

    The sooner it dies again, the longer it is waited for.
    """
    ending = threading.Event()

    def start() -> subprocess.Popen[bytes]:
        # With close_fds Popen waits on a pipe until the process runs, and a worker forked at that moment would hold the pipe open.
        return subprocess.Popen([sys.executable, "-m", module], close_fds=False)

    def keep(process: subprocess.Popen[bytes]) -> None:
        started, pause = time.monotonic(), 0.0
        while not ending.wait(0.1):
            if process.poll() is None:
                continue
            pause = 0.0 if time.monotonic() - started > _LONGEST_PAUSE_SECONDS else min(2 * pause + 0.1, _LONGEST_PAUSE_SECONDS)
            if not ending.wait(pause):
                process, started = start(), time.monotonic()
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()

    keeper = threading.Thread(target=keep, args=(start(),), name=module)
    keeper.start()
    try:
        yield
    finally:
        ending.set()
        keeper.join()
