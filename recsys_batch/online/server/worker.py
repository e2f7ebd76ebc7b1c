"""One worker process: what Granian imports and calls."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import sys
import time
from pathlib import Path

from recsys_batch import logs
from recsys_batch.online import metrics
from recsys_batch.online.api.messages import Bounds
from recsys_batch.online.http.app import App
from recsys_batch.online.http.endpoints import Endpoints
from recsys_batch.online.http.router import Router
from recsys_batch.online.http.static_page import page_routes
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.rest import OipRoutes
from recsys_batch.online.oip.snapshot_models import SnapshotModels
from recsys_batch.online.serving.admission import Admission
from recsys_batch.online.serving.exposure_recorder import ExposureRecorder
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.ranking_service import RankingService
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.serving.worker_state import drop_dead_worker_gauges, write_worker_state
from recsys_batch.online.settings import ADMIN_TOKEN, CLIENT_TOKEN, LOAD_LOCK, ServerSettings, settings_from_environment
from recsys_batch.online.snapshot.redis_store import open_remote_store

_TURN_SECONDS = 0.0005


class Worker(App):
    """The application and what runs beside it."""

    def __init__(self, given: ServerSettings) -> None:
        self._given = given
        self._live = SnapshotManager(Path(given.snapshots), functools.partial(open_remote_store, given), Path(given.state) / LOAD_LOCK)
        admission = Admission(given.max_waiting)
        folder, stats = Path(given.exposures) if given.exposures else None, Path(given.state) / f"log-{os.getpid()}.json"
        self._shown = ExposureRecorder(folder, stats, max_mb=given.exposures_max_mb)
        ages = FreshnessPolicy(given.max_age_hours, given.max_age_hard_hours)
        service = RankingService(self._live, ages, admission, self._shown)
        handlers = Endpoints(service, Bounds(given.max_k, given.max_ids), Path(given.snapshots), Path(given.state))
        batching = DynamicBatcher(given.batch_rows, given.batch_delay_us / 1e6, given.max_waiting)
        protocol = OipRoutes(SnapshotModels(self._live, given.max_k, ages), batching)
        super().__init__(
            Router([*handlers.routes(), *protocol.routes(), *(page_routes() if given.page else [])]),
            admission,
            max_body_bytes=given.max_body_kb * 1024,
            admin_token=os.environ.get(ADMIN_TOKEN) or None,
            client_token=os.environ.get(CLIENT_TOKEN) or None,
        )
        self._following: asyncio.Task[None] | None = None

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # A thread that opens a snapshot holds the interpreter's lock for a turn whenever the loop lets go of it, several times a request:
        # with Python's 5 ms turns a few requests take as long as the opening.
        sys.setswitchinterval(_TURN_SECONDS)
        drop_dead_worker_gauges(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))  # of whom this one may take the place
        # Ready with the first request, not some requests later.
        loop.run_until_complete(self._look())
        gc.collect()
        gc.freeze()
        self._following = loop.create_task(self._follow())

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(self._following)
        self._shown.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._given.poll_ms / 1000)
            with contextlib.suppress(OSError):  # a folder that is being moved is looked at again in a moment
                await self._look()

    async def _look(self) -> None:
        before = self._live.current
        if await self._live.poll():
            write_worker_state(Path(self._given.state), self._live)
            metrics.REFUSED_SNAPSHOTS.inc(len(self._live.refused))
            if self._live.current is not None:
                self._shown.open(self._live.current.snapshot.ids)
            if before is not None and self._live.current is not before:
                metrics.SWAPS.inc()
        if self._live.current is not None:
            metrics.AGE.set(_age(self._live))
        metrics.tally.flush()
        metrics.count_logs(self._shown.counts())
        metrics.WAITING.set(self._admission.waiting)


def _age(live: SnapshotManager) -> float:
    assert live.current is not None
    return time.time() - live.current.snapshot.generated_at.timestamp()


def application() -> Worker:
    """Granian's factory."""
    logs.configure(os.environ.get("RECSYS_BATCH_LOG_FORMAT", "text"))
    return Worker(settings_from_environment())
