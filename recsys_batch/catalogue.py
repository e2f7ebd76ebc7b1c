"""One night's catalogue on disk: everything about items that executors need, memory-mapped and shared by all workers of a node.

Rows are sorted by item_id ascending; an item's row is its *code*. Order by code is order by id, so ties break the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.errors import RecsysBatchError

_ARRAYS = {"embeddings": np.float32, "history": np.float32, "log_popularity": np.float32, "retrievable": np.bool_}


@dataclass(frozen=True)
class Catalogue:
    """Items of one night, n of them.

    Attributes:
        item_ids: Arrow array [n], int64 or string, ascending.
        embeddings: float32 [n, d], item tower output.
        history: float32 [n, h], what the user tower pools for an item in a history ([n, 0] where the model has no tower).
        log_popularity: float32 [n], log(1 + users) frozen at training.
        retrievable: bool [n], available and with an embedding.
    """

    item_ids: pa.Array
    embeddings: np.ndarray
    history: np.ndarray
    log_popularity: np.ndarray
    retrievable: np.ndarray

    def __len__(self) -> int:
        return len(self.item_ids)

    def codes(self, item_ids: pa.Array) -> np.ndarray:
        """int64 codes of the ids, -1 for an id that is not in the catalogue."""
        found = pc.index_in(item_ids, value_set=self.item_ids)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def ids(self, codes: np.ndarray) -> pa.Array:
        """Ids of codes; -1 is not allowed."""
        return self.item_ids.take(pa.array(codes, type=pa.int64()))

    def retrievable_codes(self) -> np.ndarray:
        """int64, ascending: the rows that an index is built over."""
        return np.flatnonzero(self.retrievable).astype(np.int64)


def write_catalogue(directory: Path, catalogue: Catalogue) -> None:
    """Write into an existing folder.

    Raises:
        RecsysBatchError: ids not strictly ascending, arrays of different lengths, or an embedding that is not finite.
    """
    n = len(catalogue)
    if n > 1 and not pc.all(pc.less(catalogue.item_ids[:-1], catalogue.item_ids[1:])).as_py():
        raise RecsysBatchError("the catalogue's item_ids are not unique and ascending: is an item listed twice in items?")
    for name, dtype in _ARRAYS.items():
        array: np.ndarray = np.ascontiguousarray(getattr(catalogue, name), dtype=dtype)
        if len(array) != n:
            raise RecsysBatchError(f"the catalogue has {n} items but {len(array)} rows of {name}")
        if dtype is np.float32 and not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array.reshape(n, -1)).all(axis=1))[0])
            raise RecsysBatchError(f"{name} of item {catalogue.item_ids[bad]} is not finite: the model is broken, or its input is")
        np.save(directory / f"{name}.npy", array, allow_pickle=False)
    table = pa.table({"item_id": catalogue.item_ids})
    with pa.OSFile(str(directory / "item_ids.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@lru_cache(maxsize=1)
def open_catalogue(directory: str) -> Catalogue:
    """Memory-map a catalogue; one per process is kept open (a Python worker serves one night at a time)."""
    folder = Path(directory)
    with pa.memory_map(str(folder / "item_ids.arrow")) as source:
        ids = pa.ipc.open_file(source).read_all()["item_id"].combine_chunks()
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
    return Catalogue(item_ids=ids, **arrays)
