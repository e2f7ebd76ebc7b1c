"""Files by location (a local path, file:///path or s3a://bucket/prefix), with the same few functions for all of them.

Implemented with pyarrow. Credentials, region and endpoint of a store come from the usual AWS_* variables of the process that reads or
writes, and from what machines of a cloud have (profiles, roles); no config holds them.
"""

import datetime as dt
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from recsys_batch.errors import UsageError
from recsys_batch.storage.atomic import replace_file

_BLOCK = 8 * 2**20
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?=/)")


def _open_s3() -> fs.FileSystem:
    return _s3_of(_endpoint(), os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"), os.environ.get("AWS_ACCESS_KEY_ID"))


@lru_cache(maxsize=4)
def _s3_of(endpoint: str | None, region: str | None, key_id: str | None) -> fs.FileSystem:
    """Connect to S3, once per process and account. The key's id only tells accounts apart; pyarrow finds the secret by itself."""
    return fs.S3FileSystem(endpoint_override=endpoint, region=region, allow_delayed_open=True)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


STORES: dict[str, Callable[[], fs.FileSystem]] = {"s3a": _open_s3}
"""Scheme -> its filesystem. Any other scheme is refused by name."""


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
    """Say whether a location lies in an object store, not under a path of this machine. Raises UsageError as ``resolve``."""
    return _scheme(location) != "file"


def resolve(location: str) -> tuple[fs.FileSystem, str]:
    """Resolve a location to its filesystem and the path in it. Raises UsageError where the scheme is not supported."""
    scheme = _scheme(location)
    if scheme == "file":
        return fs.LocalFileSystem(), local_path(location)
    return STORES[scheme](), location.partition("://")[2].strip("/")


def _scheme(location: str) -> str:
    match = _SCHEME.match(location)
    scheme = match[1].lower() if match else "file"
    if scheme == "file":
        return scheme
    if scheme not in STORES:
        hint = "write s3a:// for S3" if scheme == "s3" else "mount it as a path that every node has, or use a store with S3's interface"
        raise UsageError(f"{location}: {scheme}:// is not supported; supported are a mounted path (local or shared) and s3a:// ({hint})")
    if not re.match(r"[^:]+://[^/]", location):
        raise UsageError(f"{location} names no bucket: expected {scheme}://BUCKET/FOLDER")
    return scheme


def local_path(location: str) -> str:
    """Convert a local location to an absolute path."""
    if _SCHEME.match(location):
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
    if not is_remote(location):
        return None
    endpoint = _endpoint()
    if endpoint is None:
        return {}
    return {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}


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
    with open_output(location) as stream:
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
    """Open a stream into a new file. In a store the file appears when the stream is closed."""
    filesystem, path = resolve(location)
    if filesystem.type_name != "s3":  # which has no folders, and would get an empty object for each
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    return filesystem.open_output_stream(path, compression=None)


def upload(source: Path, location: str) -> None:
    """Copy a local file to a location."""
    with source.open("rb") as stream, open_output(location) as target:
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
