"""Tombstones of erased users: keyed hashes of their ids, by which later ingests of old files leave them out. No id can be read from one.

They lie in the warehouse's folder, as every host that ingests reads them there. So does the key, unless RECSYS_BATCH_ERASURE_KEY gives it:
who has both can find out whether an id is among them by trying ids, so keep the key elsewhere where ids can be guessed.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.errors import ConfigError
from recsys_batch.storage.artifacts import get_pointer, has_pointer
from recsys_batch.storage.filesystems import absolute, join, read_bytes, replace_bytes
from recsys_batch.tables.raw_rows import iterate_values

ERASED = "erased"
"""Reason with which an ingest counts the rows of erased users, which are in no table, also not in rejected; and a run's pointer:
``users``, by tombstone those whom it knew and who were erased since, and ``popularity``, why its counts are not those of a new night."""

KEY_VARIABLE = "RECSYS_BATCH_ERASURE_KEY"
TOMBSTONES_FOLDER = "_erased"
_HEADER = "recsys_batch.tombstones 1"
_HASH_BYTES = 16


@dataclass(frozen=True)
class Tombstones:
    """Hashes of erased users' ids, and the key that made them."""

    hashes: frozenset[bytes] = field(repr=False)
    key: bytes = field(repr=False)

    def hash(self, user_id: int | str) -> bytes:
        """Hash an id: 7 and "7" alike."""
        return hmac.digest(self.key, str(user_id).encode(errors="surrogatepass"), "sha256")[:_HASH_BYTES]

    def matches(self, user_ids: pa.Array) -> pa.Array:
        """Mark the ids of erased users, each distinct id hashed once; a null is nobody.

        Args:
            user_ids: BIGINT or STRING.
        Returns:
            bool [n], without nulls.
        """
        encoded = user_ids.dictionary_encode()
        erased = [value is not None and self.hash(value) in self.hashes for value in encoded.dictionary.to_pylist()]
        return pc.fill_null(pa.array(erased, pa.bool_()).take(encoded.indices), False)

    def matches_rows(self, rows: pa.Array) -> pa.Array:
        """Mark the raw rows (text) that name an erased user. Returns bool [n], without nulls."""
        named = (any(self.hash(value) in self.hashes for value in iterate_values(row or "")) for row in rows.to_pylist())
        return pa.array(named, pa.bool_())


def read_tombstones(warehouse: str) -> Tombstones | None:
    """Read the tombstones of a warehouse; None where nobody was erased.

    Raises:
        ConfigError: they were made with another key than the one that is found, or with one that is not found.
    """
    try:
        header, *hashes = read_bytes(_location(warehouse, "tombstones")).decode().splitlines()
    except FileNotFoundError:
        return None
    key = _find_key(warehouse)
    if key is None:
        raise ConfigError(f"users were erased from {warehouse} with a key that is not here: set {KEY_VARIABLE} to it")
    if header != _header(key):
        raise ConfigError(f"users were erased from {warehouse} with another key: set {KEY_VARIABLE} to that one, or unset it")
    return Tombstones(frozenset(map(bytes.fromhex, hashes)), key)


def add_tombstones(warehouse: str, user_ids: Iterable[int | str]) -> Tombstones:
    """Add users, under the lock of an erasure; all tombstones then. Raises as ``read_tombstones``."""
    known = read_tombstones(warehouse) or Tombstones(frozenset(), _find_key(warehouse) or _make_key(warehouse))
    added = Tombstones(known.hashes | set(map(known.hash, user_ids)), known.key)
    if added.hashes != known.hashes:
        lines = [_header(added.key), *sorted(value.hex() for value in added.hashes)]
        replace_bytes(_location(warehouse, "tombstones"), "".join(f"{line}\n" for line in lines).encode())
    return added


def keep_living(rows: pa.Table, tombstones: Tombstones | None, raw: str, reason: str) -> tuple[pa.Table, int]:
    """Drop the rows of erased users from rows with user_id and their raw text; (the others, how many were dropped).

    Args:
        raw, reason: the columns of the raw row, which is looked at where a row has a reason of refusal.
    """
    if tombstones is None or rows.num_rows == 0:
        return rows, 0
    refused = pc.if_else(pc.is_valid(rows[reason]), rows[raw], pa.scalar(None, pa.string())).combine_chunks()
    erased = pc.or_(tombstones.matches(rows["user_id"].combine_chunks()), tombstones.matches_rows(refused))
    return rows.filter(pc.invert(erased)), int(pc.sum(erased).as_py() or 0)


def read_erasure(root: str, run_id: str) -> dict[str, Any]:
    """Read a run's pointer ``ERASED``; empty where none of its users was erased.

    Args:
        root: the warehouse's artefact folder.
    """
    return get_pointer(root, run_id, ERASED) if has_pointer(root, run_id, ERASED) else {}


def _location(warehouse: str, name: str) -> str:
    return join(absolute(warehouse), TOMBSTONES_FOLDER, name)


def _header(key: bytes) -> str:
    return f"{_HEADER} key {hashlib.sha256(key).hexdigest()[:16]}"


def _find_key(warehouse: str) -> bytes | None:
    if text := os.environ.get(KEY_VARIABLE):
        if len(text) < 16:
            raise ConfigError(f"{KEY_VARIABLE} has {len(text)} characters: use 16 or more, of `openssl rand -hex 32` say")
        return text.encode()
    try:
        return read_bytes(_location(warehouse, "key")).strip()
    except FileNotFoundError:
        return None


def _make_key(warehouse: str) -> bytes:
    key = secrets.token_hex(32).encode()
    replace_bytes(_location(warehouse, "key"), key + b"\n")
    return key
