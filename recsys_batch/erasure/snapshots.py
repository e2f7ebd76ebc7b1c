"""Snapshots and live overlays without erased users. Servers that have a snapshot open keep the old file until they load it again.

LMDB leaves the bytes of what it deletes, so the file of users is written again. The manifest that fits the new files lies beside the old
one until they have their names: an erasure that was killed between finishes by it.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.layout import FINGERPRINTS_FILE, LMDB_FILE, SAMPLES_FILE
from recsys_batch.online.snapshot.live_overlay import remove_overlay
from recsys_batch.online.snapshot.lmdb_store import LmdbStore, write_lmdb
from recsys_batch.online.snapshot.manifest import MANIFEST_FILE, SnapshotManifest, SnapshotRefused, mark_verified, read_manifest
from recsys_batch.online.snapshot.reader import read_samples
from recsys_batch.online.snapshot.user_fingerprints import open_fingerprints
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.writer import write_samples
from recsys_batch.schemas import IdType
from recsys_batch.storage.atomic import publish, write_file
from recsys_batch.storage.checksums import sha256_file

logger = logging.getLogger("recsys_batch.erasure")

_DRAFT = ".erasing-"
_NEXT_MANIFEST = f"{_DRAFT}{MANIFEST_FILE}"
_LIVE_FOLDER = ".live"


def find_in_snapshots(folder: Path, users: ErasedUsers) -> dict[str, int]:
    """Count records (fingerprints, where records are in Redis) and samples of these users by place: each snapshot, and the overlays with
    a trace of one.
    """
    found: dict[str, int] = {}
    for name in repository.list_snapshots(folder):
        with contextlib.suppress(SnapshotRefused):
            manifest = read_manifest(folder / name)
            found[f"snapshot {name}"] = _count_records(folder / name, manifest, users) + len(_sampled(folder / name, manifest, users))
    found["live overlays"] = len(list(_overlays_with(folder, users)))
    return found


def erase_from_snapshots(folder: Path, users: ErasedUsers) -> None:
    """Write snapshots again without these users, and remove overlays that have one: who follows the stream begins them anew."""
    for draft in folder.glob(f"{repository.DRAFT_PREFIX}*"):  # nobody exports meanwhile
        shutil.rmtree(draft, ignore_errors=True)
    changed = [name for name in repository.list_snapshots(folder) if _erase_from_snapshot(folder / name, users)]
    for overlay in list(_overlays_with(folder, users)):
        remove_overlay(overlay)
    for leftover in folder.glob(f"{_LIVE_FOLDER}/*/.removed-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if changed:
        repository.refresh_current(folder)


def _erase_from_snapshot(folder: Path, users: ErasedUsers) -> bool:
    """Write a snapshot's files of users again; whether it was changed."""
    finished = _finish(folder)
    for draft in folder.glob(f"{_DRAFT}*"):
        draft.unlink()
    try:
        manifest = read_manifest(folder)
    except SnapshotRefused as error:
        logger.warning("%s is left as it is: %s", folder, error)
        return finished
    files, n_users = dict(manifest.files), manifest.n_users
    if LMDB_FILE in files and _count_records(folder, manifest, users):
        draft = folder / f"{_DRAFT}{LMDB_FILE}"
        n_users = _copy_lmdb(folder / LMDB_FILE, draft, users, manifest.facts.ids.user)
        files[LMDB_FILE] = _describe(draft)
    if sampled := _sampled(folder, manifest, users):
        draft = folder / f"{_DRAFT}{SAMPLES_FILE}"
        samples = read_samples(folder / SAMPLES_FILE)
        write_samples(draft, {user: items for user, items in samples.items() if user not in sampled})
        files[SAMPLES_FILE] = _describe(draft)
    if FINGERPRINTS_FILE in files and _count_records(folder, manifest, users):
        draft = folder / f"{_DRAFT}{FINGERPRINTS_FILE}"
        fingerprints = open_fingerprints(folder / FINGERPRINTS_FILE).without(_keys(users, manifest.facts.ids.user))
        fingerprints.write(draft)
        n_users, files[FINGERPRINTS_FILE] = len(fingerprints), _describe(draft)
    if files == manifest.files:
        return finished
    text = json.dumps(replace(manifest, files=files, n_users=n_users).to_dict(), indent=2, ensure_ascii=False)
    write_file(folder / _NEXT_MANIFEST, text)
    return _finish(folder)


def _finish(folder: Path) -> bool:
    """Give drafts their names, the manifest last; whether there were any. Drafts without a manifest are not whole."""
    path = folder / _NEXT_MANIFEST
    if not path.exists():
        return False
    for name in (LMDB_FILE, SAMPLES_FILE, FINGERPRINTS_FILE):
        if (draft := folder / f"{_DRAFT}{name}").exists():
            publish(draft, folder / name)
    publish(path, folder / MANIFEST_FILE)
    mark_verified(folder, read_manifest(folder))
    return True


def _describe(path: Path) -> dict[str, object]:
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def _keys(users: ErasedUsers, kind: IdType) -> set[bytes]:
    return {key for user in users.ids if (key := user_key(user, kind)) is not None}


def _count_records(folder: Path, manifest: SnapshotManifest, users: ErasedUsers) -> int:
    if FINGERPRINTS_FILE in manifest.files:
        fingerprints = open_fingerprints(folder / FINGERPRINTS_FILE)
        return sum(key in fingerprints for key in _keys(users, manifest.facts.ids.user))
    if manifest.store != "lmdb":
        return 0
    store = LmdbStore(folder / LMDB_FILE)
    try:
        return sum(store.get(key) is not None for key in _keys(users, manifest.facts.ids.user))
    finally:
        store.close()


def _sampled(folder: Path, manifest: SnapshotManifest, users: ErasedUsers) -> set[int | str]:
    if SAMPLES_FILE not in manifest.files:
        return set()
    return set(read_samples(folder / SAMPLES_FILE)) & set(users.keys(manifest.facts.ids.user))


def _copy_lmdb(source: Path, draft: Path, users: ErasedUsers, kind: IdType) -> int:
    """Write a file of records without these users; returns how many there are."""
    gone, store = _keys(users, kind), LmdbStore(source)
    try:
        n_records = write_lmdb(draft, ((key, record) for key, record in store.records() if key not in gone))
    finally:
        store.close()
    draft.with_name(f"{draft.name}-lock").unlink(missing_ok=True)
    return n_records


def _overlays_with(folder: Path, users: ErasedUsers) -> Iterator[Path]:
    """List the overlays, of all hosts, whose files have the key of a user, in pages that are free, too."""
    keys = _keys(users, "BIGINT") | _keys(users, "STRING")
    for data in folder.glob(f"{_LIVE_FOLDER}/*/*/data.mdb"):
        with contextlib.suppress(FileNotFoundError):
            content = data.read_bytes()
            if any(key in content for key in keys):
                yield data.parent
