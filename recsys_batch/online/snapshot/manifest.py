"""A snapshot's manifest: what it is, and the checksum of every file. Written last, so a folder that has one is whole."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.snapshot.contents import SnapshotInfo
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.schemas import IdTypes
from recsys_batch.storage.atomic import write_file
from recsys_batch.storage.checksums import sha256_file

MANIFEST_FILE = "manifest.json"
FORMAT, VERSION = "recsys_batch.snapshot", 1
_VERIFIED = ".verified"

StoreKind = Literal["lmdb", "redis"]


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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SnapshotManifest:
        facts = SnapshotInfo(
            snapshot_id=values["snapshot_id"],
            run_id=values["run_id"],
            run_date=dt.date.fromisoformat(values["run_date"]),
            model_version=values["model_version"],
            generated_at=dt.datetime.fromisoformat(values["generated_at"]),
            ids=IdTypes(values["user_id"], values["item_id"]),
            metric=values["metric"],
            user_norm=float(values["user_norm"]),
            segments=tuple(values["segments"]),
            code_version=values["code_version"],
            seen=values.get("seen", "exclude"),  # which snapshots of before the setting do not have
        )
        numbers = {name: int(values[name]) for name in ("embedding_dim", "n_items", "n_users")}
        return cls(facts, FeatureSpec.from_dict(values["features"]), **numbers, store=values["store"], files=values["files"])


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
    except (OSError, ValueError) as error:
        raise SnapshotRefused(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise SnapshotRefused(f"{path} is not the manifest of a {FORMAT}")
    if values.get("version") != VERSION:
        raise SnapshotRefused(f"{path} has format version {values.get('version')!r}, this release reads {VERSION}: export it again")
    try:
        manifest = SnapshotManifest.from_dict(values)
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotRefused(f"{path} lacks something or holds something odd ({error}): export it again") from None
    if manifest.facts.snapshot_id != folder.name:
        raise SnapshotRefused(f"{path} is of snapshot {manifest.facts.snapshot_id}, not of {folder.name}: folders are not renamed")
    return manifest


def verify_snapshot(folder: Path, manifest: SnapshotManifest) -> None:
    """Check every file against its checksum. The first worker of a node that has done it leaves a mark, so that the others only compare
    sizes and times; a file that changed since is read again.

    Raises:
        SnapshotRefused: a file is missing, cut short or altered.
    """
    if is_verified(folder, manifest):
        return
    for name, expected in manifest.files.items():
        found, stated = sha256_file(folder / name), expected["sha256"]
        if found != stated:
            raise SnapshotRefused(f"{folder / name} has checksum {found[:12]}..., the manifest says {stated[:12]}...: it is damaged")
    mark_verified(folder, manifest)


def is_verified(folder: Path, manifest: SnapshotManifest) -> bool:
    """Whether a process of this node has verified the files as they are now. Raises SnapshotRefused: one is missing, or of another size."""
    state = _file_states(folder, manifest)
    try:
        return bool(json.loads((folder / _VERIFIED).read_text(encoding="utf-8")) == state)
    except (OSError, ValueError):
        return False


def mark_verified(folder: Path, manifest: SnapshotManifest) -> None:
    """Let the processes of this node take the files as they are now for verified: by whoever has just computed their checksums."""
    with contextlib.suppress(OSError):  # a read-only folder is verified by every worker
        write_file(folder / _VERIFIED, json.dumps(_file_states(folder, manifest)), durable=False)


def _file_states(folder: Path, manifest: SnapshotManifest) -> dict[str, list[int]]:
    """Size, time and inode of every file."""
    state = {}
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise SnapshotRefused(f"{folder / MANIFEST_FILE} names the file {name!r}, which leaves the snapshot's folder")
        try:
            status = path.stat()
        except OSError:
            raise SnapshotRefused(f"{folder} lacks {name}, which its manifest names: export it again") from None
        if status.st_size != expected["bytes"]:
            raise SnapshotRefused(f"{path} has {status.st_size} bytes, the manifest says {expected['bytes']}: it was cut short or replaced")
        state[name] = [status.st_size, status.st_mtime_ns, status.st_ino]
    return state
