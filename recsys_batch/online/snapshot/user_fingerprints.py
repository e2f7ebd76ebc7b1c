"""Fingerprints of a snapshot's users: they tell somebody whose record a store has lost from a stranger.

32 bits of a hash of each user's key, in ascending order; a stranger of whom a user has the same ones is taken for that user, one in
2^32 / n_users. They are not bits of a Bloom filter, as an erased user has to be taken out again.
"""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from recsys_batch.dataset.catalogue import mmap_npy


class UserFingerprints:
    """Fingerprints of all users that a snapshot has a list of: uint32 [n_users], ascending."""

    def __init__(self, sorted_prints: np.ndarray) -> None:
        self._sorted_prints = sorted_prints

    def __len__(self) -> int:
        return len(self._sorted_prints)

    def __contains__(self, key: bytes) -> bool:
        wanted = _fingerprint(key)
        position = int(np.searchsorted(self._sorted_prints, np.uint32(wanted)))
        return position < len(self) and int(self._sorted_prints[position]) == wanted

    def without(self, keys: Collection[bytes]) -> "UserFingerprints":
        """Make the fingerprints without these users'; one for each, where several users have the same."""
        positions = set()
        for wanted in sorted(_fingerprint(key) for key in keys):
            position = int(np.searchsorted(self._sorted_prints, np.uint32(wanted)))
            while position in positions:
                position += 1
            if position < len(self) and int(self._sorted_prints[position]) == wanted:
                positions.add(position)
        return UserFingerprints(np.delete(self._sorted_prints, sorted(positions)))

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, self._sorted_prints, allow_pickle=False)


def make_fingerprints(keys: Iterable[bytes]) -> UserFingerprints:
    """Make the fingerprints of users' keys, in any order: 4 bytes of memory each."""
    return UserFingerprints(np.sort(np.fromiter(map(_fingerprint, keys), dtype=np.uint32)))


def open_fingerprints(path: Path) -> UserFingerprints:
    """Memory-map what ``UserFingerprints.write`` wrote. Raises ValueError: it is something else."""
    sorted_prints = mmap_npy(path)
    if sorted_prints.dtype != np.uint32 or sorted_prints.ndim != 1 or (sorted_prints[1:] < sorted_prints[:-1]).any():
        raise ValueError(f"{path} does not hold ascending uint32, but {sorted_prints.dtype} of shape {sorted_prints.shape}")
    return UserFingerprints(sorted_prints)


def _fingerprint(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "little")
