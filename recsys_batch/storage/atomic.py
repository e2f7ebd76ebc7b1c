"""Files and folders that appear whole: written beside their name, then renamed.

One rule about the disk: what a reader trusts because it bears its name is synced before the rename, and the folder's names after
it, so that both last through a power cut (artefacts, pointers, index files, copies on a node, snapshots and what names them, logs,
digests, reports). Not so what is of this boot only and is written anew (``durable=False``: what workers tell each other, marks of
verification), and drafts.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a small file, UTF-8: a reader sees the old text or the new."""
    replace_file(path, text.encode(), durable=durable)


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a small file: a reader sees the old content or the new."""
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        draft.write_bytes(content)
        publish(draft, path, durable=durable)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def make_draft_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder beside those that it may become one of; what is not published when the block ends is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    draft = parent / f"{prefix}{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def publish(draft: Path, path: Path, *, durable: bool = True) -> None:
    """Give a draft, a file or a folder of the same file system, its name; a file of that name is replaced."""
    if not durable:
        draft.replace(path)
        return
    for below in draft.rglob("*"):
        _sync(below)
    _sync(draft)
    draft.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)
