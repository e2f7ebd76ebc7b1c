"""Processes of a server: started with it, started again with a growing pause where they die, ended with it."""

import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from recsys_batch.online.runtime.loop_monitor import LoopMonitor
from recsys_batch.online.runtime.process_marks import has_started
from recsys_batch.online.server.restart_backoff import RestartBackoff, describe_exit, was_told_to_end

logger = logging.getLogger("recsys_batch.online")

_LOOK_SECONDS = 0.1


class ChildProcess:
    """Keeps a process of a module running.

    Args:
        kind: as which it marks itself as started. number: of its kind, for the log. state: the server's folder.
        give_up: called with a sentence where it ends before it has ever started.
    """

    def __init__(self, kind: str, number: int, module: str, state: Path, give_up: Callable[[str], None]) -> None:
        self._kind, self._name, self._module, self._state, self._give_up = kind, f"{kind} {number}", module, state, give_up
        self._ending, self._backoff = threading.Event(), RestartBackoff()
        self._process, self._started_at = self._start(), time.monotonic()

    def keep(self) -> None:
        """Start it again whenever it has died, until ``end`` is called."""
        rounds = LoopMonitor(f"keeping {self._name}")
        while not self._ending.wait(_LOOK_SECONDS):
            with rounds.round():
                self._replace_dead()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def end(self) -> None:
        self._ending.set()

    def _start(self) -> subprocess.Popen[bytes]:
        # With close_fds Popen waits on a pipe until the process runs, and a worker forked at that moment would hold the pipe open.
        return subprocess.Popen([sys.executable, "-m", self._module], close_fds=False)

    def _replace_dead(self) -> None:
        if self._process.poll() is None:
            return
        lived = time.monotonic() - self._started_at
        how = f"{self._name} (process {self._process.pid}) {describe_exit(self._process.returncode)} after {lived:.1f} s"
        if not has_started(self._state, self._kind) and not was_told_to_end(self._process.returncode):
            self._give_up(f"{how}, and no {self._kind} has started: the lines above say why")
            self._ending.wait()
            return
        pause = self._backoff.next_pause(lived)
        logger.error("%s; it is started again in %.1f s (%d in a row)", how, pause, self._backoff.n_deaths)
        if not self._ending.wait(pause):
            self._process, self._started_at = self._start(), time.monotonic()


@contextlib.contextmanager
def child_processes(kind: str, module: str, count: int, state: Path, give_up: Callable[[str], None]) -> Iterator[None]:
    """Keep so many processes of a module running during the ``with`` block, as ``ChildProcess``; they end together."""
    children = [ChildProcess(kind, number, module, state, give_up) for number in range(1, count + 1)]
    keepers = [threading.Thread(target=child.keep, name=f"keeper-{kind}") for child in children]
    for keeper in keepers:
        keeper.start()
    try:
        yield
    finally:
        for child in children:
            child.end()
        for keeper in keepers:
            keeper.join()
