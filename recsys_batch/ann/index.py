"""Build an index from item vectors: choose the layout, train the lists, write the files. Called by the night; knows no Spark.

Every index has the item vectors as float32, which is all that exact search needs; ``ivf`` stores them in the order of its inverted
lists, so one matrix serves both (``IndexInfo.as_exact``). int8 adds a copy in a quarter of the size that the lists are searched in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recsys_batch.ann.index_files import IndexFile, store_index_file
from recsys_batch.ann.kernels import import_faiss, limit_threads, max_row_norm
from recsys_batch.ann.vector_storage import fit_int8_scale, quantize
from recsys_batch.config import Retrieval
from recsys_batch.errors import IndexDamaged, UsageError
from recsys_batch.ranking.vector_lengths import normalise_rows
from recsys_batch.storage.tensor_files import write_tensors

IndexMode = Literal["exact", "ivf", "sharded"]
StorageDtype = Literal["float32", "int8"]
_MIN_ITEMS_PER_LIST = 16  # shorter lists are mostly noise
_KMEANS_ITERATIONS = 8
_KMEANS_ROWS_PER_LIST = 48  # sampled per list (decision 0270)
_KMEANS_SEED = 1234
ASSIGN_ROWS = 65_536
"""Rows assigned to lists at once, by every implementation, so that the same items give the same lists."""

AssignFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(vectors float32 [n, d], centroids float32 [nlist, d]) -> int64 [n], the list of each row, as by ``assign_to_lists``."""


@dataclass(frozen=True)
class Layout:
    """Storage and search mode of an index, and the reason in words.

    ``n_bytes`` is the size of the vectors that are searched; a sharded index has one shard of them in memory at a time.
    """

    mode: IndexMode
    storage: StorageDtype
    n_shards: int
    n_bytes: int
    reason: str

    @property
    def resident_bytes(self) -> int:
        """Bytes of item vectors in memory at once."""
        return -(-self.n_bytes // self.n_shards)


@dataclass(frozen=True, kw_only=True)
class IndexInfo:
    """Description of an index, from which it is opened; stored as JSON.

    Attributes:
        mode: how it is searched. "sharded" is "ivf" whose vectors are mapped one shard at a time.
        storage: dtype of the vectors that the lists are searched in.
        reason: why this mode.
        metric: "ip", or "cosine" (the vectors are stored normalised, queries are normalised on arrival).
        n_items, embedding_dim: shape of the matrix.
        max_norm: length of the longest vector.
        vectors: the float32 matrix, one file per shard (.npy); in code order, or in the order of the lists where there are any.
        lists: centroids, ends of the lists and codes of the rows (safetensors); None where ``vectors`` are in code order.
        int8: the matrix as codes, its scale in ``lists``; None for float32.
        n_candidates: number of results for which nprobe is tuned.
        nlist: inverted lists, None for "exact".
        imbalance: 1.0 where all lists are equally long, nlist where one holds everything; None for "exact"
            [nlist * sum of squared sizes / n squared].
        n_bytes: size of all its files.
    """

    mode: IndexMode
    storage: StorageDtype
    reason: str
    metric: Literal["ip", "cosine"]
    n_items: int
    embedding_dim: int
    max_norm: float
    vectors: tuple[IndexFile, ...] = ()
    lists: IndexFile | None = None
    int8: IndexFile | None = None
    n_candidates: int
    nlist: int | None = None
    imbalance: float | None = None
    n_bytes: int = 0

    def as_exact(self) -> IndexInfo:
        """Describe exact search over the same vectors."""
        return replace(self, mode="exact", storage="float32")

    def files(self) -> list[IndexFile]:
        """Every file of the index."""
        return [*self.vectors, *(file for file in (self.lists, self.int8) if file is not None)]

    def checksums(self) -> dict[str, str]:
        """SHA-256 of each file by name."""
        return {file.name: file.sha256 for file in self.files()}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IndexInfo:
        """Parse the output of ``to_dict``; raises IndexDamaged where a key is missing or unknown (written by another release)."""
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise IndexDamaged(f"index description has keys {sorted(values)}, expected {sorted(known)}: build the index again")
        files = {name: IndexFile(**values[name]) if values[name] else None for name in ("lists", "int8")}
        return cls(**{**values, **files, "vectors": tuple(IndexFile(**file) for file in values["vectors"])})


def choose_layout(settings: Retrieval, n_items: int, embedding_dim: int) -> Layout:
    """Choose storage and search mode for ``n_items``: the mode in ``settings``, or for "auto" the one that fits.

    "auto" is exact up to ``exact_max_items``; above, inverted lists in float32 where ``memory_mb`` holds them, in int8 where it
    holds that, else shards.
    """
    as_float, budget = n_items * embedding_dim * 4, settings.memory_mb * 2**20
    size = f"{n_items} items of {embedding_dim} dimensions ({as_float / 2**20:.1f} MiB as float32)"
    limit = f"retrieval.memory_mb = {settings.memory_mb}"
    storage: StorageDtype = "int8" if settings.storage == "int8" or (settings.storage == "auto" and as_float > budget) else "float32"
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


def choose_nlist(settings: Retrieval, n_items: int) -> int:
    """Choose the number of inverted lists: ``retrieval.nlist``, or 4 * sqrt(n) with ``_MIN_ITEMS_PER_LIST`` items or more in each."""
    return settings.nlist or max(1, min(round(4 * n_items**0.5), n_items // _MIN_ITEMS_PER_LIST))


def build_index(
    embeddings: np.ndarray, settings: Retrieval, directory: Path, n_threads: int, assign_rows: AssignFunction | None = None
) -> IndexInfo:
    """Write an index of the embeddings into ``directory`` (made if needed); searches return row numbers as codes.

    Args:
        embeddings: float32 [n, d], finite, n >= 1; rows in ascending item order, so that ties break by item.
        n_threads: for training the inverted lists.
        assign_rows: assigns rows to lists, on executors for instance; in this process where not given.

    Raises UsageError: no rows, wrong shape or dtype, a value that is not finite, or more lists than items.
    """
    _check_embeddings(embeddings, settings)
    limit_threads(n_threads)
    directory.mkdir(parents=True, exist_ok=True)
    vectors = normalise_rows(embeddings) if settings.metric == "cosine" else np.ascontiguousarray(embeddings)
    layout = choose_layout(settings, *vectors.shape)
    info = IndexInfo(
        mode=layout.mode,
        storage=layout.storage,
        reason=layout.reason,
        metric=settings.metric,
        n_items=vectors.shape[0],
        embedding_dim=vectors.shape[1],
        max_norm=max_row_norm(vectors),
        n_candidates=settings.n_candidates,
    )
    if layout.mode == "exact":
        return _with_total_bytes(replace(info, vectors=_store_matrix(directory, "vectors", vectors, 1)))
    nlist = choose_nlist(settings, len(vectors))
    centroids = _train_centroids(vectors, nlist)
    assignments = (assign_rows or _assign_in_blocks)(vectors, centroids)
    codes = np.argsort(assignments, kind="stable")
    sizes = np.bincount(assignments, minlength=nlist)
    vectors = vectors[codes]
    tensors = {"centroids": centroids, "ends": np.cumsum(sizes), "codes": codes}
    int8 = None
    if layout.storage == "int8":
        tensors["low"], tensors["step"] = fit_int8_scale(vectors)
        (int8,) = _store_matrix(directory, "int8", quantize(vectors, tensors["low"], tensors["step"]), 1)
    return _with_total_bytes(
        replace(
            info,
            vectors=_store_matrix(directory, "vectors", vectors, layout.n_shards),
            lists=store_index_file(directory, "lists", ".safetensors", lambda path: write_tensors(path, tensors)),
            int8=int8,
            nlist=nlist,
            imbalance=float(nlist * np.square(sizes.astype(np.float64)).sum() / len(vectors) ** 2),
        )
    )


def assign_to_lists(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Find the list whose centroid is nearest (Euclidean) to each row, int64 [n]; call it with blocks of ``ASSIGN_ROWS``."""
    _, nearest = import_faiss().knn(vectors, centroids, 1)
    return np.asarray(nearest[:, 0], dtype=np.int64)


def _assign_in_blocks(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    blocks = np.split(vectors, range(ASSIGN_ROWS, len(vectors), ASSIGN_ROWS))
    return np.concatenate([assign_to_lists(block, centroids) for block in blocks])


def _train_centroids(vectors: np.ndarray, nlist: int) -> np.ndarray:
    """Train centroids float32 [nlist, d] by Euclidean k-means; queries probe them by inner product.

    faiss's spherical k-means for inner products ignores vector lengths: at nprobe 64 of 894 it found 0.80 of the top 200 where
    Euclidean cells find 0.98 (50,000 x 64, decaying spectrum), 0.84 against 0.92 with log-normal lengths, and no more on vectors of equal
    length. One point per centroid is allowed: faiss would warn below 39, and catalogues may be small.
    """
    sample = vectors[_sample_training_rows(vectors, nlist * _KMEANS_ROWS_PER_LIST)]
    kmeans = import_faiss().Kmeans(
        vectors.shape[1],
        nlist,
        niter=_KMEANS_ITERATIONS,
        seed=_KMEANS_SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=_KMEANS_ROWS_PER_LIST,
    )
    kmeans.train(sample)
    return np.asarray(kmeans.centroids, dtype=np.float32)


def _sample_training_rows(vectors: np.ndarray, n_rows: int) -> np.ndarray:
    """Sample at most ``n_rows`` rows for k-means, int64 ascending: half by chance, half in proportion to the squared distance to the mean.

    The distribution of lightweight coresets (Bachem et al. 2018, "Scalable k-means clustering via lightweight coresets", eq. 4), without
    their weights: the long vectors are what queries find, and they shall have more lists than their number gives them.
    """
    if len(vectors) <= n_rows:
        return np.arange(len(vectors))
    from_mean = vectors - vectors.mean(axis=0)
    squared = np.einsum("nd,nd->n", from_mean, from_mean, dtype=np.float64)
    chance = 0.5 / len(vectors) + 0.5 * squared / max(float(squared.sum()), 1e-300)
    arrival = np.random.default_rng(_KMEANS_SEED).exponential(size=len(vectors)) / chance  # the first to arrive are drawn
    return np.sort(np.argpartition(arrival, n_rows - 1)[:n_rows])


def _store_matrix(directory: Path, stem: str, matrix: np.ndarray, n_files: int) -> tuple[IndexFile, ...]:
    bounds = np.linspace(0, len(matrix), n_files + 1).astype(int)
    parts = [matrix[a:b] for a, b in itertools.pairwise(bounds)]
    return tuple(store_index_file(directory, stem, ".npy", lambda path, part=part: _write_npy(path, part), len(part)) for part in parts)  # type: ignore[misc]


def _write_npy(path: Path, matrix: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, matrix, allow_pickle=False)


def _with_total_bytes(info: IndexInfo) -> IndexInfo:
    return replace(info, n_bytes=sum(file.n_bytes for file in info.files()))


def _check_embeddings(embeddings: np.ndarray, settings: Retrieval) -> None:
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
