"""The logs of a worker, written by a process beside it: ``LogWriterClient`` is the worker's end of the pipe, ``writer_main`` the process.

A thread that encodes rows takes the interpreter's lock from the event loop thousands of times a second: with it a server answered 2,000
requests per second, without it 2,900. So a request pays for one row in MessagePack, a thread moves bytes into a pipe, and a process of
lower priority makes Parquet of them: see docs/decisions/0220-exposure-log.md. The caller is online/serving/exposure_recorder.py. Nothing
here knows a snapshot or a request.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import msgspec

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.online.exposure_log.log_rows import Exposure, FeedbackEvent
from recsys_batch.online.exposure_log.log_writer import BATCH_ROWS, LOG_KINDS, QUEUE_ROWS, LogWriter, Row, open_log
from recsys_batch.online.exposure_log.rotating_parquet import RotationPolicy
from recsys_batch.online.runtime.loop_monitor import LoopMonitor
from recsys_batch.schemas import IdTypes
from recsys_batch.storage.atomic import write_file

_SEND_SECONDS = 0.02
_WRITE_SECONDS = 0.5


class LogWriterClient:
    """A worker's end of its log-writing process, for one event loop. It never waits: past its bound rows are dropped and counted.

    Args:
        folder: of the log files. max_mb: bound on the files of each kind in it.
        stats: file in which the process keeps its counts, for ``counts``.
        queue_rows: rows of each kind that may wait for the pipe.
    """

    def __init__(self, folder: Path, stats: Path, ids: IdTypes, max_mb: float, queue_rows: int = QUEUE_ROWS) -> None:
        self._command = [sys.executable, "-m", __name__, str(folder), str(stats), ids.user, ids.item, str(max_mb)]
        self._stats, self._queue_rows = stats, queue_rows
        self._encoder = msgspec.msgpack.Encoder()
        self._queues: dict[str, deque[bytes]] = {kind: deque() for kind in LOG_KINDS}
        self._dropped, self._invalid, self._unsent = (dict.fromkeys(LOG_KINDS, 0) for _ in range(3))
        self._process, self._pipe = self._start()
        self._rounds = LoopMonitor("sending rows to the log")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-pipe", daemon=True)
        self._thread.start()

    def log_exposure(self, row: Exposure) -> bool:
        """Queue an answer for the log, or return False at once where the queue is full."""
        return self._enqueue(EXPOSURES, row)

    def log_feedback(self, row: FeedbackEvent) -> bool:
        """Queue a user's event for the log, or return False at once where the queue is full."""
        return self._enqueue(FEEDBACK, row)

    def counts(self) -> dict[str, dict[str, int]]:
        """Read what each log counts: ``LogStats``, half a second old, and ``dropped``. Rows that never reached the process are included."""
        try:
            counts: dict[str, dict[str, int]] = json.loads(self._stats.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        for kind, log in counts.items():
            log["dropped"] = self._dropped[kind]
            log["lost"] += self._unsent[kind]
            log["invalid"] += self._invalid[kind]
            log["recorded"] += self._invalid[kind]
        return counts

    def close(self, seconds: float = 10.0) -> bool:
        """Have everything written, and return whether that was done within ``seconds``."""
        self._ending.set()
        self._thread.join(seconds)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return not self._thread.is_alive()

    def _enqueue(self, kind: str, row: Exposure | FeedbackEvent) -> bool:
        queue = self._queues[kind]
        if len(queue) >= self._queue_rows:
            self._dropped[kind] += 1
            return False
        try:
            queue.append(self._encoder.encode(row))
        except (TypeError, ValueError, OverflowError):  # a number beyond 64 bits, say: no fault of the server's
            self._invalid[kind] += 1
        return True

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        # See supervised_process for close_fds. In a session of its own, so that a Ctrl-C ends the server first and this by its pipe.
        receiver, sender = Pipe(duplex=False)
        with receiver:
            return subprocess.Popen(self._command, stdin=receiver.fileno(), close_fds=False, start_new_session=True), sender

    def _run(self) -> None:
        while not self._ending.wait(_SEND_SECONDS):
            with self._rounds.round():
                self._send_queued()
        with self._rounds.round():
            self._send_queued()
        with contextlib.suppress(OSError):
            self._pipe.close()

    def _send_queued(self) -> None:
        """Send the kinds in turn, so that neither waits for all of the other."""
        while any(self._queues.values()):
            for kind, queue in self._queues.items():
                if rows := [queue.popleft() for _ in range(min(len(queue), BATCH_ROWS))]:
                    self._send(kind, rows)

    def _send(self, kind: str, rows: list[bytes]) -> None:
        array = b"\xdd" + len(rows).to_bytes(4, "big") + b"".join(rows)  # MessagePack's
        try:
            self._pipe.send_bytes(LOG_KINDS[kind].tag + array)
        except OSError:  # the process is gone: these rows with it, but not the next ones
            self._unsent[kind] += len(rows)
            self._pipe.close()
            self._process.wait(10)
            self._process, self._pipe = self._start()


def write_logs(pipe: Connection, logs: Mapping[str, LogWriter[Any]], stats: Path) -> None:
    """Write the rows of a pipe until it is closed, then close the logs. Files and counts are brought up to date twice a second, whether or
    not rows come. A log without room stops the reading: rows stay in the pipe then, so that the worker drops, and counts, until it is gone.
    """
    worker = os.getppid()
    decoders = {kind.tag: (logs[name], msgspec.msgpack.Decoder(list[kind.row_type])) for name, kind in LOG_KINDS.items()}  # type: ignore[name-defined]
    due = time.monotonic()
    while True:
        seconds = max(due - time.monotonic(), 0)
        if not all(log.has_room for log in logs.values()):
            if os.getppid() != worker:
                break
            time.sleep(seconds)
        elif pipe.poll(seconds):
            try:
                message = memoryview(pipe.recv_bytes())
            except (EOFError, OSError):  # closed, in the middle of a message if need be
                break
            log, decoder = decoders[bytes(message[:1])]
            log.record(*_decode_rows(message[1:], decoder))
        if time.monotonic() >= due:
            for log in logs.values():
                log.write()
            _publish_stats(stats, logs)
            due = time.monotonic() + _WRITE_SECONDS
    for log in logs.values():
        log.close()
    _publish_stats(stats, logs)


def _decode_rows(rows: memoryview, decoder: msgspec.msgpack.Decoder[list[Row]]) -> tuple[list[Row], int]:
    """Decode a message; returns (rows, number of rows of the wrong types)."""
    try:
        return decoder.decode(rows), 0
    except msgspec.ValidationError:
        raw_rows = msgspec.msgpack.decode(rows, type=list[msgspec.Raw])
    valid: list[Row] = []
    for raw in raw_rows:
        with contextlib.suppress(msgspec.ValidationError):
            valid += decoder.decode(b"\x91" + bytes(raw))  # an array of one
    return valid, len(raw_rows) - len(valid)


def _publish_stats(path: Path, logs: Mapping[str, LogWriter[Any]]) -> None:
    with contextlib.suppress(OSError):  # the server's folder is gone: it has ended
        write_file(path, json.dumps({name: asdict(log.stats()) for name, log in logs.items()}), durable=False)


def writer_main() -> None:
    """Run the process: rows come by standard input until it ends."""
    folder, stats, user, item, max_mb = sys.argv[1:]
    os.nice(10)
    gc.set_threshold(100_000)  # rows hold no cycles: looking for them in every 700 objects takes a fifth of the time
    ids = IdTypes(user, item)  # type: ignore[arg-type]
    logs = {kind: open_log(kind, Path(folder), ids, os.getppid(), RotationPolicy(max_mb=float(max_mb))) for kind in LOG_KINDS}
    write_logs(Connection(sys.stdin.fileno(), writable=False), logs, Path(stats))


if __name__ == "__main__":
    writer_main()
