"""Item vectors with planted exact ties, and every backend over them. A new backend joins the contract by one line in BACKENDS."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_batch.ann import index
from recsys_batch.ann.index import IndexInfo, build_index, choose_layout
from recsys_batch.ann.kernels import scan_all
from recsys_batch.ann.retrievers import ExactRetriever, IvfRetriever, Retriever, prepare_queries
from recsys_batch.ann.search import open_retriever
from recsys_batch.config import Retrieval
from recsys_batch.ranking.vector_lengths import normalise_rows

N_ITEMS, DIM, N_CANDIDATES = 3000, 16, 50


@dataclass(frozen=True)
class Backend:
    """An index and how it is opened; ``finds_all`` where a search is as good as a scan of everything."""

    index: str
    finds_all: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    restricted: bool = False


BACKENDS = {
    "exact": Backend("exact", True),
    "exact-2-threads": Backend("exact", True, {"n_threads": 2}),
    "exact-in-list-order": Backend("exact of ivf", True),
    "exact-sharded": Backend("exact of sharded", True),
    "ivf": Backend("ivf", options={"nprobe": 10}),
    "ivf-2-threads": Backend("ivf", options={"nprobe": 10, "n_threads": 2}),
    "ivf-all-lists": Backend("ivf", True, {"nprobe": 10**6}),
    "int8": Backend("int8", options={"nprobe": 10, "overfetch": 1.5}),
    "sharded": Backend("sharded", options={"nprobe": 10}),
}
BACKENDS |= {
    f"{name}-among": replace(BACKENDS[name], restricted=True)
    for name in ("exact", "exact-in-list-order", "exact-sharded", "ivf", "ivf-all-lists", "int8", "sharded")
}


@dataclass(frozen=True)
class Built:
    """Indexes on disk and the vectors that they were built from.

    Attributes:
        infos: by name, among them "exact" (rows in code order), "ivf", "int8" and "sharded" (4 shards).
        stored: the vectors as the metric stores them.
        allowed: bool [n], what the restricted backends search.
    """

    directory: Path
    infos: Mapping[str, IndexInfo]
    vectors: np.ndarray
    stored: np.ndarray
    allowed: np.ndarray

    @property
    def exact(self) -> ExactRetriever:
        exact = self.open("exact")
        assert isinstance(exact, ExactRetriever)
        return exact

    def open(self, name: str, **options: Any) -> Retriever:
        info = self.infos[name.removeprefix("exact of ")]
        return open_retriever(self.directory, info.as_exact() if name.startswith("exact of ") else info, **options)

    def ivf(self, name: str = "ivf", **options: Any) -> IvfRetriever:
        retriever = self.open(name, **{"nprobe": 10, **options})
        assert isinstance(retriever, IvfRetriever)
        return retriever

    def prepared(self, queries: np.ndarray) -> np.ndarray:
        return prepare_queries(queries, 1, self.exact.items)


@dataclass(frozen=True)
class Case:
    """One backend over one built index."""

    built: Built
    name: str

    @property
    def backend(self) -> Backend:
        return BACKENDS[self.name]

    @property
    def retriever(self) -> Retriever:
        retriever = self.built.open(self.backend.index, **self.backend.options)
        return retriever.restrict(self.built.allowed) if self.backend.restricted else retriever

    @property
    def codes(self) -> np.ndarray:
        """What may be found."""
        return np.flatnonzero(self.built.allowed) if self.backend.restricted else np.arange(len(self.built.vectors))

    def scan(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The oracle: every allowed item scored, no shortcut; min(k, allowed) columns."""
        return scan_all(self.built.prepared(queries), self.built.stored[self.codes], k, self.codes)


def make_vectors(seed: int = 0) -> np.ndarray:
    """float32 [N_ITEMS, DIM], 1200 of them copies of 6 vectors, spread over the rows: 5 x 100 copies and 1 x 700.

    The long tie is longer than the widest search that is not a scan of everything, also where some items are left out.
    """
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(N_ITEMS, DIM)).astype(np.float32)
    copied = rng.permutation(N_ITEMS)[:1200]
    for rows in np.split(copied, [100, 200, 300, 400, 500]):
        vectors[rows] = vectors[rows[0]]
    return vectors


@pytest.fixture(scope="session", params=["ip", "cosine"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    vectors, directory = make_vectors(), tmp_path_factory.mktemp("index")
    settings = Retrieval(metric=request.param, n_candidates=N_CANDIDATES)
    infos = {
        "exact": build_index(vectors, settings.model_copy(update={"mode": "exact"}), directory, n_threads=1),
        "ivf": build_index(vectors, settings.model_copy(update={"mode": "ivf"}), directory, n_threads=1),
        "int8": build_index(vectors, settings.model_copy(update={"mode": "ivf", "storage": "int8"}), directory, n_threads=1),
    }
    with pytest.MonkeyPatch.context() as patch:
        # One MiB, the least that memory_mb can say, holds half of these vectors and more.
        patch.setattr(index, "choose_layout", lambda *arguments: replace(choose_layout(*arguments), n_shards=4))
        infos["sharded"] = build_index(vectors, settings.model_copy(update={"mode": "sharded"}), directory, n_threads=1)
    stored = normalise_rows(vectors) if request.param == "cosine" else vectors
    allowed = np.random.default_rng(9).random(N_ITEMS) < 0.6
    allowed[len(allowed) // 2 : len(allowed) // 2 + 150] = False
    return Built(directory, infos, vectors, stored, allowed)


@pytest.fixture(params=list(BACKENDS))
def case(built: Built, request: pytest.FixtureRequest) -> Case:
    return Case(built, request.param)


@pytest.fixture(params=[name for name, backend in BACKENDS.items() if backend.finds_all])
def exact_case(built: Built, request: pytest.FixtureRequest) -> Case:
    return Case(built, request.param)


@pytest.fixture(scope="session")
def queries() -> np.ndarray:
    """Random ones, then copies of tied items (whose k-th place is a tie for most k), then zeros (everything ties)."""
    random = np.random.default_rng(1).normal(size=(60, DIM)).astype(np.float32)
    vectors = make_vectors()
    _, first, count = np.unique(vectors, axis=0, return_index=True, return_counts=True)
    return np.concatenate([random, vectors[first[count > 1]], np.zeros((2, DIM), np.float32)])
