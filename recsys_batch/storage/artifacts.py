"""Content-addressed folders under the warehouse, by which a night shares files with its executors; never changed once written.

On a mounted path a folder is written beside its final name and renamed. A store has no renaming: there the folder is written on this
machine, named, and uploaded, its listing last; a folder without one is not there. So a reader sees all of it or nothing. The pointer
of a run to its folders is a small JSON file, written the same way.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys_batch.errors import InputMissing
from recsys_batch.storage.atomic import make_draft_folder, publish, write_file
from recsys_batch.storage.checksums import sha256_file
from recsys_batch.storage.filesystems import (
    absolute,
    exists,
    is_remote,
    join,
    list_entries,
    local_path,
    read_bytes,
    remove,
    upload,
    write_bytes,
)

ARTIFACTS_FOLDER = "_artifacts"
LISTING = "_listing"
"""In a store, of each folder: a line "NAME SHA256" per file; the folder is named by the checksum of this text."""


def artifact_root(warehouse: str) -> str:
    """Name the artefact folder of a warehouse as a location: an absolute path, or a URI.

    Raises UsageError where the warehouse is neither on a mounted path nor in a store that is supported.
    """
    return join(absolute(warehouse), ARTIFACTS_FOLDER)


def put_folder(root: str, kind: str, write: Callable[[Path], None], scratch: str | None = None) -> str:
    """Let ``write`` fill a new folder with files, name it by their SHA-256, and return where it stands.

    The same content written twice is stored once. What goes into a store is written to the local folder ``scratch`` first; without
    one, to the system's for temporary files.
    """
    if is_remote(root):
        return _put_remote(join(root, kind), write, scratch)
    parent = Path(local_path(root)) / kind
    with make_draft_folder(parent, ".writing-") as draft:
        write(draft)
        final = parent / content_hash(list_checksums(draft))
        if final.exists():
            os.utime(final)  # in use again: what is old and named by no run is removed some day
        else:
            publish(draft, final)
    return str(final)


def _put_remote(parent: str, write: Callable[[Path], None], scratch: str | None) -> str:
    with _draft_folder(scratch) as draft:
        write(draft)
        listing = list_checksums(draft)
        final = join(parent, content_hash(listing))
        if not exists(join(final, LISTING)):
            for path in sorted(draft.iterdir()):
                upload(path, join(final, path.name))
        # Last, so that it says that the rest is there; and again where it was there: in use again, as above.
        write_bytes(join(final, LISTING), listing.encode())
    return final


def remove_folder(location: str) -> None:
    """Remove an artefact folder, or file. In a store the listing goes first: what a removal that was cut short leaves is no folder then,
    and is uploaded again.
    """
    if is_remote(location):
        remove(join(location, LISTING))
    remove(location)


@contextmanager
def stage_files(root: str, kind: str, scratch: str | None = None) -> Iterator[Path]:
    """Open a local folder for files whose names carry their own checksums; they are in ``root/kind`` when the block ends.

    A store gets each of them at once or not at all; what a file is, its reader verifies.
    """
    if not is_remote(root):
        folder = Path(local_path(root)) / kind
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with _draft_folder(scratch) as draft:
        yield draft
        for path in sorted(draft.iterdir()):
            upload(path, join(root, kind, path.name))


@contextmanager
def _draft_folder(scratch: str | None) -> Iterator[Path]:
    if scratch is not None:
        Path(scratch).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="recsys-batch-", dir=scratch) as folder:
        yield Path(folder)


def list_checksums(folder: Path) -> str:
    """List a folder's files: a line "NAME SHA256" each."""
    return "\n".join(f"{path.name} {sha256_file(path)}" for path in sorted(folder.iterdir()))


def content_hash(listing: str) -> str:
    """Hash a listing to the name of the folder that has it."""
    return hashlib.sha256(listing.encode()).hexdigest()[:24]


def run_folder(root: str, run_id: str) -> str:
    """Name the folder of a run's pointers."""
    return join(root, "runs", run_id)


def set_pointer(root: str, run_id: str, name: str, value: Mapping[str, Any]) -> None:
    """Record ``value`` (JSON) as the run's ``name``, replacing what stood there."""
    location = _pointer_location(root, run_id, name)
    text = json.dumps(value, indent=2, sort_keys=True)
    if is_remote(location):
        write_bytes(location, text.encode())
        return
    path = Path(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)


def catalogue_folder(root: str, run_id: str) -> str:
    """Locate a run's catalogue. Raises as ``get_pointer``."""
    return join(root, "catalogues", str(get_pointer(root, run_id, "catalogue")["folder"]))


def bundle_folder(root: str, run_id: str) -> str:
    """Locate a run's bundle. Raises as ``get_pointer``."""
    return join(root, "bundles", str(get_pointer(root, run_id, "bundle")["folder"]))


def state_file(warehouse: str, state: str, kind: str, name: str) -> Path:
    """Locate a file of this host alone that belongs to a warehouse: under ``state``, by kind and the warehouse's name."""
    return Path(state).absolute() / kind / hashlib.sha256(absolute(warehouse).encode()).hexdigest()[:16] / name


def base_chain(root: str, run_id: str) -> list[str]:
    """List a run and the runs that it goes on from, newest first; a full night goes on from none."""
    chain = [run_id]
    while has_pointer(root, chain[-1], "base"):
        chain.append(str(get_pointer(root, chain[-1], "base")["run_id"]))
    return chain


def clear_pointer(root: str, run_id: str, name: str) -> None:
    """Remove a run's pointer."""
    remove(_pointer_location(root, run_id, name))


def get_pointer(root: str, run_id: str, name: str) -> dict[str, Any]:
    """Read a run's pointer. Raises InputMissing where the run has none: the step that writes it has not finished."""
    location = _pointer_location(root, run_id, name)
    try:
        loaded: dict[str, Any] = json.loads(read_bytes(location))
    except FileNotFoundError:
        raise InputMissing(f"run {run_id} has no {name} ({location} is missing): run the steps before this one, or nightly") from None
    return loaded


def has_pointer(root: str, run_id: str, name: str) -> bool:
    """Say whether a run has a pointer."""
    return exists(_pointer_location(root, run_id, name))


def list_pointers(root: str, run_id: str) -> dict[str, dict[str, Any]]:
    """Read all pointers of a run, by name."""
    names = [entry.name.removesuffix(".json") for entry in list_entries(run_folder(root, run_id)) if entry.name.endswith(".json")]
    return {name: get_pointer(root, run_id, name) for name in names}


def _pointer_location(root: str, run_id: str, name: str) -> str:
    return join(run_folder(root, run_id), f"{name}.json")
