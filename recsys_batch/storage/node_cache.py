"""Local copies of object-store folders that a night maps into memory: one per node, which all Python workers share.

A local location is not copied. A folder of a store is downloaded under a lock, verified against the checksums that name it, and
renamed to its place, so that whoever finds it there finds all of it. What nobody has used for long is removed, oldest first.
"""

from __future__ import annotations

import math
import os
import shutil
import stat
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recsys_batch.errors import InputMissing, RecsysBatchError, UsageError
from recsys_batch.storage.artifacts import LISTING, content_hash
from recsys_batch.storage.atomic import make_draft_folder, publish
from recsys_batch.storage.file_lock import acquire_flock
from recsys_batch.storage.filesystems import basename, download, is_remote, join, local_path, read_bytes

if TYPE_CHECKING:
    from recsys_batch.config import Paths  # pydantic, which executors start without

_MAX_TRIES = 3
_TOUCH_SECONDS = 15 * 60
"""Age at which a folder's mark of use (its mtime) is renewed, under the folder's lock."""
_IN_USE_SECONDS = 4 * 3600
"""A folder used within this time stays, however full the cache is: workers look at their index's files with every batch."""
_KEEP_SECONDS = 7 * 24 * 3600
_N_LOCKS = 256
_CURE = "begin a new run (--force), which writes it again; if that says the same, remove it from the store first"


@dataclass(frozen=True)
class NodeCache:
    """The node cache of the machine that calls it; small, as it travels to executors in closures.

    Attributes:
        folder: of copies, the same path on every node, on each node's own disk.
        max_mb: MiB that copies may take; those in use stay even so.
    """

    folder: str
    max_mb: int = 51_200

    @classmethod
    def from_paths(cls, paths: Paths) -> NodeCache:
        """Make the cache that the section [paths] of a config names."""
        return cls(paths.node_cache, paths.node_cache_mb)

    def local_copy(self, location: str) -> Path:
        """Copy an artefact folder to this machine where it is not here yet; the path of the copy.

        Raises:
            UsageError: the cache's folder belongs to somebody else.
            InputMissing: the artefact is not there, or not whole.
            RecsysBatchError: a file of it is damaged, or the disk is full.
        """
        return self._find_or_fetch(basename(location), location, None)

    def local_copy_of_files(self, location: str, checksums: Mapping[str, str]) -> Path:
        """Copy the files of ``checksums`` (name -> hex SHA-256) from a folder to this machine where they are not here yet.

        Returns the folder of the copies, and raises as ``local_copy``.
        """
        name = content_hash("\n".join(f"{name} {checksums[name]}" for name in sorted(checksums)))
        return self._find_or_fetch(name, location, checksums)

    def _find_or_fetch(self, name: str, location: str, checksums: Mapping[str, str] | None) -> Path:
        if not is_remote(location):
            return Path(local_path(location))
        final = Path(self.folder) / name
        with suppress(FileNotFoundError):
            if time.time() - final.stat().st_mtime < _TOUCH_SECONDS:  # no process removes a copy whose mark of use is fresh
                return final
        folder = self._make_private_folder()
        with _locked(folder, name):
            if final.is_dir():  # by another process, while this one waited
                os.utime(final)
                return final
            for left in folder.glob(f".draft-{name}-*"):  # of a process that died: who writes holds the lock
                shutil.rmtree(left, ignore_errors=True)
            try:
                with make_draft_folder(folder, f".draft-{name}-") as draft:
                    for file, checksum in (checksums or _read_listing(location, name)).items():
                        _download(join(location, file), draft / file, checksum)
                    publish(draft, final)
            except OSError as error:
                raise RecsysBatchError(f"{location} could not be copied to {folder} (paths.node_cache): {error}") from error
        self._prune(folder)
        return final

    def _make_private_folder(self) -> Path:
        """Make the cache's folder, for this user alone: what is mapped from it is trusted."""
        folder = Path(self.folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise UsageError(f"{folder} is not a folder of this user alone: set paths.node_cache to one that only this user writes")
        return folder

    def _prune(self, folder: Path) -> None:
        """Remove copies that were not used for a week, and the oldest others while the cache is larger than it may be."""
        copies = []
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                if not path.name.startswith("."):
                    copies.append((path.stat().st_mtime, sum(file.stat().st_size for file in path.iterdir()), path))
        total = sum(n_bytes for _, n_bytes, _ in copies)
        for used, n_bytes, path in sorted(copies):
            idle = time.time() - used
            if idle > _KEEP_SECONDS or (idle > _IN_USE_SECONDS and total > self.max_mb * 2**20):
                _remove_idle(folder, path)
                total -= n_bytes


def _remove_idle(folder: Path, path: Path) -> None:
    """Remove a copy under its lock, unless it has been used since."""
    with suppress(BlockingIOError, FileNotFoundError), _locked(folder, path.name, wait=False):
        if time.time() - path.stat().st_mtime > _IN_USE_SECONDS:
            draft = folder / f".draft-{path.name}-{uuid.uuid4().hex}"
            path.rename(draft)
            shutil.rmtree(draft, ignore_errors=True)


def _read_listing(location: str, name: str) -> dict[str, str]:
    """Read the names and checksums of a store folder's files."""
    try:
        text = read_bytes(join(location, LISTING)).decode(errors="replace")
    except FileNotFoundError:
        raise InputMissing(f"{location} is not there, or its writing was cut short (no {LISTING}): {_CURE}") from None
    if content_hash(text) != name:
        raise RecsysBatchError(f"{location}/{LISTING} is not the listing that the folder is named by: damaged or altered; {_CURE}")
    pairs = (line.rpartition(" ") for line in text.splitlines())
    return {Path(file).name: checksum for file, _, checksum in pairs}


def _download(location: str, target: Path, checksum: str) -> None:
    """Download a file, again where its checksum is not the expected one, as after a connection that broke."""
    actual = ""
    for _ in range(_MAX_TRIES):
        try:
            actual = download(location, target)
        except FileNotFoundError:
            raise InputMissing(f"{location} is not there: {_CURE}") from None
        if actual == checksum:
            return
    n_bytes = target.stat().st_size
    raise RecsysBatchError(
        f"{location} ({n_bytes} bytes) came {_MAX_TRIES} times with another checksum ({actual[:12]}..., expected {checksum[:12]}...): "
        f"damaged or altered; {_CURE}"
    )


@contextmanager
def _locked(folder: Path, name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a name's lock: one process at a time, whoever dies lets go; a bounded number of lock files, so that some names share one.

    Raises BlockingIOError where another process has it, and this one is not to wait.
    """
    with (folder / f".lock-{zlib.crc32(name.encode()) % _N_LOCKS:03d}").open("a") as file:
        if not acquire_flock(file.fileno(), math.inf if wait else 0.0):
            raise BlockingIOError
        yield
