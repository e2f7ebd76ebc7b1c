"""The folder of snapshots: one folder each, CURRENT, a file with the name of the one that is served, and PREVIOUS, the one before.

Both move by renaming, under a lock of the folder, as servers, exports and an erasure may change them at the same time. PREVIOUS is written
first: whoever is killed between the two leaves CURRENT as it was.
"""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from recsys_batch.errors import InputMissing, RecsysBatchError, UsageError, quote
from recsys_batch.online.snapshot.manifest import MANIFEST_FILE
from recsys_batch.storage.atomic import write_file
from recsys_batch.storage.file_lock import file_lock

CURRENT_FILE, PREVIOUS_FILE = "CURRENT", "PREVIOUS"
DRAFT_PREFIX = ".writing-"
_LOCK_FILE, _LOCK_SECONDS = ".current.lock", 10.0
_VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STALE_DRAFT_SECONDS = 24 * 3600.0  # seconds after which nobody can still be writing it


class PointerUnreadable(RecsysBatchError):
    """CURRENT or PREVIOUS is there, and names no snapshot."""


class Pointers(NamedTuple):
    """Snapshots that CURRENT and PREVIOUS name; None where one of them names none."""

    current: str | None
    previous: str | None


def check_name(snapshot_id: str) -> str:
    """The id, if it can name a folder. Raises UsageError: it cannot."""
    if not _VALID_ID.fullmatch(snapshot_id):
        raise UsageError(
            f"{snapshot_id!r} cannot name a snapshot: letters, digits, '.', '_' and '-', at most 100, not beginning with a sign"
        )
    return snapshot_id


def read_current(folder: Path) -> str | None:
    """Read the id in CURRENT, None where there is none yet. Raises PointerUnreadable: it cannot be read, or names no snapshot."""
    return _read_pointer(folder / CURRENT_FILE)


def read_previous(folder: Path) -> str | None:
    """Read the id of the snapshot before the current one, None where there was none. Raises PointerUnreadable, as ``read_current``."""
    return _read_pointer(folder / PREVIOUS_FILE)


def read_pointers(folder: Path) -> Pointers:
    """Read CURRENT and PREVIOUS; what cannot be read names nothing."""
    names: list[str | None] = [None, None]
    for number, name in enumerate((CURRENT_FILE, PREVIOUS_FILE)):
        with contextlib.suppress(PointerUnreadable):
            names[number] = _read_pointer(folder / name)
    return Pointers(*names)


def set_current(folder: Path, snapshot_id: str) -> Pointers:
    """Let readers go over to a snapshot; the one before becomes PREVIOUS. Returns what both named until now.

    Raises:
        InputMissing: there is none of that name. Busy: another process has been changing CURRENT for ten seconds.
    """
    _require_snapshot(folder, snapshot_id)
    with _locked(folder):
        _require_snapshot(folder, snapshot_id)
        before = read_pointers(folder)
        if before.current not in (None, snapshot_id):
            _write_pointer(folder / PREVIOUS_FILE, before.current)
        _write_pointer(folder / CURRENT_FILE, snapshot_id)
    return before


def undo_set_current(folder: Path, snapshot_id: str, before: Pointers) -> bool:
    """Put back what ``set_current`` returned, if CURRENT still names its snapshot; whether it did."""
    with _locked(folder):
        if read_pointers(folder).current != snapshot_id:
            return False
        for name, snapshot in zip((PREVIOUS_FILE, CURRENT_FILE), (before.previous, before.current), strict=True):
            _write_pointer(folder / name, snapshot)
    return True


def refresh_current(folder: Path) -> None:
    """Write CURRENT again as it is, so that servers look again at the snapshot that it names; nothing where it names none."""
    if folder.is_dir():
        with _locked(folder):
            if (current := read_pointers(folder).current) is not None:
                _write_pointer(folder / CURRENT_FILE, current)


def list_snapshots(folder: Path) -> list[str]:
    """Ids of whole snapshots, newest last."""
    if not folder.is_dir():
        return []
    times = {path.name: written_at for path in folder.iterdir() if (written_at := _written_at(path)) is not None}
    return sorted(times, key=lambda name: (times[name], name))


def list_fallbacks(folder: Path) -> list[str]:
    """List what may be served where CURRENT's snapshot cannot, best first: PREVIOUS, what was written before CURRENT's, what was since.

    Of each the newest first. Those written later come last, as perhaps nobody ever activated them.
    """
    (current, previous), names = read_pointers(folder), list_snapshots(folder)
    position = names.index(current) if current in names else len(names)
    others = [*reversed(names[:position]), *reversed(names[position:])]
    first = [previous] if previous in names else []
    return [name for name in dict.fromkeys([*first, *others]) if name is not None and name != current]


def file_stamp(path: Path) -> tuple[int, int]:
    """Make a stamp that changes whenever the file is replaced; (0, 0) where there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_ino)


def delete_old(folder: Path, keep: int, in_use: frozenset[str] = frozenset()) -> list[str]:
    """Remove all but the newest ``keep`` snapshots, CURRENT's, PREVIOUS's and those ``in_use``, and drafts of a day ago; their names.

    A server that has one open keeps its files until it lets go of them. Raises PointerUnreadable: nobody knows which one is current.
    """
    if not folder.is_dir():
        return []
    with _locked(folder):
        whole = list_snapshots(folder)
        kept = {*whole[max(0, len(whole) - keep) :], read_current(folder), *read_pointers(folder), *in_use}
        removed = [name for name in whole if name not in kept]
        hidden = [folder / f"{DRAFT_PREFIX}removed-{uuid.uuid4().hex}" for _ in removed]
        for name, path in zip(removed, hidden, strict=True):
            (folder / name).rename(path)  # gone at once for whoever looks, whatever becomes of the removal
    for path in hidden:
        shutil.rmtree(path, ignore_errors=True)
    for draft in folder.glob(f"{DRAFT_PREFIX}*"):
        if time.time() - draft.stat().st_mtime > _STALE_DRAFT_SECONDS:
            shutil.rmtree(draft, ignore_errors=True)
    return removed


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with file_lock(folder / _LOCK_FILE, f"{folder / CURRENT_FILE}", "is being changed", _LOCK_SECONDS):
        yield


def _require_snapshot(folder: Path, snapshot_id: str) -> None:
    if snapshot_id not in (names := list_snapshots(folder)):
        raise InputMissing(f"{folder} has no snapshot {snapshot_id}; it has {', '.join(names) or 'none'}")


def _read_pointer(path: Path) -> str | None:
    try:
        name = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise PointerUnreadable(f"{path} cannot be read ({error}): activate a snapshot, which writes it anew") from None
    if not _VALID_ID.fullmatch(name):
        raise PointerUnreadable(f"{path} holds {quote(name)}, which names no snapshot: activate one, which writes it anew")
    return name


def _write_pointer(path: Path, snapshot_id: str | None) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder, where a file with the name of a snapshot is expected: remove it")
    if snapshot_id is None:
        path.unlink(missing_ok=True)
    else:
        write_file(path, f"{snapshot_id}\n")


def _written_at(path: Path) -> int | None:
    """Time at which a snapshot's manifest was written; None for what is no whole snapshot, or was removed a moment ago."""
    if path.name.startswith("."):
        return None
    with contextlib.suppress(OSError):
        return (path / MANIFEST_FILE).stat().st_mtime_ns
    return None
