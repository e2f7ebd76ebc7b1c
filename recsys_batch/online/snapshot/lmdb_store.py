"""Store of users' records in LMDB. LMDB is a file of the snapshot; Redis is a server, and its answers can be late or missing."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from recsys_batch.errors import RecsysBatchError

_TXN_RECORDS = 20_000
_INITIAL_MAP_BYTES = 64 * 2**20
_OPEN_FILES: WeakValueDictionary[tuple[int, int], lmdb.Environment] = WeakValueDictionary()
"""LMDB opens a file once per process: who calls ``open_snapshot`` for an open one again shares its environment. By device and inode, as an
erasure puts another file under the same name."""


class StoreUnavailable(Exception):
    """The store did not answer in time, or not at all; the message says what happened."""


class LmdbStore:
    """A read-only map of a file; several processes share its pages. Raises RecsysBatchError: not a file that LMDB opens."""

    def __init__(self, path: Path) -> None:
        try:
            status = path.stat()
            env = _OPEN_FILES.get((status.st_dev, status.st_ino))
            # The file never changes, so nobody locks it; lookups are at random, so nothing is read ahead.
            self._env = env or lmdb.open(str(path.resolve()), subdir=False, readonly=True, lock=False, readahead=False, max_spare_txns=4)
        except (lmdb.Error, FileNotFoundError) as error:
            raise RecsysBatchError(f"{path} is not an LMDB file that can be read: {error}") from None
        _OPEN_FILES[(status.st_dev, status.st_ino)] = self._env

    def get(self, key: bytes) -> bytes | None:
        with self._env.begin() as txn:
            record: bytes | None = txn.get(key)
            return record

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Read all records in the order of keys: (key, record)."""
        with self._env.begin() as txn:
            yield from ((bytes(key), bytes(record)) for key, record in txn.cursor())

    def sample_keys(self, n: int) -> list[bytes]:
        """Read the keys of about n users, evenly by key order of the first few thousand; to warm up with."""
        with self._env.begin() as txn:
            return [bytes(key) for key in islice(txn.cursor().iternext(keys=True, values=False), 0, 50 * n, 50)]

    def __len__(self) -> int:
        return int(self._env.stat()["entries"])

    def close(self) -> None:
        """Let go of the file: it is closed once no store of this process has it."""
        del self._env


def write_lmdb(path: Path, records: Iterable[tuple[bytes, bytes]]) -> int:
    """Write a file of records; returns how many there are.

    In ascending order of keys each page is filled before the next is begun (half the size that random order takes); what is out of
    order is put where it belongs. Raises RecsysBatchError: a key twice.
    """
    n = 0
    # Nothing is synced on the way: the file is no snapshot before it is whole, and is synced once then.
    env = lmdb.open(str(path), subdir=False, map_size=_INITIAL_MAP_BYTES, lock=False, sync=False, metasync=False, writemap=False)
    try:
        remaining = iter(records)
        while batch := list(islice(remaining, _TXN_RECORDS)):
            n += _put_batch(env, batch)
        env.sync(True)
    finally:
        env.close()
    return n


def _put_batch(env: lmdb.Environment, records: list[tuple[bytes, bytes]]) -> int:
    needed = 4 * sum(len(key) + len(value) + 64 for key, value in records)
    while True:
        try:
            with env.begin(write=True) as txn:
                for key, value in records:
                    if not txn.put(key, value, append=True) and not txn.put(key, value, overwrite=False):
                        raise RecsysBatchError(f"a user has two records (key {key!r}): is a user listed twice in candidates?")
            return len(records)
        except lmdb.MapFullError:
            env.set_mapsize(env.info()["map_size"] * 2 + needed)
