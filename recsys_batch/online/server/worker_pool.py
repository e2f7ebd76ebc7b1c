"""Granian's workers, started again with a growing pause where they die, and never if none could start."""

import logging
import time
from pathlib import Path
from typing import Any

from granian.server import MPServer

from recsys_batch.online.runtime.process_marks import has_started
from recsys_batch.online.server.restart_backoff import RestartBackoff, describe_exit, was_told_to_end

logger = logging.getLogger("recsys_batch.online")


class WorkerPool(MPServer):
    """Granian's server with a supervision of its own: Granian's gives up when a worker dies twice within 5.5 s, and waits for nothing.

    Attributes:
        start_failure: why the server has ended by itself; None where it was told to.
    """

    def __init__(self, *args: Any, state: Path, **options: Any) -> None:
        super().__init__(*args, **options)
        self.start_failure: str | None = None
        self._state = state
        self._backoffs = [RestartBackoff() for _ in range(self.workers)]

    def give_up(self, why: str) -> None:
        """End the server because one of its processes cannot start."""
        self.start_failure = self.start_failure or why
        self.interrupt_signal = True
        self.main_loop_interrupt.set()

    def _serve_loop(self, spawn_target: Any, target_loader: Any) -> None:
        due: dict[int, float] = {}
        while True:
            self.main_loop_interrupt.wait(max(min(due.values()) - time.monotonic(), 0) if due else None)
            self.main_loop_interrupt.clear()
            if not self.interrupt_signal and self.reload_signal:
                due.clear()
                self._reload(spawn_target, target_loader)  # type: ignore[no-untyped-call]
            dead, self.interrupt_children[:] = sorted(set(self.interrupt_children)), []
            if self.interrupt_signal:
                break
            for index in dead:
                due[index] = time.monotonic() + self._pause_after_death(index)
            ready = [index for index, moment in due.items() if moment <= time.monotonic()]
            if ready and self.start_failure is None:
                self._respawn_workers(ready, spawn_target, target_loader)
                due = {index: moment for index, moment in due.items() if index not in ready}

    def _pause_after_death(self, index: int) -> float:
        """Log how a worker ended; returns the seconds until it is started again."""
        worker, backoff = self.wrks[index], self._backoffs[index]
        lived = time.monotonic() - worker.birth
        how = f"worker {index + 1} (process {worker.inner.pid}) {describe_exit(worker.inner.exitcode)} after {lived:.1f} s"
        if not has_started(self._state, "worker") and not was_told_to_end(worker.inner.exitcode):
            self.give_up(f"{how}, and no worker has started: the lines above say why")
            return 0.0
        pause = backoff.next_pause(lived)
        logger.error("%s; it is started again in %.1f s (%d in a row)", how, pause, backoff.n_deaths)
        return pause
