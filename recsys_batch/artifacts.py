"""Files that a night shares with its executors: content-addressed folders under the warehouse, never changed once written.

A folder is written beside its final name and renamed, so that a reader sees all of it or nothing. The pointer of a run to
its folders is a small JSON file, written the same way.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from recsys_batch.bundle import sha256_file
from recsys_batch.errors import InputMissing, UsageError

FOLDER = "_artifacts"


def artifact_root(warehouse: str) -> Path:
    """The artefact folder of a warehouse.

    Raises:
        UsageError: the warehouse is not on a filesystem that this machine mounts.
    """
    parsed = urlparse(warehouse)
    if parsed.scheme not in ("", "file"):
        raise UsageError(
            f"paths.warehouse is {warehouse}: indexes and bundles need a mounted path (local or shared), for example /mnt/recs"
        )
    return Path(parsed.path if parsed.scheme else warehouse).absolute() / FOLDER


def put_folder(root: Path, kind: str, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a new folder, name it by the SHA-256 of its files, and return where it stands.

    The same content written twice is stored once.
    """
    parent = root / kind
    parent.mkdir(parents=True, exist_ok=True)
    draft = parent / f".writing-{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        write(draft)
        names = sorted(path.name for path in draft.iterdir())
        listing = "\n".join(f"{name} {sha256_file(draft / name)}" for name in names)
        final = parent / hashlib.sha256(listing.encode()).hexdigest()[:24]
        if final.exists():
            os.utime(final)  # in use again: what is old and named by no run is removed some day
        else:
            draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def run_folder(root: Path, run_id: str) -> Path:
    """Where a run's pointers are."""
    return root / "runs" / run_id


def point(root: Path, run_id: str, name: str, value: Mapping[str, Any]) -> None:
    """Record ``value`` (JSON) as the run's ``name``, replacing what stood there."""
    folder = run_folder(root, run_id)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{name}-{uuid.uuid4().hex}"
    with draft.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    draft.rename(folder / f"{name}.json")


def catalogue_folder(root: Path, run_id: str) -> Path:
    """Where a run's catalogue is. Raises as ``pointed``."""
    return root / "catalogues" / str(pointed(root, run_id, "catalogue")["folder"])


def bundle_folder(root: Path, run_id: str) -> Path:
    """Where a run's bundle is. Raises as ``pointed``."""
    return root / "bundles" / str(pointed(root, run_id, "bundle")["folder"])


def pointed(root: Path, run_id: str, name: str) -> dict[str, Any]:
    """What ``point`` recorded.

    Raises:
        InputMissing: the run has none: the step that writes it has not finished.
    """
    path = run_folder(root, run_id) / f"{name}.json"
    if not path.is_file():
        raise InputMissing(f"run {run_id} has no {name} ({path} is missing): run the steps before this one, or nightly")
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded
