"""Live lists of a run's users over its snapshot's: an LMDB folder beside the snapshots that one process writes and the workers map.

A value is a header (batch_id, when the list was written, newest event that it knows; microseconds UTC) and a record as the snapshot has
them. LMDB's locks and maps hold on one host alone, so each host has its own. It is a cache: whoever finds it damaged removes it, and the
writer begins it anew.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import shutil
import socket
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lmdb

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.settings import ServerSettings
from recsys_batch.online.snapshot.user_record import LiveOrigin, UserRecord, decode_record
from recsys_batch.storage.atomic import make_draft_folder, publish

logger = logging.getLogger("recsys_batch.online")

OVERLAY_FORMAT = 1
_LIVE_FOLDER, _HIDDEN_PREFIX, _DATA_FILE = ".live", ".removed-", "data.mdb"
_ABOUT = b"about"
"""Key of what the overlay is and how far it goes: no user's, which are eight bytes, or begin with an "s"."""
_INITIAL_MAP_BYTES = 16 * 2**20
_MAX_READERS = 1024
_HEADER = struct.Struct("<qqq")
_UNKNOWN = -(2**63)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


class OverlayDamaged(RecsysBatchError):
    """A file of an overlay is not what was written; its writer makes another one."""


def overlays_folder(snapshots: Path) -> Path:
    """Name the folder of this host's overlays."""
    return snapshots / _LIVE_FOLDER / socket.gethostname()


def encode_live_record(origin: LiveOrigin, record: bytes) -> bytes:
    """Put the header of a live list before a record."""
    through = _UNKNOWN if origin.events_through is None else _to_us(origin.events_through)
    return _HEADER.pack(origin.batch_id, _to_us(origin.written_at), through) + record


def decode_live_record(value: bytes) -> UserRecord:
    """Decode what ``encode_live_record`` made. Raises RecsysBatchError: cut short, or of another format."""
    if len(value) < _HEADER.size:
        raise RecsysBatchError(f"a live list has {len(value)} bytes, fewer than its header: the overlay is damaged, and is made anew")
    batch_id, written_us, through_us = _HEADER.unpack_from(value)
    record = decode_record(value[_HEADER.size :])
    record.live = LiveOrigin(batch_id, _from_us(written_us), None if through_us == _UNKNOWN else _from_us(through_us))
    return record


class LiveReader:
    """Reads a run's overlay in a worker: nothing where there is none, and what the writer adds from its next look on.

    For one thread. ``poll`` opens it once it is there, and again where another one has taken its place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._env: lmdb.Environment | None = None
        self._stamp: tuple[int, int] | None = None
        self.poll()

    @property
    def is_open(self) -> bool:
        """Whether there is an overlay to read."""
        return self._env is not None

    def poll(self) -> None:
        """Look whether there is another overlay than before. One that is deleted is read on until there is."""
        stamp = _stamp(self._folder)
        if stamp is None or stamp == self._stamp:
            return
        self.close()
        self._stamp = stamp
        try:
            self._env = _open_env(self._folder, readonly=True)
        except (lmdb.Error, OverlayDamaged) as error:
            self._give_up(error)

    def get(self, key: bytes) -> UserRecord | None:
        """Read a user's live record; None where there is none, or it cannot be read: the night's holds then."""
        if self._env is None:
            return None
        try:
            value = self._read(self._env, key)
            return decode_live_record(value) if value is not None else None
        except (lmdb.Error, RecsysBatchError) as error:
            self._give_up(error)
            return None

    def __len__(self) -> int:
        """Number of users with a live list."""
        return self._env.stat()["entries"] - 1 if self._env is not None else 0

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _read(self, env: lmdb.Environment, key: bytes) -> bytes | None:
        try:
            with env.begin() as txn:
                value: bytes | None = txn.get(key)
                return value
        except lmdb.MapResizedError:  # the writer has made it larger
            env.set_mapsize(0)
            with env.begin() as txn:
                value = txn.get(key)
                return value

    def _give_up(self, error: Exception) -> None:
        logger.error("live lists in %s are damaged, and are made anew: %s", self._folder, error)
        if _stamp(self._folder) == self._stamp:  # and not one that the writer has made since
            remove_overlay(self._folder)
        self.close()
        self._stamp = None  # the number of a file that is gone is given again


def live_opener(settings: ServerSettings) -> Callable[[str], LiveReader] | None:
    """Make what opens the live lists of a run, by id; None where they are not in files."""
    folder = overlays_folder(Path(settings.snapshots))
    return None if settings.live != "table" else lambda run_id: LiveReader(folder / run_id)


class LiveOverlay:
    """Writes a run's overlay; readers see a batch of records, and how far they go, or neither.

    Args:
        source: whose versions are counted.

    Raises:
        OverlayDamaged: it is no overlay of that source, or cannot be read.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self._folder, self._stamp = folder, _stamp(folder)
        try:
            self._env = _open_env(folder, readonly=False)
        except lmdb.Error as error:
            raise OverlayDamaged(f"{folder} cannot be opened: {error}") from None
        try:
            self._about = self._read_about()
            if (self._about.get("format"), self._about.get("source")) != (OVERLAY_FORMAT, source):
                raise OverlayDamaged(f"{folder} is {self._about}, expected format {OVERLAY_FORMAT} of {source}")
        except OverlayDamaged:
            self.close()
            raise

    @property
    def is_in_place(self) -> bool:
        """Whether readers that open it now find this one: nobody has deleted it."""
        return self._stamp == _stamp(self._folder)

    @property
    def version(self) -> int | None:
        """Version of the source that it goes up to; None where it is new."""
        version: int | None = self._about["version"]
        return version

    def add(self, records: Iterable[tuple[bytes, bytes]], version: int) -> None:
        """Put (key, value of ``encode_live_record``) of a batch, and move the version on, in one transaction.

        Of a user's records that of the greatest batch_id stays. Raises OverlayDamaged, and it is removed.
        """
        batch, about = list(records), {**self._about, "version": version}
        self._env.reader_check()  # readers that were killed would keep old pages from being used again
        while True:
            try:
                with self._begin() as txn:
                    for key, value in batch:
                        before = txn.get(key)
                        if before is None or _HEADER.unpack_from(before)[0] <= _HEADER.unpack_from(value)[0]:
                            txn.put(key, value)
                    txn.put(_ABOUT, json.dumps(about).encode())
                self._about = about
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError) as error:
                remove_overlay(self._folder)
                raise OverlayDamaged(f"{self._folder} is damaged, and is made anew: {error}") from None

    def note_checked(self) -> None:
        """Do nothing: the one follower of this host says it by a mark."""

    def close(self) -> None:
        self._env.close()

    @contextlib.contextmanager
    def _begin(self) -> Iterator[Any]:
        try:
            txn = self._env.begin(write=True)
        except lmdb.MapResizedError:  # by the process of another server on this host
            self._env.set_mapsize(0)
            txn = self._env.begin(write=True)
        with txn:
            yield txn

    def _read_about(self) -> dict[str, Any]:
        try:
            with self._env.begin() as txn:
                about: dict[str, Any] = json.loads(txn.get(_ABOUT, b"{}"))
                return about
        except (lmdb.Error, ValueError) as error:
            raise OverlayDamaged(f"{self._folder} cannot be read: {error}") from None


def open_overlay(folder: Path, source: str) -> LiveOverlay:
    """Open a run's overlay to write, or begin one where there is none, or one that is damaged or of another source."""
    if folder.exists():
        with contextlib.suppress(OverlayDamaged):
            return LiveOverlay(folder, source)
        logger.warning("live lists in %s are damaged or another warehouse's, and are made anew", folder)
        remove_overlay(folder)
    with make_draft_folder(folder.parent, ".new-") as draft:
        about = {"format": OVERLAY_FORMAT, "source": source, "version": None}
        with _open_env(draft, readonly=False) as env, env.begin(write=True) as txn:
            txn.put(_ABOUT, json.dumps(about).encode())
        publish(draft, folder, durable=False)
    return LiveOverlay(folder, source)


def remove_overlay(folder: Path) -> None:
    """Remove an overlay; who has it mapped reads on."""
    hidden = folder.with_name(f"{_HIDDEN_PREFIX}{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(hidden)  # data and locks together: new data under old locks would be read wrongly
        shutil.rmtree(hidden, ignore_errors=True)


def _open_env(folder: Path, *, readonly: bool) -> lmdb.Environment:
    env = lmdb.open(
        str(folder),
        map_size=_INITIAL_MAP_BYTES,
        readonly=readonly,
        metasync=False,  # a power cut may undo the last batches, and the version with them
        readahead=False,
        max_readers=_MAX_READERS,
        max_spare_txns=4,
    )
    expected, found = (env.info()["last_pgno"] + 1) * env.stat()["psize"], (folder / _DATA_FILE).stat().st_size
    if found < expected:  # a page that is mapped, but not in the file, kills whoever reads it
        env.close()
        raise OverlayDamaged(f"{folder / _DATA_FILE} has {found} bytes of {expected}")
    return env


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Tell overlays of one name apart; None where there is none."""
    try:
        status = os.stat(folder / _DATA_FILE)
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino)


def _to_us(moment: dt.datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _from_us(microseconds: int) -> dt.datetime:
    return _EPOCH + microseconds * _MICROSECOND
