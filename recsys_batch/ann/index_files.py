"""Store and verify index files: immutable, named by their SHA-256, written to a draft and renamed."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recsys_batch.errors import IndexDamaged
from recsys_batch.storage.atomic import publish
from recsys_batch.storage.checksums import sha256_file

_REMEDY = "begin a new run (--force), which builds it again"


@dataclass(frozen=True)
class IndexFile:
    """A file in the index folder: its name contains the start of the checksum; ``rows`` vectors, 0 where it holds something else."""

    name: str
    sha256: str
    n_bytes: int
    rows: int = 0


def store_index_file(directory: Path, stem: str, suffix: str, write: Callable[[Path], None], rows: int = 0) -> IndexFile:
    """Write a file by ``write(draft_path)``, sync it and rename it to ``stem-<checksum><suffix>``. Equal names mean equal content."""
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
    """Verifies index files against their checksums, each once per process until its inode, size or modification time changes.

    Computing the checksum also brings the file into the page cache, from which a mapped file is then read.
    """

    def __init__(self) -> None:
        self._verified: dict[Path, tuple[object, ...]] = {}

    def check(self, directory: Path, file: IndexFile) -> tuple[Path, tuple[object, ...]]:
        """Verify a file and return its path and its identity, which changes when the file is replaced.

        Raises IndexDamaged where the file is missing or does not have its checksum.
        """
        path = directory / file.name
        try:
            status = path.stat()
        except OSError as error:
            raise IndexDamaged(f"index file {path} cannot be read ({error.strerror}): {_REMEDY}") from None
        identity = (file.sha256, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._verified.get(path) == identity:
            return path, identity
        actual = sha256_file(path)
        if actual != file.sha256:
            raise IndexDamaged(
                f"index file {path} ({status.st_size} bytes) has checksum {actual[:12]}..., expected {file.sha256[:12]}...: "
                f"it was cut short or replaced; {_REMEDY}"
            )
        self._verified[path] = identity
        return path, identity
