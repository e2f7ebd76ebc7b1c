"""Open an index: verify its files once per process and memory-map the vectors, shared by all processes of a node."""

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
    """Open a retriever over memory-mapped, verified index files.

    The checksum is computed once per process and file; later calls only check that the file was not replaced.

    Args:
        nprobe: inverted lists to search, where the index has any; 32 where not given.
        overfetch: factor of extra results fetched from int8 lists before re-ranking.

    Raises IndexDamaged where a file is missing or does not match ``info``.
    """
    folder = Path(directory)
    shape = info.n_items, info.embedding_dim
    shards = _open_vector_shards(folder, info)
    tensors = None if info.lists is None else _load_list_tensors(*_verifier.check(folder, info.lists), *shape, info.nlist)
    codes = None if tensors is None else tensors["codes"]
    items = IndexedItems(*shape, max_norm=info.max_norm, cosine=info.metric == "cosine", codes=codes, shards=shards)
    if tensors is None or info.mode == "exact":
        return ExactRetriever(items, n_threads)
    ends, search_shards, search_max_norm = tensors["ends"], shards, info.max_norm
    if info.int8 is not None and info.storage == "int8":
        low, step = tensors["low"], tensors["step"]
        int8 = info.int8
        _verifier.check(folder, int8)

        def open_int8() -> StoredRows:
            return Int8Rows(_cached_int8(*_verifier.check(folder, int8), shape, "uint8"), low, step)

        search_shards = (IndexShard(0, info.n_items, open_int8),)
        # No code is further from its value than half a step in each dimension.
        search_max_norm = info.max_norm + float(np.linalg.norm(step.astype(np.float64))) / 2
    return IvfRetriever(
        items=items,
        search_shards=search_shards,
        search_max_norm=search_max_norm,
        lists=InvertedLists(np.concatenate([[0], ends[:-1]]), ends),
        centroids=tensors["centroids"],
        centroid_norm=max_row_norm(tensors["centroids"]),
        n_candidates=info.n_candidates,
        n_threads=n_threads,
        nprobe=nprobe or _DEFAULT_NPROBE,
        overfetch=overfetch,
        row_of_code=tensors.get("row_of_code") if info.storage == "int8" else None,
    )


def _open_vector_shards(folder: Path, info: IndexInfo) -> tuple[IndexShard, ...]:
    """Verify the float32 vector files. A single one stays mapped; several are mapped in turn, so that one is in memory at a time."""
    if sum(file.rows for file in info.vectors) != info.n_items:
        raise IndexDamaged(f"the files of {folder} hold {sum(f.rows for f in info.vectors)} rows, their description says {info.n_items}")
    load = _cached_vectors if len(info.vectors) == 1 else _map_matrix

    def open_rows(file: IndexFile) -> StoredRows:
        return FloatRows(load(*_verifier.check(folder, file), (file.rows, info.embedding_dim), "float32"))

    shards, first_row = [], 0
    for file in info.vectors:
        _verifier.check(folder, file)
        shards.append(IndexShard(first_row, first_row + file.rows, partial(open_rows, file)))
        first_row += file.rows
    return tuple(shards)


def _map_matrix(path: Path, version: tuple[object, ...], shape: tuple[int, int], dtype: str) -> np.ndarray:
    matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    if matrix.shape != shape or matrix.dtype != dtype:
        raise IndexDamaged(f"index file {path} holds {matrix.dtype} {matrix.shape}, its description says {dtype} {shape}")
    return np.asarray(matrix)


# One index per process: opening another one releases the previous mapping.
_cached_vectors = lru_cache(maxsize=1)(_map_matrix)
_cached_int8 = lru_cache(maxsize=1)(_map_matrix)


@lru_cache(maxsize=1)
def _load_list_tensors(path: Path, version: tuple[object, ...], n_items: int, dim: int, nlist: int | None) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = load_file(path)
    actual, expected = (len(tensors["codes"]), *tensors["centroids"].shape), (n_items, nlist, dim)
    if actual != expected:
        raise IndexDamaged(f"index file {path} holds (items, lists, dimensions) {actual}, its description says {expected}")
    if "low" in tensors:  # int8: re-ranking looks fetched codes up in the float32 rows
        tensors["row_of_code"] = np.full(n_items + 1, -1, dtype=np.int64)
        tensors["row_of_code"][tensors["codes"]] = np.arange(n_items)
    return tensors
