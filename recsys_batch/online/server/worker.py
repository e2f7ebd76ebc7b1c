"""Worker process of a server: answers HTTP requests in one event loop."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from recsys_batch import logs
from recsys_batch.errors import RecsysBatchError
from recsys_batch.online import metrics
from recsys_batch.online.api.messages import Bounds
from recsys_batch.online.http.app import App
from recsys_batch.online.http.endpoints import MAX_BATCH_BYTES, Endpoints
from recsys_batch.online.http.listener import HttpListener
from recsys_batch.online.http.router import Router
from recsys_batch.online.http.static_page import page_routes
from recsys_batch.online.oip.content_encoding import MAX_BYTES_IN_FLIGHT
from recsys_batch.online.oip.dynamic_batcher import ROWS_PER_REQUEST, DynamicBatcher
from recsys_batch.online.oip.repository_rest import RepositoryRoutes
from recsys_batch.online.oip.rest import OipRoutes
from recsys_batch.online.oip.snapshot_models import SnapshotModels
from recsys_batch.online.oip.snapshot_repository import SnapshotRepository
from recsys_batch.online.ranking.exploration import Explorer
from recsys_batch.online.runtime.blas_threads import limit_blas_threads
from recsys_batch.online.runtime.loop_monitor import LoopMonitor
from recsys_batch.online.runtime.parent_watch import end_with_parent
from recsys_batch.online.runtime.process_marks import mark_started
from recsys_batch.online.server.tls_files import make_tls_context
from recsys_batch.online.serving.admission import Admission
from recsys_batch.online.serving.exposure_recorder import ExposureRecorder
from recsys_batch.online.serving.freshness import FreshnessPolicy, LiveLag
from recsys_batch.online.serving.ranking_service import RankingService
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.serving.worker_state import drop_dead_worker_gauges, write_worker_state
from recsys_batch.online.settings import ADMIN_TOKEN, CLIENT_TOKEN, LOAD_LOCK, ServerSettings, settings_from_environment
from recsys_batch.online.snapshot.live_overlay import live_opener
from recsys_batch.online.snapshot.redis_store import open_remote_store
from recsys_batch.online.tfserving.predict_api import TfServingRoutes

if TYPE_CHECKING:
    from recsys_batch.online.engine.remote_ranker import RemoteRanker

logger = logging.getLogger("recsys_batch.online")

_SWITCH_INTERVAL_SECONDS = 0.0005
_ALLOCATIONS_PER_COLLECTION = 20_000
"""Python's own are 700: a look for cycles, of which requests leave none, after every dozen of them."""
_GRACE_SECONDS = 3.0
_MAX_CONNECTIONS, _SPARE_DESCRIPTORS = 4096, 256


class Worker:
    """Runs one worker process: the application, and tasks beside it that follow CURRENT and ROUTES.json and report metrics."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        snapshots, state = Path(settings.snapshots), Path(settings.state)
        open_remote = functools.partial(open_remote_store, settings)
        self._remote = _open_remote_ranker(settings)
        self._manager = SnapshotManager(
            snapshots,
            open_remote,
            state / LOAD_LOCK,
            live_opener(settings),
            live_in_redis=settings.live == "redis",
            check_model=self._remote.why_not if self._remote is not None else None,
            poll_seconds=settings.poll_ms / 1000,
        )
        self._live_lag = LiveLag(state, settings.live_max_lag_seconds) if settings.live != "off" else None
        self._admission, large_bodies = Admission(settings.max_waiting), Admission(MAX_BYTES_IN_FLIGHT)
        self._exposures = ExposureRecorder(Path(settings.exposures) if settings.exposures else None, max_mb=settings.exposures_max_mb)
        freshness = FreshnessPolicy(settings.max_age_hours, settings.max_age_hard_hours)
        explorer = Explorer(settings.explore) if settings.explore else None
        service = RankingService(self._manager, freshness, self._admission, self._exposures, explorer, self._remote)
        bounds = Bounds(settings.max_k, settings.max_ids, max_candidates=settings.max_candidates)
        max_body_bytes = settings.max_body_kb * 1024
        handlers = Endpoints(service, bounds, snapshots, state, self._live_lag, max(MAX_BATCH_BYTES, max_body_bytes))
        batching = DynamicBatcher(settings.batch_rows, settings.batch_delay_us / 1e6, settings.max_waiting * ROWS_PER_REQUEST)
        models = SnapshotModels(self._manager, settings.max_k, freshness)
        repository = RepositoryRoutes(SnapshotRepository(self._manager, state))
        wires = (repository, OipRoutes(models, batching, large_bodies), TfServingRoutes(models, batching, large_bodies))
        protocols = [route for wire in wires for route in wire.routes()]
        self._app = App(
            Router([*handlers.routes(), *protocols, *(page_routes() if settings.page else [])]),
            self._admission,
            max_body_bytes=max_body_bytes,
            large_bodies=large_bodies,
            admin_token=os.environ.get(ADMIN_TOKEN) or None,
            client_token=os.environ.get(CLIENT_TOKEN) or None,
        )
        self._reports, self._is_state_due = LoopMonitor("reporting metrics"), False

    async def run(self) -> None:
        """Answer requests until SIGTERM or SIGINT. Raises OSError: the address cannot be listened on."""
        settings, loop, ending = self._settings, asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.set)
        drop_dead_worker_gauges(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))  # of whom this one may take the place
        self._exposures.open()
        # Ready with the first request, not some requests later.
        with self._manager.looks.round():
            await self._follow_snapshots()
        tls = None
        if settings.tls_certificate is not None and settings.tls_key is not None:
            tls = make_tls_context(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        most = bound_connections(settings.max_waiting)
        listener = HttpListener(self._app, seconds=settings.read_timeout_seconds, max_connections=most, tls=tls)
        await listener.open(settings.host, settings.port)
        gc.collect()
        gc.freeze()
        gc.set_threshold(_ALLOCATIONS_PER_COLLECTION)
        mark_started(Path(settings.state), "worker")
        seconds = settings.poll_ms / 1000
        # Two, so that metrics go on while a snapshot is loaded or cannot be read.
        tasks = [
            loop.create_task(self._manager.looks.repeat(self._follow_snapshots, seconds)),
            loop.create_task(self._reports.repeat(self._report_metrics, seconds)),
        ]
        await ending.wait()
        await listener.close(_GRACE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._remote is not None:
            await self._remote.close()
        self._exposures.close()
        metrics.tally.flush()
        metrics.count_logs(self._exposures.stats())

    async def _follow_snapshots(self) -> None:
        before = self._manager.current
        if await self._manager.poll():
            self._is_state_due = True
            metrics.REFUSED_SNAPSHOTS.inc(len(self._manager.refused))
            metrics.FALLBACK.set(self._manager.current is not None and self._manager.fallback is not None)
            if before is not None and self._manager.current is not before:
                metrics.SWAPS.inc()
        if self._is_state_due:
            write_worker_state(Path(self._settings.state), self._manager)
            self._is_state_due = False

    async def _report_metrics(self) -> None:
        current = self._manager.current
        if current is not None:
            metrics.AGE.set(time.time() - current.snapshot.generated_at.timestamp())
            metrics.LIVE_USERS.set(len(current.live) if current.live is not None else 0)
        if self._live_lag is not None:
            metrics.LIVE_LAG.set(self._live_lag.seconds())
        if self._remote is not None:
            metrics.ENGINE_BREAKER.set(("closed", "half_open", "open").index(self._remote.breaker_state))
        metrics.tally.flush()
        metrics.count_logs(self._exposures.stats())
        metrics.WAITING.set(self._admission.waiting)
        metrics.count_failed_rounds()
        metrics.show_last_look("worker", self._manager.looks)


def _open_remote_ranker(settings: ServerSettings) -> RemoteRanker | None:
    if settings.engine == "onnx":
        return None
    # Here, as its client takes 0.2 s to load.
    from recsys_batch.online.engine.remote_ranker import RemoteRanker

    return RemoteRanker(settings)


def bound_connections(max_waiting: int) -> int:
    """Bound the connections of a worker, silent ones among them, and have the system allow as many descriptors as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    room = _MAX_CONNECTIONS if most == resource.RLIM_INFINITY else most - _SPARE_DESCRIPTORS
    return max(min(_MAX_CONNECTIONS, room), 4 * max_waiting, 64)


def worker_main() -> None:
    """Run the process that ``serve`` starts."""
    logs.configure(os.environ.get("RECSYS_BATCH_LOG_FORMAT", "text"))
    settings = settings_from_environment()
    end_with_parent(settings.server_pid, "the server")
    limit_blas_threads()
    # A thread that opens a snapshot holds the interpreter's lock for a turn whenever the loop lets go of it, several times a request:
    # with Python's 5 ms turns a few requests take as long as the opening.
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    try:
        uvloop.run(_run_worker(settings))
    except RecsysBatchError as error:
        logger.error("a worker cannot start: %s", error)
        sys.exit(error.exit_code)


async def _run_worker(settings: ServerSettings) -> None:
    await Worker(settings).run()


if __name__ == "__main__":
    worker_main()
