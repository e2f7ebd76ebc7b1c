"""Which files of a folder a reader opens, whatever its language: the kernel says so (inotify, Linux)."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows


@contextmanager
def watch_opened_files(folder: Path, suffix: str = ".parquet") -> Iterator[set[Path]]:
    """Collect the files of that suffix, below ``folder``, that anybody opens while the block runs; the set is filled when it ends.

    Folders that are made meanwhile are not watched.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    if queue < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1 failed")
    opened: set[Path] = set()
    try:
        folders = sorted({path.parent for path in folder.rglob(f"*{suffix}")})
        watched = {libc.inotify_add_watch(queue, os.fsencode(path), _IN_OPEN): path for path in folders}
        if -1 in watched:
            raise OSError(ctypes.get_errno(), "inotify_add_watch failed")
        yield opened
        opened.update(path for path in _read_events(queue, watched) if path.name.endswith(suffix))
    finally:
        os.close(queue)


def _read_events(queue: int, watched: dict[int, Path]) -> Iterator[Path]:
    while True:
        try:
            events = os.read(queue, 2**16)
        except BlockingIOError:
            return
        while events:
            watch, _, _, n = _EVENT.unpack_from(events)
            yield watched[watch] / events[_EVENT.size : _EVENT.size + n].rstrip(b"\0").decode()
            events = events[_EVENT.size + n :]
