"""Index files: immutable, named by their SHA-256, written beside and renamed, verified when they are opened."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recsys_batch.errors import IndexDamaged
from recsys_batch.storage.atomic import publish
from recsys_batch.storage.checksums import sha256_file

_CURE = "begin a new run (--force), which builds it again"


@dataclass(frozen=True)
class IndexFile:
    """A file of an index.

    Attributes:
        name: within the index folder; carries the start of the checksum.
        rows: vectors in it, 0 where it holds something else.
    """

    name: str
    sha256: str
    n_bytes: int
    rows: int = 0


def store_index_file(directory: Path, stem: str, suffix: str, write: Callable[[Path], None], rows: int = 0) -> IndexFile:
    """Name what ``write`` wrote. A mapped file is never changed: the same name is the same content."""
    draft = directory / f".{stem}-{uuid.uuid4().hex}"
    try:
        write(draft)
        digest, n_bytes = sha256_file(draft), draft.stat().st_size
        name = f"{stem}-{digest[:24]}{suffix}"
        publish(draft, directory / name)
    finally:
        draft.unlink(missing_ok=True)
    return IndexFile(name, digest, n_bytes, rows)


class Verifier:
    """Checks files against their checksums, each once for as long as it stays the same file (inode, size, time of change).

    The first reading also brings the file into the page cache, which a mapped file is then read from.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[object, ...]] = {}

    def check(self, directory: Path, file: IndexFile) -> tuple[Path, tuple[object, ...]]:
        """The file's path, and its identity, which tells it from another one that is put in its place.

        Raises:
            IndexDamaged: it is missing, or is not what its checksum says.
        """
        path = directory / file.name
        try:
            status = path.stat()
        except OSError as error:
            raise IndexDamaged(f"index file {path} cannot be read ({error.strerror}): {_CURE}") from None
        identity = (file.sha256, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._known.get(path) == identity:
            return path, identity
        found = sha256_file(path)
        if found != file.sha256:
            raise IndexDamaged(
                f"index file {path} ({status.st_size} bytes) has checksum {found[:12]}..., expected {file.sha256[:12]}...: "
                f"it was cut short or replaced; {_CURE}"
            )
        self._known[path] = identity
        return path, identity
