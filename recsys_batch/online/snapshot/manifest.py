"""A snapshot's manifest: what it is, and the checksum of every file. Written last, so a folder that has one is whole.

Every field is checked when it is read, by type and range: what is wrong in it is told before a server goes over to the snapshot.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from recsys_batch.config import check_seen_setting
from recsys_batch.dataset.seen_policy import make_seen_policy
from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.snapshot.contents import SnapshotInfo
from recsys_batch.online.snapshot.layout import LMDB_FILE, OPTIONAL_FILES, StoreKind, required_files
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.schemas import IdType, IdTypes
from recsys_batch.storage.atomic import write_file
from recsys_batch.storage.checksums import sha256_file

MANIFEST_FILE = "manifest.json"
FORMAT, VERSION = "recsys_batch.snapshot", 1
_VERIFIED = ".verified"
_CHECKS = 1
"""Grows with what reader.py checks, so that marks of before do not stand for it."""
_Count = Annotated[int, Meta(ge=0, le=2**53)]


class SnapshotRefused(RecsysBatchError):
    """A snapshot is damaged, incomplete or of another format; what is served stays."""


@dataclass(frozen=True)
class SnapshotManifest:
    """``manifest.json``, checked.

    Attributes:
        n_users: users with a list. store: where the lists are. files: path within the folder -> SHA-256 and bytes.
    """

    facts: SnapshotInfo
    features: FeatureSpec
    embedding_dim: int
    n_items: int
    n_users: int
    store: StoreKind
    files: Mapping[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Make the JSON object: every field under its name, the types of ids as user_id and item_id."""
        facts = vars(self.facts) | {"user_id": self.facts.ids.user, "item_id": self.facts.ids.item}
        times = {name: facts[name].isoformat() for name in ("run_date", "generated_at")}
        values = {"format": FORMAT, "version": VERSION} | facts | times | vars(self) | {"features": self.features.to_dict()}
        return {name: value for name, value in values.items() if name not in ("facts", "ids")}


class _File(msgspec.Struct):
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    bytes: _Count


class _Features(msgspec.Struct):
    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]


class _Fields(msgspec.Struct):
    """Fields of manifest.json, with their types and ranges."""

    snapshot_id: str
    run_id: str
    run_date: dt.date
    model_version: str
    generated_at: Annotated[dt.datetime, Meta(tz=True)]
    user_id: IdType
    item_id: IdType
    metric: Literal["ip", "cosine"]
    user_norm: Annotated[float, Meta(ge=0, le=3e38)]
    segments: Annotated[tuple[str, ...], Meta(max_length=0xFFFF)]
    code_version: str
    features: _Features
    embedding_dim: Annotated[int, Meta(ge=1, le=0xFFFF)]
    n_items: _Count
    n_users: _Count
    store: StoreKind
    files: dict[str, _File]
    seen: Any = "exclude"  # which snapshots of before the setting do not have

    def to_manifest(self) -> SnapshotManifest:
        """Make the manifest. Raises ValueError, OverflowError: fields that are possible, but not together."""
        if len(set(self.segments)) < len(self.segments):
            raise ValueError("segments names one twice")
        check_seen_setting(self.seen)
        make_seen_policy(self.seen, self.run_date)
        facts = SnapshotInfo(
            self.snapshot_id,
            self.run_id,
            self.run_date,
            self.model_version,
            self.generated_at.astimezone(dt.UTC),
            IdTypes(self.user_id, self.item_id),
            self.metric,
            self.user_norm,
            self.segments,
            self.code_version,
            self.seen,
        )
        spec = FeatureSpec(self.features.names, self.features.mean, self.features.scale)
        spec.check()
        files = {name: msgspec.to_builtins(file) for name, file in self.files.items()}
        return SnapshotManifest(facts, spec, self.embedding_dim, self.n_items, self.n_users, self.store, files)


def file_checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Compute checksum and size of every file below the folder, hidden ones and the manifest left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE and not path.name.startswith("."))
    return {str(path.relative_to(folder)): {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in paths}


def read_manifest(folder: Path) -> SnapshotManifest:
    """Read a snapshot's manifest; files are not looked at. Raises SnapshotRefused: there is none, or none that this release reads."""
    path = folder / MANIFEST_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SnapshotRefused(
            f"{folder} has no {MANIFEST_FILE}: it is not a snapshot, or its writing was cut short; export it again"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotRefused(f"{path} cannot be read: {error}") from None
    manifest = parse_manifest(values, folder)
    if manifest.facts.snapshot_id != folder.name:
        raise SnapshotRefused(f"{path} is of snapshot {manifest.facts.snapshot_id}, not of {folder.name}: folders are not renamed")
    return manifest


def parse_manifest(values: Any, folder: Path) -> SnapshotManifest:
    """Check the parsed JSON of a folder's manifest, and make a manifest of it. Raises SnapshotRefused: a field is missing or odd."""
    path = folder / MANIFEST_FILE
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise SnapshotRefused(f"{path} is not the manifest of a {FORMAT}")
    if values.get("version") != VERSION:
        raise SnapshotRefused(f"{path} has format version {values.get('version')!r}, this release reads {VERSION}: export it again")
    try:
        json.dumps(values, ensure_ascii=False).encode()  # text that is no Unicode could be in no answer
        manifest = msgspec.convert(values, _Fields).to_manifest()
    except (ValueError, OverflowError) as error:
        raise SnapshotRefused(f"{path} lacks something or holds something odd ({error}): export it again") from None
    _check_listed(folder, manifest)
    return manifest


def _check_listed(folder: Path, manifest: SnapshotManifest) -> None:
    """Check which files are listed: all that a snapshot needs, none outside its folder, and every known one that is there."""
    path, listed = folder / MANIFEST_FILE, manifest.files
    for name in listed:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise SnapshotRefused(f"{path} names the file {name!r}, which leaves the snapshot's folder")
    missing = required_files(manifest.store, listed) - listed.keys()
    missing |= {name for name in OPTIONAL_FILES - listed.keys() if (folder / name).exists()}
    if manifest.store != "lmdb" and LMDB_FILE in listed:
        raise SnapshotRefused(f"{path} lists {LMDB_FILE}, but says that users' lists are in {manifest.store}: export it again")
    if missing:
        raise SnapshotRefused(f"{path} does not list {', '.join(sorted(missing))}: export it again")


def verify_files(folder: Path, manifest: SnapshotManifest) -> None:
    """Check every file against its checksum. Raises SnapshotRefused: a file is missing, cut short or altered."""
    for name, expected in manifest.files.items():
        found, stated = _checksum(folder / name), expected["sha256"]
        if found != stated:
            raise SnapshotRefused(f"{folder / name} has checksum {found[:12]}..., the manifest says {stated[:12]}...: it is damaged")


def _checksum(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise SnapshotRefused(f"{path} cannot be read: {error}") from None


def is_verified(folder: Path, manifest: SnapshotManifest) -> bool:
    """Whether a process of this node has verified and checked the files as they are now.

    Raises:
        SnapshotRefused: one is missing, or of another size.
    """
    state = _verified_state(folder, manifest)
    try:
        return bool(json.loads((folder / _VERIFIED).read_text(encoding="utf-8")) == state)
    except (OSError, ValueError):
        return False


def mark_verified(folder: Path, manifest: SnapshotManifest) -> None:
    """Let the processes of this node take the files as they are now for verified and checked: by who has just done that."""
    with contextlib.suppress(OSError):  # a read-only folder is verified by every worker
        write_file(folder / _VERIFIED, json.dumps(_verified_state(folder, manifest)), durable=False)


def _verified_state(folder: Path, manifest: SnapshotManifest) -> dict[str, Any]:
    """Make what the mark holds: which checks there were, and the size, time and inode of every file."""
    states = _file_states(folder, manifest)
    status = (folder / MANIFEST_FILE).stat()
    return {"checks": _CHECKS, "files": states | {MANIFEST_FILE: [status.st_size, status.st_mtime_ns, status.st_ino]}}


def _file_states(folder: Path, manifest: SnapshotManifest) -> dict[str, list[int]]:
    """Size, time and inode of every file."""
    state = {}
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            status = path.stat()
        except (OSError, ValueError):
            raise SnapshotRefused(f"{folder} lacks {name!r}, which its manifest names: export it again") from None
        if status.st_size != expected["bytes"]:
            raise SnapshotRefused(f"{path} has {status.st_size} bytes, the manifest says {expected['bytes']}: it was cut short or replaced")
        state[name] = [status.st_size, status.st_mtime_ns, status.st_ino]
    return state
