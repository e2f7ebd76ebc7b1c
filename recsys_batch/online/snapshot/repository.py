"""The folder of snapshots: one folder each, and CURRENT, a file with the name of the one that is served. It moves by renaming."""

import re
import shutil
import time
import uuid
from pathlib import Path

from recsys_batch.errors import InputMissing, RecsysBatchError, UsageError
from recsys_batch.online.snapshot.manifest import MANIFEST_FILE
from recsys_batch.storage.atomic import write_file

CURRENT_FILE = "CURRENT"
DRAFT_PREFIX = ".writing-"
_VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STALE_DRAFT_SECONDS = 24 * 3600.0  # seconds after which nobody can still be writing it


def check_name(snapshot_id: str) -> str:
    """The id, if it can name a folder. Raises UsageError: it cannot."""
    if not _VALID_ID.fullmatch(snapshot_id):
        raise UsageError(
            f"{snapshot_id!r} cannot name a snapshot: letters, digits, '.', '_' and '-', at most 100, not beginning with a sign"
        )
    return snapshot_id


def read_current(folder: Path) -> str | None:
    """The id in CURRENT, None where there is none yet. Raises RecsysBatchError: it is not text."""
    path = folder / CURRENT_FILE
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise RecsysBatchError(f"{path} is not the name of a snapshot ({error}): write one of {folder} into it, or remove it") from None


def set_current(folder: Path, snapshot_id: str) -> None:
    """Let readers go over to a snapshot. Raises InputMissing: there is none of that name."""
    if snapshot_id not in list_snapshots(folder):
        raise InputMissing(f"{folder} has no snapshot {snapshot_id}; it has {', '.join(list_snapshots(folder)) or 'none'}")
    write_file(folder / CURRENT_FILE, f"{snapshot_id}\n")


def list_snapshots(folder: Path) -> list[str]:
    """Ids of whole snapshots, newest last."""
    if not folder.is_dir():
        return []
    whole = [path for path in folder.iterdir() if not path.name.startswith(".") and (path / MANIFEST_FILE).is_file()]
    return [path.name for path in sorted(whole, key=lambda path: ((path / MANIFEST_FILE).stat().st_mtime_ns, path.name))]


def delete_old(folder: Path, keep: int, in_use: frozenset[str] = frozenset()) -> list[str]:
    """Remove all but the newest ``keep`` snapshots, the current one and those ``in_use``, and drafts of a day ago; their names.

    A server that has one open keeps its files until it lets go of them.
    """
    whole = list_snapshots(folder)
    kept = {*whole[max(0, len(whole) - keep) :], read_current(folder), *in_use}
    removed = [name for name in whole if name not in kept]
    for name in removed:
        hidden = folder / f"{DRAFT_PREFIX}removed-{uuid.uuid4().hex}"
        (folder / name).rename(hidden)  # gone at once for whoever looks, whatever becomes of the removal
        shutil.rmtree(hidden, ignore_errors=True)
    for draft in folder.glob(f"{DRAFT_PREFIX}*"):
        if time.time() - draft.stat().st_mtime > _STALE_DRAFT_SECONDS:
            shutil.rmtree(draft, ignore_errors=True)
    return removed
