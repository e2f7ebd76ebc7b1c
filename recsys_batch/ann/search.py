"""Opening an index: files verified once per process, vectors memory-mapped and shared by all processes of a node."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from recsys_batch.ann.index import IndexInfo
from recsys_batch.ann.index_files import IndexFile, Verifier
from recsys_batch.ann.inverted_lists import InvertedLists
from recsys_batch.ann.kernels import max_row_norm
from recsys_batch.ann.retrievers import ExactRetriever, IvfRetriever, Retriever
from recsys_batch.ann.vector_storage import FloatRows, IndexedItems, IndexShard, Int8Rows, StoredRows
from recsys_batch.errors import IndexDamaged

_DEFAULT_NPROBE = 32
_verifier = Verifier()


def open_retriever(
    directory: str | Path, info: IndexInfo, nprobe: int | None = None, overfetch: float = 1.0, n_threads: int = 1
) -> Retriever:
    """A retriever over memory-mapped, verified files.

    The checksum is computed once per process and file; each later call only looks whether the file is still the same one.

    Args:
        nprobe: lists searched (where there are lists); 32 where it is not given.
        overfetch: int8 only: how many times more is fetched.

    Raises:
        IndexDamaged: a file is missing, or is not what ``info`` says.
    """
    folder = Path(directory)
    items = IndexedItems(
        n=info.n_items,
        dim=info.embedding_dim,
        max_norm=info.max_norm,
        cosine=info.metric == "cosine",
        codes=None,
        shards=_shards(folder, info),
    )
    if info.lists is None:
        return ExactRetriever(items, n_threads)
    tables = _tables(*_verifier.check(folder, info.lists), info.n_items, info.embedding_dim, info.nlist)
    items = IndexedItems(**{**items.__dict__, "codes": tables["codes"]})
    if info.mode == "exact":
        return ExactRetriever(items, n_threads)
    ends = tables["ends"]
    stored, stored_norm, row_of_code = items.shards, info.max_norm, None
    if info.int8 is not None and info.storage == "int8":
        low, step = tables["low"], tables["step"]
        int8, shape = info.int8, (info.n_items, info.embedding_dim)
        _verifier.check(folder, int8)
        stored = (IndexShard(0, info.n_items, lambda: Int8Rows(_kept_int8(*_verifier.check(folder, int8), shape, "uint8"), low, step)),)
        # No code is further from its value than half a step in each dimension.
        stored_norm = info.max_norm + float(np.linalg.norm(step.astype(np.float64))) / 2
        row_of_code = tables["row_of_code"]
    return IvfRetriever(
        items=items,
        stored=stored,
        stored_norm=stored_norm,
        lists=InvertedLists(np.concatenate([[0], ends[:-1]]), ends),
        centroids=tables["centroids"],
        centroid_norm=max_row_norm(tables["centroids"]),
        n_candidates=info.n_candidates,
        n_threads=n_threads,
        nprobe=nprobe or _DEFAULT_NPROBE,
        overfetch=overfetch,
        row_of_code=row_of_code,
    )


def _shards(folder: Path, info: IndexInfo) -> tuple[IndexShard, ...]:
    """The float32 vectors. One file is kept open; several are opened in turn, so that only one is in memory."""
    if sum(file.rows for file in info.vectors) != info.n_items:
        raise IndexDamaged(f"the files of {folder} hold {sum(f.rows for f in info.vectors)} rows, their description says {info.n_items}")
    load = _kept_vectors if len(info.vectors) == 1 else _map

    def rows_of(file: IndexFile) -> StoredRows:
        return FloatRows(load(*_verifier.check(folder, file), (file.rows, info.embedding_dim), "float32"))

    shards, first = [], 0
    for file in info.vectors:
        _verifier.check(folder, file)
        shards.append(IndexShard(first, first + file.rows, partial(rows_of, file)))
        first += file.rows
    return tuple(shards)


def _map(path: Path, version: tuple[object, ...], shape: tuple[int, int], dtype: str) -> np.ndarray:
    matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    if matrix.shape != shape or matrix.dtype != dtype:
        raise IndexDamaged(f"index file {path} holds {matrix.dtype} {matrix.shape}, its description says {dtype} {shape}")
    return np.asarray(matrix)


# One night's index per process: the one before is let go when another one is opened.
_kept_vectors = lru_cache(maxsize=1)(_map)
_kept_int8 = lru_cache(maxsize=1)(_map)


@lru_cache(maxsize=1)
def _tables(path: Path, version: tuple[object, ...], n_items: int, dim: int, nlist: int | None) -> dict[str, np.ndarray]:
    tables: dict[str, np.ndarray] = load_file(path)
    found, expected = (len(tables["codes"]), *tables["centroids"].shape), (n_items, nlist, dim)
    if found != expected:
        raise IndexDamaged(f"index file {path} holds (items, lists, dimensions) {found}, its description says {expected}")
    if "low" in tables:  # int8: what is fetched by code is looked up in the float32 rows
        tables["row_of_code"] = np.full(n_items + 1, -1, dtype=np.int64)
        tables["row_of_code"][tables["codes"]] = np.arange(n_items)
    return tables
