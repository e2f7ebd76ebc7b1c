"""Building an index: which mode, which lists, which files.

Every index has the item vectors as float32, which is all that exact search needs; ``ivf`` puts them in the order of its inverted
lists, so one matrix serves both (``IndexInfo.exact``). int8 adds a copy in a quarter of the size that the lists are searched in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from recsys_batch.ann.index_files import IndexFile, store_index_file
from recsys_batch.ann.kernels import faiss_module, limit_threads, max_row_norm, normalise_rows
from recsys_batch.ann.vector_storage import int8_scale, quantize
from recsys_batch.config import Retrieval
from recsys_batch.errors import IndexDamaged, UsageError

Mode = Literal["exact", "ivf", "sharded"]
Storage = Literal["float32", "int8"]
_MIN_LIST = 16  # items per inverted list, below which lists are mostly noise
_KMEANS_ROUNDS = 10
_KMEANS_POINTS = 128  # sampled per list: k-means of a million items need not read all of them in every round
_SEED = 1234
ASSIGN_ROWS = 65_536
"""Rows assigned to lists at once. Whoever assigns does it in these blocks, so that the same items give the same lists."""

Assign = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(vectors float32 [n, d], centroids float32 [nlist, d]) -> int64 [n], each row's list, as ``assign`` finds it."""


@dataclass(frozen=True)
class Layout:
    """How an index is kept and searched.

    Attributes:
        n_bytes: of the item vectors that are searched: what has to be in memory, at least in turn.
        reason: why, in words.
    """

    mode: Mode
    storage: Storage
    n_shards: int
    n_bytes: int
    reason: str

    @property
    def resident_bytes(self) -> int:
        """Of item vectors, in memory at once."""
        return -(-self.n_bytes // self.n_shards)


@dataclass(frozen=True)
class IndexInfo:
    """What a reader has to know to open an index; JSON both ways.

    Attributes:
        mode: how it is searched. "sharded" is "ivf" whose vectors are mapped a part at a time.
        storage: what the lists are searched in.
        reason: why this mode.
        metric: "ip", or "cosine" (the vectors are stored normalised, queries are normalised when they come).
        n_items, embedding_dim: shape of the matrix.
        max_norm: length of the longest vector.
        vectors: the float32 matrix, one file per shard (.npy); in code order, or in the order of the lists where there are any.
        lists: centroids, ends of the lists and codes of the rows (safetensors); None where ``vectors`` are in code order.
        int8: the matrix as codes, its scale in ``lists``; None for float32.
        n_candidates: results that an nprobe is meant for.
        nlist: inverted lists, None for "exact".
        imbalance: 1.0 where all lists are equally long, nlist where one holds everything; None for "exact"
            [nlist * sum of squared sizes / n squared].
        n_bytes: size of all its files.
    """

    mode: Mode
    storage: Storage
    reason: str
    metric: Literal["ip", "cosine"]
    n_items: int
    embedding_dim: int
    max_norm: float
    vectors: tuple[IndexFile, ...]
    lists: IndexFile | None
    int8: IndexFile | None
    n_candidates: int
    nlist: int | None
    imbalance: float | None
    n_bytes: int

    def exact(self) -> IndexInfo:
        """Exact search over the same vectors."""
        return replace(self, mode="exact", storage="float32")

    def files(self) -> list[IndexFile]:
        return [*self.vectors, *(file for file in (self.lists, self.int8) if file is not None)]

    def checksums(self) -> dict[str, str]:
        """name -> SHA-256 of each file."""
        return {file.name: file.sha256 for file in self.files()}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IndexInfo:
        """The inverse of ``to_dict``.

        Raises:
            IndexDamaged: a key is missing or unknown (written by another release).
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise IndexDamaged(f"index description has keys {sorted(values)}, expected {sorted(known)}: build the index again")
        files = {name: IndexFile(**values[name]) if values[name] else None for name in ("lists", "int8")}
        return cls(**{**values, **files, "vectors": tuple(IndexFile(**file) for file in values["vectors"])})


def choose_layout(settings: Retrieval, n_items: int, embedding_dim: int) -> Layout:
    """How ``n_items`` are kept and searched under ``settings``: the mode that is set, or for "auto" the one that fits.

    "auto" is exact up to ``exact_max_items``; above, inverted lists in float32 where ``memory_mb`` holds them, in int8 where it
    holds that, else shards.
    """
    as_float, budget = n_items * embedding_dim * 4, settings.memory_mb * 2**20
    size = f"{n_items} items of {embedding_dim} dimensions ({as_float / 2**20:.1f} MiB as float32)"
    limit = f"retrieval.memory_mb = {settings.memory_mb}"
    storage: Storage = "int8" if settings.storage == "int8" or (settings.storage == "auto" and as_float > budget) else "float32"
    if settings.mode != "auto":
        mode, reason = settings.mode, f"retrieval.mode = {settings.mode}"
    elif n_items <= settings.exact_max_items:
        mode, reason = "exact", f"auto: {size}, at most retrieval.exact_max_items = {settings.exact_max_items}"
    elif (as_float if storage == "float32" else as_float // 4) > budget:
        mode, reason = "sharded", f"auto: {size}, more than {limit} holds as {storage}"
    else:
        mode, reason = "ivf", f"auto: {size}, more than retrieval.exact_max_items = {settings.exact_max_items}"
        if storage == "int8" and settings.storage == "auto":
            reason += f", int8 as {limit}"
    if mode == "sharded":
        n_shards = max(2, -(-as_float // budget))
        return Layout(mode, "float32", min(n_shards, max(n_items, 1)), as_float, reason)
    if mode == "exact":
        storage = "float32"
    return Layout(mode, storage, 1, as_float if storage == "float32" else as_float // 4, reason)


def n_lists(settings: Retrieval, n_items: int) -> int:
    """``retrieval.nlist``, or 4 * sqrt(n), at least ``_MIN_LIST`` items in each."""
    return settings.nlist or max(1, min(round(4 * n_items**0.5), n_items // _MIN_LIST))


def build_index(
    embeddings: np.ndarray, settings: Retrieval, directory: Path, n_threads: int, assign_rows: Assign | None = None
) -> IndexInfo:
    """Write the index of the given rows into ``directory`` (made if needed); row numbers are what searches return.

    Args:
        embeddings: float32 [n, d], finite, n >= 1; rows in ascending item order, so that ties break by item.
        n_threads: for training the inverted lists.
        assign_rows: distributes the rows over the lists, many machines at once; ``assign`` here where not given.

    Raises:
        UsageError: no rows, another shape or dtype, a value that is not finite, or more lists than items.
    """
    _check(embeddings, settings)
    limit_threads(n_threads)
    directory.mkdir(parents=True, exist_ok=True)
    vectors = normalise_rows(embeddings) if settings.metric == "cosine" else np.ascontiguousarray(embeddings)
    layout = choose_layout(settings, *vectors.shape)
    exact = IndexInfo(
        mode="exact",
        storage="float32",
        reason=layout.reason,
        metric=settings.metric,
        n_items=vectors.shape[0],
        embedding_dim=vectors.shape[1],
        max_norm=max_row_norm(vectors),
        vectors=(),
        lists=None,
        int8=None,
        n_candidates=settings.n_candidates,
        nlist=None,
        imbalance=None,
        n_bytes=0,
    )
    if layout.mode == "exact":
        return _sized(replace(exact, vectors=_put_matrix(directory, "vectors", vectors, 1)))
    nlist = n_lists(settings, len(vectors))
    centroids = _train(vectors, nlist)
    list_of = (assign_rows or _assign_here)(vectors, centroids)
    codes = np.argsort(list_of, kind="stable")
    sizes = np.bincount(list_of, minlength=nlist)
    vectors = vectors[codes]
    tensors = {"centroids": centroids, "ends": np.cumsum(sizes), "codes": codes}
    int8 = None
    if layout.storage == "int8":
        tensors["low"], tensors["step"] = int8_scale(vectors)
        (int8,) = _put_matrix(directory, "int8", quantize(vectors, tensors["low"], tensors["step"]), 1)
    return _sized(
        replace(
            exact,
            mode=layout.mode,
            storage=layout.storage,
            vectors=_put_matrix(directory, "vectors", vectors, layout.n_shards),
            lists=store_index_file(directory, "lists", ".safetensors", lambda path: save_file(tensors, path)),
            int8=int8,
            nlist=nlist,
            imbalance=float(nlist * np.square(sizes.astype(np.float64)).sum() / len(vectors) ** 2),
        )
    )


def assign_to_lists(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """int64 [n], the list whose centroid is nearest (Euclidean) to each row; for blocks of ``ASSIGN_ROWS``."""
    _, nearest = faiss_module().knn(vectors, centroids, 1)
    return np.asarray(nearest[:, 0], dtype=np.int64)


def _assign_here(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [assign_to_lists(vectors[start : start + ASSIGN_ROWS], centroids) for start in range(0, len(vectors), ASSIGN_ROWS)]
    )


def _train(vectors: np.ndarray, nlist: int) -> np.ndarray:
    """float32 [nlist, d], the centroids of Euclidean cells, which queries probe by inner product.

    faiss's own way for inner products, spherical cells, ignores lengths: at nprobe 64 of 894 it found 0.80 of the top 200 where
    this finds 0.98 (50,000 x 64, decaying spectrum), 0.84 against 0.92 with log-normal lengths, and no more on vectors of equal
    length. One point per centroid is enough: small catalogues are meant, and faiss would warn below 39.
    """
    kmeans = faiss_module().Kmeans(
        vectors.shape[1],
        nlist,
        niter=_KMEANS_ROUNDS,
        seed=_SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=_KMEANS_POINTS,
    )
    kmeans.train(vectors)
    return np.asarray(kmeans.centroids, dtype=np.float32)


def _put_matrix(directory: Path, stem: str, matrix: np.ndarray, n_files: int) -> tuple[IndexFile, ...]:
    bounds = np.linspace(0, len(matrix), n_files + 1).astype(int)
    parts = [matrix[a:b] for a, b in itertools.pairwise(bounds)]
    return tuple(store_index_file(directory, stem, ".npy", lambda path, part=part: _save(path, part), len(part)) for part in parts)  # type: ignore[misc]


def _save(path: Path, matrix: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, matrix, allow_pickle=False)


def _sized(info: IndexInfo) -> IndexInfo:
    return replace(info, n_bytes=sum(file.n_bytes for file in info.files()))


def _check(embeddings: np.ndarray, settings: Retrieval) -> None:
    if embeddings.ndim != 2 or embeddings.dtype != np.float32:
        raise UsageError(f"an index needs float32 [n_items, embedding_dim], found {embeddings.dtype} of shape {embeddings.shape}")
    n, d = embeddings.shape
    if n == 0 or d == 0:
        raise UsageError(f"an index needs items, found {n} of {d} dimensions: is any item available and embedded?")
    if not np.isfinite(embeddings).all():
        row = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
        raise UsageError(f"the embedding in row {row} is not finite: the model is broken, or its input is")
    if settings.nlist is not None and settings.nlist > n and choose_layout(settings, n, d).mode != "exact":
        raise UsageError(f"retrieval.nlist = {settings.nlist} is more than the {n} items: lower it or leave it unset")
