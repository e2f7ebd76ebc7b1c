"""Files, and parts of files, that a task reads; opened as streams of decompressed bytes."""

import bz2
import gzip
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast
from urllib.parse import unquote

import pyarrow as pa

from recsys_batch.storage import filesystems

TASK_BYTES = 32 * 2**20
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_COMPRESSIONS = (".gz", ".bz2", ".zst", ".zip", ".gzip")


def plain_location(location: str) -> str:
    """Strip the scheme of a local path, as Spark names it without escapes; any other location stays."""
    return re.sub("^file:/+", "/", location)


@dataclass(frozen=True)
class SourceFile:
    """File of a source.

    Attributes:
        location: path or URI. n_bytes: as stored. folder: what it was listed under, which names the partition columns below it.
        member: name of a file inside a .zip; "" for a file of its own.
    """

    location: str
    n_bytes: int
    folder: str = ""
    member: str = ""

    @property
    def name(self) -> str:
        """Base name, for sentences."""
        base = filesystems.basename(self.location)
        return f"{base}:{self.member}" if self.member else base

    @property
    def compression(self) -> str:
        """Ending that says how the file is compressed; "" for a plain one."""
        return next((ending for ending in _COMPRESSIONS if self.location.lower().endswith(ending)), "")

    @property
    def partition(self) -> dict[str, str | None]:
        """Columns that folders named column=value add, as text."""
        parts = self.location.removeprefix(self.folder).split("/")[:-1]
        pairs = (part.partition("=") for part in parts if "=" in part)
        return {name: None if value == _HIVE_NULL else unquote(value) for name, _, value in pairs if name}


@dataclass(frozen=True)
class FileTask:
    """A file, or the part of a text file whose lines begin at ``start`` or behind it and before ``end``.

    Attributes:
        file_number: place of the file in its source, from 0: later ones are newer. end: None is the file's end.
        source: path that the file was found under, as the user gave it.
    """

    file_number: int
    file: SourceFile
    source: str
    start: int = 0
    end: int | None = None


def split_tasks(file_number: int, file: SourceFile, source: str, *, splittable: bool) -> list[FileTask]:
    """Split a plain text file into tasks of ``TASK_BYTES``; any other file is one task."""
    if not splittable or file.compression or file.n_bytes <= 2 * TASK_BYTES:
        return [FileTask(file_number, file, source)]
    starts = range(0, file.n_bytes, TASK_BYTES)
    ends = [*starts[1:], None]
    return [FileTask(file_number, file, source, start, end) for start, end in zip(starts, ends, strict=True)]


def pack_tasks(tasks: Sequence[FileTask], n_cores: int) -> list[list[FileTask]]:
    """Pack tasks in their order into groups of similar bytes, some four per core and none above ``TASK_BYTES`` without need."""
    total = sum(_task_bytes(task) for task in tasks)
    most = max(min(TASK_BYTES, total / (4 * n_cores)), 1)
    groups: list[list[FileTask]] = [[]]
    filled = 0.0
    for task in tasks:
        if groups[-1] and filled + _task_bytes(task) > most:
            groups.append([])
            filled = 0.0
        groups[-1].append(task)
        filled += _task_bytes(task)
    return groups


def _task_bytes(task: FileTask) -> float:
    # To open a file costs about as much as to read 64 KiB.
    end = task.file.n_bytes if task.end is None else task.end
    return max(end - task.start, 0) + 65_536


@contextmanager
def open_bytes(file: SourceFile, content: bytes | None = None) -> Iterator[Any]:
    """Open a file for random access, or its ``content`` where a file system was read for us."""
    if content is not None:
        yield pa.BufferReader(content)
        return
    filesystem, path = filesystems.resolve(file.location)
    with filesystem.open_input_file(path) as stream:
        yield stream


@contextmanager
def open_stream(file: SourceFile, content: bytes | None = None) -> Iterator[IO[bytes]]:
    """Open a file as a stream of its decompressed bytes. What is damaged raises OSError, EOFError or BadZipFile, here or in a read."""
    with open_bytes(file, content) as stored:
        if file.compression in (".gz", ".gzip"):
            with gzip.GzipFile(fileobj=cast("Any", stored)) as stream:
                yield cast("IO[bytes]", stream)
        elif file.compression == ".bz2":
            with bz2.BZ2File(cast("Any", stored)) as stream:
                yield stream
        elif file.compression == ".zst":
            yield cast("Any", pa.CompressedInputStream(stored, "zstd"))
        elif file.compression == ".zip":
            with zipfile.ZipFile(io.BufferedReader(_Seekable(stored))) as archive, archive.open(file.member) as stream:
                yield stream
        else:
            yield stored


def list_members(file: SourceFile, content: bytes | None = None) -> list[SourceFile]:
    """List the files inside a .zip, by name; hidden ones and folders are left out. Any other file is listed itself.

    Raises BadZipFile where it is none.
    """
    if file.compression != ".zip":
        return [file]
    with open_bytes(file, content) as stored, zipfile.ZipFile(io.BufferedReader(_Seekable(stored))) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
    visible = [name for name in sorted(names) if not any(part.startswith((".", "_")) for part in name.split("/"))]
    return [SourceFile(file.location, file.n_bytes, file.folder, name) for name in visible]


class _Seekable(io.RawIOBase):
    """Arrow file as Python's raw stream, which zipfile asks for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return int(self._stream.seek(offset, whence))
        except pa.ArrowInvalid as error:
            raise OSError(str(error)) from None

    def tell(self) -> int:
        return int(self._stream.tell())
