"""What every peer does before and after its model, in numpy, from the very files that our server maps: get the user's record, gather the
candidates' embeddings and features, take the ten best. Runs in the peers' own environments: numpy and lmdb only.
"""

import struct
from pathlib import Path

import lmdb
import numpy as np

_HEADER = struct.Struct("<BBHIHHHH")
N_FEATURES, K = 15, 10


class Lookup:
    def __init__(self, snapshot: str) -> None:
        folder = Path(snapshot)
        self._env = lmdb.open(str(folder / "users.lmdb"), subdir=False, readonly=True, lock=False, readahead=False)
        self._embeddings = np.load(folder / "items" / "embeddings.npy", mmap_mode="r").view(np.ndarray)
        self._popularity = np.load(folder / "items" / "log_popularity.npy", mmap_mode="r").view(np.ndarray)

    def get(self, user: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(user [d], candidates' codes [C], embeddings [C, d], features [C, F]) under the neutral context."""
        with self._env.begin() as txn:
            record = txn.get((user + 2**63).to_bytes(8, "big"))
        _, _, _, n_events, c, _, d, _ = _HEADER.unpack_from(record)
        vector = np.frombuffer(record, "<f4", d, 16)
        codes, retrieval = np.frombuffer(record, "<i4", c, 16 + 4 * d), np.frombuffer(record, "<f4", c, 16 + 4 * d + 4 * c)
        features = np.zeros((c, N_FEATURES), np.float32)
        features[:, 0], features[:, 1], features[:, 2] = retrieval, self._popularity[codes], np.log1p(n_events)
        return vector, codes, self._embeddings[codes], features

    @staticmethod
    def best(scores: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(items [10], scores [10])."""
        order = np.argpartition(-scores, K)[:K]
        order = order[np.lexsort((codes[order], -scores[order]))]
        return codes[order].astype(np.int64), scores[order]
