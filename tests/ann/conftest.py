"""Item vectors with planted exact ties, and every backend over them. A new backend joins the contract by one line in BACKENDS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from recsys_batch.ann.index import IndexInfo, build_index
from recsys_batch.ann.search import Retriever, open_retriever
from recsys_batch.config import Retrieval

N_ITEMS, DIM = 3000, 16

BACKENDS: dict[str, Callable[[Path, IndexInfo], Retriever]] = {
    "exact": lambda directory, info: open_retriever(directory, info.exact()),
    "exact-2-threads": lambda directory, info: open_retriever(directory, info.exact(), n_threads=2),
    "ivf": lambda directory, info: open_retriever(directory, info, nprobe=10),
    "ivf-2-threads": lambda directory, info: open_retriever(directory, info, nprobe=10, n_threads=2),
    "ivf-all-lists": lambda directory, info: open_retriever(directory, info, nprobe=10**6),
}


@dataclass(frozen=True)
class Built:
    """An ivf index on disk (the exact one is its matrix) and the vectors that it was built from."""

    directory: Path
    info: IndexInfo
    vectors: np.ndarray

    @property
    def exact(self) -> Retriever:
        return open_retriever(self.directory, self.info.exact())

    def backend(self, name: str) -> Retriever:
        return BACKENDS[name](self.directory, self.info)


def make_vectors(seed: int = 0) -> np.ndarray:
    """float32 [N_ITEMS, DIM], 1200 of them copies of 6 vectors, spread over the rows: 5 x 100 copies and 1 x 700.

    The long tie is longer than the widest search that is not a scan of everything.
    """
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(N_ITEMS, DIM)).astype(np.float32)
    copied = rng.permutation(N_ITEMS)[:1200]
    for rows in np.split(copied, [100, 200, 300, 400, 500]):
        vectors[rows] = vectors[rows[0]]
    return vectors


@pytest.fixture(scope="session", params=["ip", "cosine"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    vectors = make_vectors()
    directory = tmp_path_factory.mktemp("index")
    info = build_index(vectors, Retrieval(mode="ivf", metric=request.param, n_candidates=50), directory, n_threads=1)
    return Built(directory, info, vectors)


@pytest.fixture(scope="session")
def queries() -> np.ndarray:
    """Random ones, then copies of tied items (whose k-th place is a tie for most k), then zeros (everything ties)."""
    random = np.random.default_rng(1).normal(size=(60, DIM)).astype(np.float32)
    vectors = make_vectors()
    _, first, count = np.unique(vectors, axis=0, return_index=True, return_counts=True)
    return np.concatenate([random, vectors[first[count > 1]], np.zeros((2, DIM), np.float32)])
