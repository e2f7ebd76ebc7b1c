"""Files in which streams of this host keep events: removed where they have one of an erased user, and filled again from the tables."""

import sqlite3
from contextlib import closing
from pathlib import Path

from recsys_batch.config import Config
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.storage.artifacts import state_file

_TABLES = ("event", "unknown_user")


def find_stream_caches(config: Config, users: ErasedUsers) -> list[Path]:
    """List the files with a trace of these users: rows, or bytes of rows that were deleted."""
    folder = state_file(config.paths.warehouse, config.paths.state, "stream", "any").parent
    databases = sorted(folder.glob("*.sqlite")) if folder.is_dir() else []
    return [path for path in databases if _has_bytes(path, users) or _has_rows(path, users)]


def remove_stream_caches(config: Config, users: ErasedUsers) -> None:
    """Remove the files with a trace of these users."""
    for path in find_stream_caches(config, users):
        for part in path.parent.glob(f"{path.name}*"):
            part.unlink(missing_ok=True)


def _has_bytes(path: Path, users: ErasedUsers) -> bool:
    texts = [text.encode() for text in users.ids if not text.lstrip("-").isdigit()]
    return any(text in part.read_bytes() for part in path.parent.glob(f"{path.name}*") for text in texts)


def _has_rows(path: Path, users: ErasedUsers) -> bool:
    ids = [(key,) for key in [*users.keys("BIGINT"), *users.keys("STRING")]]
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        try:
            return any(database.execute(f"SELECT 1 FROM {name} WHERE user_id = ?", key).fetchone() for name in _TABLES for key in ids)
        except sqlite3.Error:  # no file of this release: it is a cache
            return True
