"""Opening an index once per process, and finding n unseen items for every user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys_batch.ann.backends import ExactRetriever, IvfRetriever, Probing, Retriever, Vectors
from recsys_batch.ann.index import IndexInfo
from recsys_batch.ann.kernels import blocks, faiss_module, longest
from recsys_batch.bundle import sha256_file
from recsys_batch.errors import IndexDamaged, RecsysBatchError
from recsys_batch.topk import NO_CODE

__all__ = ["Probing", "Retrieved", "Retriever", "open_retriever", "retrieve"]

_DEFAULT_NPROBE = 32
_FIRST_WIDTH = 5
_SEEN_CELLS = 16_000_000  # bytes of the (user, item) bitmap that seen items are looked up in
_opened: dict[str, tuple[tuple[object, ...], Any]] = {}
"""Kind of file -> (its identity, what was opened): one inverted file and one matrix per process, as a worker serves one night."""


def open_retriever(directory: str | Path, info: IndexInfo, nprobe: int | None = None, n_threads: int = 1) -> Retriever:
    """A retriever over memory-mapped, verified files.

    The checksum is computed once per process and file; each later call only looks whether the file is still the same one (inode,
    size, time of change). That first reading also brings the file into the page cache, which a mapped inverted file needs.

    Args:
        nprobe: lists searched ("ivf" only); 32 where it is not given.

    Raises:
        IndexDamaged: a file is missing, or is not what ``info`` says.
    """
    folder = Path(directory)
    vectors = Vectors(
        matrix=_verified(folder / info.vectors_file, info.vectors_sha256, "vectors", lambda path: _map_matrix(path, info)),
        max_norm=info.max_norm,
        cosine=info.metric == "cosine",
    )
    if info.mode == "exact":
        return ExactRetriever(vectors, n_threads)
    index, centroids = _verified(folder / info.file, info.sha256, "ivf", lambda path: _map_ivf(path, info))
    return IvfRetriever(vectors, index, centroids, nprobe or _DEFAULT_NPROBE, info.n_candidates, n_threads)


@dataclass(frozen=True)
class Retrieved:
    """Each user's best unseen items: scores float32 [B, n] (-inf padded), codes int64 [B, n] (-1 padded), counts int64 [B]."""

    scores: np.ndarray
    codes: np.ndarray
    counts: np.ndarray


def retrieve(
    retriever: Retriever,
    exact: Retriever,
    queries: np.ndarray,
    seen_offsets: np.ndarray,
    seen_codes: np.ndarray,
    n_candidates: int,
    n_items: int,
) -> Retrieved:
    """``n_candidates`` unseen items per user, or all that the user has left.

    A user with s seen items needs at most n + s results. Users are grouped by s (rounded up to a power of 4) and each group is
    searched as wide as it needs, so one heavy user makes nobody else's search wider. Heavy users are first searched only
    5 n wide, as many of their seen items rank lower; whoever comes short is searched n + s wide, then exactly.

    Args:
        retriever, exact: over the same ``n_items`` items.
        queries: float32 [B, d].
        seen_offsets: int64 [B + 1]; user b has seen ``seen_codes[seen_offsets[b]:seen_offsets[b + 1]]`` (duplicates allowed).
        seen_codes: int64 [total], within [0, n_items).

    Raises:
        RecsysBatchError: seen codes out of range, offsets that do not fit, or an ``exact`` that holds fewer than ``n_items``.
    """
    seen = _seen_keys(seen_offsets, seen_codes, len(queries), n_items)
    n_seen = np.bincount(seen // n_items, minlength=len(queries)).astype(np.int64)
    needed = np.minimum(n_candidates, n_items - n_seen)
    found = Retrieved(
        scores=np.full((len(queries), n_candidates), -np.inf, dtype=np.float32),
        codes=np.full((len(queries), n_candidates), NO_CODE, dtype=np.int64),
        counts=np.zeros(len(queries), dtype=np.int64),
    )
    full = np.minimum(n_candidates + _bucket(n_seen), n_items)
    first = np.minimum(full, _FIRST_WIDTH * n_candidates)

    def search(searcher: Retriever, widths: np.ndarray, short: np.ndarray) -> None:
        for width in np.unique(widths[short]):
            group = np.flatnonzero(short & (widths == width))
            for part in blocks(len(group), int(width)):
                scores, codes = searcher.search(queries[group[part]], int(width))
                _keep_unseen(found, group[part], scores, codes, seen, n_items)

    search(retriever, first, needed > 0)
    search(retriever, full, (found.counts < needed) & (full > first))
    search(exact, full, found.counts < needed)
    if (found.counts < needed).any():
        worst = int(np.argmax(needed - found.counts))
        raise RecsysBatchError(
            f"exact search found {found.counts[worst]} of the {needed[worst]} items that user {worst} has left: "
            f"it must be over the same {n_items} items"
        )
    return found


def _seen_keys(offsets: np.ndarray, codes: np.ndarray, n_users: int, n_items: int) -> np.ndarray:
    """user * n_items + code, unique and ascending."""
    if len(offsets) != n_users + 1 or offsets[-1] != len(codes):
        raise RecsysBatchError(f"{len(offsets)} seen offsets, the last {offsets[-1]}, for {n_users} users and {len(codes)} codes")
    if len(codes) and (codes.min() < 0 or codes.max() >= n_items):
        raise RecsysBatchError(
            f"seen codes run from {codes.min()} to {codes.max()}, the index has {n_items} items: map them to its rows first"
        )
    # Sorted and thinned by hand: np.unique hashes first, which takes 40 times as long.
    keys = np.sort(np.repeat(np.arange(n_users, dtype=np.int64) * n_items, np.diff(offsets)) + codes)
    return keys[np.diff(keys, prepend=-1) > 0]


def _bucket(n_seen: np.ndarray) -> np.ndarray:
    """0, else the next power of 4 from 16 up: the same for a user whoever else is in the batch."""
    edges = np.array([0] + [4**power for power in range(2, 20)], dtype=np.int64)
    return edges[np.searchsorted(edges, n_seen)]


def _keep_unseen(found: Retrieved, users: np.ndarray, scores: np.ndarray, codes: np.ndarray, seen: np.ndarray, n_items: int) -> None:
    """Write the first unseen results of ``users`` (ascending) into ``found``, over what stood there."""
    if codes.max() >= n_items:
        raise RecsysBatchError(f"a search over {n_items} items returned code {codes.max()}: the index is over other items")
    places = np.arange(found.codes.shape[1])
    step = max(1, min(64, _SEEN_CELLS // n_items))
    is_seen = np.zeros(step * n_items, dtype=bool)
    for start in range(0, len(users), step):
        rows = users[start : start + step]
        block_codes, block_scores = codes[start : start + step], scores[start : start + step]
        bounds = zip(np.searchsorted(seen, rows * n_items), np.searchsorted(seen, (rows + 1) * n_items), strict=True)
        cells = np.concatenate([seen[a:b] - (rows[i] - i) * n_items for i, (a, b) in enumerate(bounds)])
        is_seen[cells] = True
        keep = (block_codes != NO_CODE) & ~is_seen[np.arange(len(rows))[:, None] * n_items + block_codes]
        is_seen[cells] = False
        keep &= np.cumsum(keep, axis=1, dtype=np.int32) <= len(places)
        counts = keep.sum(axis=1)
        # Row by row, kept results fall into the first places in order: two masks with the same count in every row.
        filled = places < counts[:, None]
        row_codes = np.full(filled.shape, NO_CODE, dtype=np.int64)
        row_scores = np.full(filled.shape, -np.inf, dtype=np.float32)
        row_codes[filled], row_scores[filled] = block_codes[keep], block_scores[keep]
        found.codes[rows], found.scores[rows], found.counts[rows] = row_codes, row_scores, counts


def _verified(path: Path, digest: str, kind: str, load: Callable[[Path], Any]) -> Any:
    try:
        status = path.stat()
    except OSError as error:
        raise IndexDamaged(f"index file {path} cannot be read ({error.strerror}): run the index step again") from None
    identity = (digest, status.st_ino, status.st_size, status.st_mtime_ns)
    if kind in _opened and _opened[kind][0] == identity:
        return _opened[kind][1]
    found = sha256_file(path)
    if found != digest:
        raise IndexDamaged(
            f"index file {path} ({status.st_size} bytes) has checksum {found[:12]}..., expected {digest[:12]}...: "
            "it was cut short or replaced; delete it and run the index step again"
        )
    _opened.pop(kind, None)
    loaded = load(path)
    _opened[kind] = (identity, loaded)
    return loaded


def _map_matrix(path: Path, info: IndexInfo) -> np.ndarray:
    matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    if matrix.shape != (info.n_items, info.embedding_dim) or matrix.dtype != np.float32:
        raise IndexDamaged(
            f"index file {path} holds {matrix.dtype} {matrix.shape}, its description says {info.n_items} x {info.embedding_dim}"
        )
    return np.asarray(matrix)


def _map_ivf(path: Path, info: IndexInfo) -> tuple[Any, Vectors]:
    faiss = faiss_module()
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    if (index.ntotal, index.d, index.nlist) != (info.n_items, info.embedding_dim, info.nlist):
        raise IndexDamaged(
            f"index file {path} holds {index.ntotal} x {index.d} in {index.nlist} lists, "
            f"its description says {info.n_items} x {info.embedding_dim} in {info.nlist}"
        )
    index.parallel_mode = 3  # queries over threads, for search_preassigned, which mode 0 leaves to one thread
    centroids = index.quantizer.reconstruct_n(0, index.nlist)
    return index, Vectors(centroids, longest(centroids), cosine=False)
