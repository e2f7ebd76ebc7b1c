"""Files by location (a local path, file:///path or one in a store, s3a://bucket/prefix), with the same few functions for all of them.

Implemented with pyarrow; what differs between stores is in stores.py.
"""

import datetime as dt
import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from recsys_batch.storage.atomic import replace_file
from recsys_batch.storage.stores import SCHEME, find_store

_BLOCK = 8 * 2**20


@dataclass(frozen=True)
class Entry:
    """A file or folder: its location, bytes (0 for a folder), and when it was written (UTC), where the filesystem tells."""

    location: str
    is_folder: bool
    n_bytes: int
    modified: dt.datetime | None

    @property
    def name(self) -> str:
        return basename(self.location)


def is_remote(location: str) -> bool:
    """Say whether a location lies in a store, not under a path of this machine. Raises UsageError as ``resolve``."""
    return find_store(location) is not None


def resolve(location: str) -> tuple[fs.FileSystem, str]:
    """Resolve a location to its filesystem and the path in it. Raises UsageError where the scheme is not supported."""
    store = find_store(location)
    if store is None:
        return fs.LocalFileSystem(), local_path(location)
    inside = location.partition("://")[2].strip("/")
    authority, _, path = inside.partition("/")
    return store.open_filesystem(authority), inside if store.authority_in_path else f"/{path}"


def local_path(location: str) -> str:
    """Convert a local location to an absolute path."""
    if SCHEME.match(location):
        location = unquote(urlparse(location).path)
    return str(Path(location).absolute())


def absolute(location: str) -> str:
    """Make a location the same for every process: an absolute path, or the URI without a slash at its end."""
    return location.rstrip("/") if is_remote(location) else local_path(location)


def join(location: str, *names: str) -> str:
    """Join names to the location of a folder."""
    return "/".join([location.rstrip("/"), *names])


def basename(location: str) -> str:
    """Take the last part of a location."""
    return location.rstrip("/").rpartition("/")[2]


def storage_options(location: str) -> dict[str, str] | None:
    """Make deltalake's options for a location; None for a local one. The rest it reads from the environment by itself."""
    store = find_store(location)
    return None if store is None else store.delta_options()


def exists(location: str) -> bool:
    """Say whether a file or folder exists; in a store a folder exists while it has anything in it."""
    filesystem, path = resolve(location)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def read_bytes(location: str) -> bytes:
    """Read a whole file. Raises FileNotFoundError where there is none."""
    filesystem, path = resolve(location)
    with filesystem.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def write_bytes(location: str, content: bytes) -> None:
    """A whole file, in the place of one that was there. In a store it appears at once; for local files that matter see artifacts.py."""
    with _open_whole(location) as stream:
        stream.write(content)


def replace_bytes(location: str, content: bytes) -> None:
    """Replace a file that matters: a reader sees the old one or the new one, and the new one is on the disk."""
    if is_remote(location):
        write_bytes(location, content)
        return
    path = Path(local_path(location))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)


def open_output(location: str) -> pa.NativeFile:
    """Open a stream into a new file. In an object store the file appears when the stream is closed; elsewhere it grows under its name."""
    filesystem, path = resolve(location)
    store = find_store(location)
    if store is None or store.has_folders:  # others would get an empty object for each folder
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    return filesystem.open_output_stream(path, compression=None)


@contextmanager
def _open_whole(location: str) -> Iterator[pa.NativeFile]:
    """Open a stream into a file that appears in a store at once, or not at all: where files grow under their names, it is renamed."""
    store = find_store(location)
    if store is None or not store.has_folders:
        with open_output(location) as stream:
            yield stream
        return
    folder, _, name = location.rpartition("/")
    draft = join(folder, f".{name}-{uuid.uuid4().hex}")
    try:
        with open_output(draft) as stream:
            yield stream
        filesystem, path = resolve(location)
        filesystem.move(resolve(draft)[1], path)
    except BaseException:
        remove(draft)
        raise


def upload(source: Path, location: str) -> None:
    """Copy a local file to a location; in a store it appears at once."""
    with source.open("rb") as stream, _open_whole(location) as target:
        shutil.copyfileobj(stream, target, _BLOCK)


def download(location: str, target: Path) -> str:
    """Copy a file to a new local one; returns the hex SHA-256 of what came. Raises FileNotFoundError where there is none."""
    filesystem, path = resolve(location)
    digest = hashlib.sha256()
    with filesystem.open_input_file(path) as source, target.open("wb") as stream:
        while block := source.read(_BLOCK):
            digest.update(block)
            stream.write(block)
    return digest.hexdigest()


def list_entries(location: str, *, recursive: bool = False) -> list[Entry]:
    """List the entries of a folder, by name; none where there is no folder."""
    filesystem, path = resolve(location)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=recursive))
    entries = [
        Entry(join(location, info.path[len(path) :].lstrip("/")), info.type == fs.FileType.Directory, info.size or 0, info.mtime)
        for info in infos
    ]
    return sorted(entries, key=lambda entry: entry.location)


def file_sizes(folder: str, names: list[str]) -> dict[str, int]:
    """Look up the bytes of the named files; those that do not exist are left out."""
    filesystem, path = resolve(folder)
    infos = filesystem.get_file_info([f"{path}/{name}" for name in names])
    return {name: int(info.size) for name, info in zip(names, infos, strict=True) if info.type == fs.FileType.File}


def remove(location: str) -> None:
    """Remove a file, or a folder with all that is in it, where it exists."""
    if not is_remote(location):
        path = Path(local_path(location))
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return
    filesystem, inside = resolve(location)
    file_type = filesystem.get_file_info(inside).type
    if file_type == fs.FileType.Directory:
        filesystem.delete_dir(inside)
    elif file_type == fs.FileType.File:
        filesystem.delete_file(inside)


@contextmanager
def parquet_file(location: str, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file: memory-mapped where it is local, else read by ranges of bytes, those of a row group together."""
    if not is_remote(location):
        with pq.ParquetFile(local_path(location), memory_map=True, **options) as file:
            yield file
        return
    filesystem, path = resolve(location)
    with filesystem.open_input_file(path) as source, pq.ParquetFile(source, pre_buffer=True, **options) as file:
        yield file


def read_parquet(location: str, columns: list[str] | None = None) -> pa.Table:
    """Read all rows of a Parquet file or a folder of them; folders named ``column=value`` add no columns."""
    filesystem, path = resolve(location)
    return pq.read_table(path, columns=columns, partitioning=None, filesystem=filesystem)
