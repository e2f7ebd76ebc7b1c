"""The logs of a worker, written by a process beside it.

A thread that encodes rows takes the interpreter's lock from the event loop thousands of times a second: with it a server answered 2,000
requests per second, without it 2,900. So a request pays for one row in MessagePack, a thread moves bytes into a pipe, and a process of
lower priority makes Parquet of them. It ends when the pipe does, having written what it had: a worker that is killed loses what its
thread had not sent yet, a few milliseconds' worth.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.online.exposure_log.exposure import Exposure, ExposureLog
from recsys_batch.online.exposure_log.feedback import FeedbackEvent, FeedbackLog
from recsys_batch.schemas import IdTypes

_KINDS = {b"e": EXPOSURES, b"f": FEEDBACK}
_HEAD = struct.Struct("<cI")
_POLL_SECONDS = 0.02
_STATS_SECONDS = 0.5


class LogWriterClient:
    """A worker's end. For one event loop.

    Args:
        folder: of the files. stats: where the process writes what it counts, for ``counts``.
        ids: types of the ids. max_mb: of each kind of file in the folder.
        queue_rows: rows that may wait for the pipe; beyond them they are dropped and counted.
    """

    def __init__(self, folder: Path, stats: Path, ids: IdTypes, max_mb: float, queue_rows: int = 10_000) -> None:
        self._command = [sys.executable, "-m", __name__, str(folder), str(stats), ids.user, ids.item, str(max_mb)]
        self._stats, self._bound = stats, queue_rows
        self._encoder = msgspec.msgpack.Encoder()
        self._queue: list[bytes] = []
        self._dropped = dict.fromkeys(_KINDS.values(), 0)
        self._unsent = 0
        self._process = self._start()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-pipe", daemon=True)
        self._thread.start()

    def log_exposure(self, row: Exposure) -> bool:
        """Take the row, or say False at once."""
        return self._take(b"e", row)

    def log_feedback(self, row: FeedbackEvent) -> bool:
        """Take the row, or say False at once."""
        return self._take(b"f", row)

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each log, as ``LogStats`` has them, up to half a second old; what never reached the process is among the dropped."""
        try:
            found: dict[str, dict[str, int]] = json.loads(self._stats.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        for kind, n in self._dropped.items():
            found[kind]["dropped"] += n
        found[EXPOSURES]["lost"] += self._unsent
        return found

    def close(self, seconds: float = 10.0) -> bool:
        """Have everything written; whether that was done in time."""
        self._ending.set()
        self._thread.join(seconds)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return not self._thread.is_alive()

    def _take(self, kind: bytes, row: Exposure | FeedbackEvent) -> bool:
        if len(self._queue) >= self._bound:
            self._dropped[_KINDS[kind]] += 1
            return False
        raw = self._encoder.encode(row)
        self._queue.append(_HEAD.pack(kind, len(raw)) + raw)
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        # See server.beside for close_fds. In a session of its own, so that a Ctrl-C ends the server first and this by its pipe.
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, close_fds=False, start_new_session=True)

    def _run(self) -> None:
        while not self._ending.wait(_POLL_SECONDS):
            self._send()
        self._send()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _send(self) -> None:
        rows, self._queue = self._queue, []
        if not rows:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"".join(rows))
            self._process.stdin.flush()
        except OSError:  # it is gone: its rows with it, but not the next ones
            self._unsent += len(rows)
            self._process.wait(10)
            self._process = self._start()


def writer_main() -> None:
    """The process: rows from standard input until it ends."""
    folder, stats, user, item, max_mb = sys.argv[1:]
    os.nice(10)
    ids = IdTypes(user, item)  # type: ignore[arg-type]
    exposures = ExposureLog(Path(folder), user_type=ids.user, item_type=ids.item, worker=os.getppid(), max_mb=float(max_mb))
    feedback = FeedbackLog(Path(folder), user_type=ids.user, item_type=ids.item, worker=os.getppid(), max_mb=float(max_mb))
    of_exposures, of_feedback = msgspec.msgpack.Decoder(Exposure), msgspec.msgpack.Decoder(FeedbackEvent)
    ended = threading.Event()
    told = threading.Thread(target=_publish_stats, args=(Path(stats), {EXPOSURES: exposures, FEEDBACK: feedback}, ended))
    told.start()
    for kind, raw in _frames(sys.stdin.buffer):
        # What is not taken stays in the pipe, so that the worker drops, and counts.
        if kind == b"e":
            exposure = of_exposures.decode(raw)
            while not exposures.record(exposure):
                time.sleep(0.01)
        else:
            event = of_feedback.decode(raw)
            while not feedback.record(event):
                time.sleep(0.01)
    for log in (exposures, feedback):
        log.close(30)
    ended.set()
    told.join()


def _frames(stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(kind, bytes) until the stream ends, in the middle of a frame if need be."""
    while len(head := stream.read(_HEAD.size)) == _HEAD.size:
        kind, length = _HEAD.unpack(head)
        raw = stream.read(length)
        if len(raw) < length:
            return
        yield kind, raw


def _publish_stats(path: Path, logs: Mapping[str, ExposureLog | FeedbackLog], ended: threading.Event) -> None:
    while True:
        last = ended.wait(_STATS_SECONDS)
        draft = path.with_suffix(".draft")
        try:
            draft.write_text(json.dumps({name: vars(log.stats()) for name, log in logs.items()}), encoding="utf-8")
            draft.replace(path)
        except OSError:
            pass  # the server's folder is gone: it has ended
        if last:
            return


if __name__ == "__main__":
    writer_main()
