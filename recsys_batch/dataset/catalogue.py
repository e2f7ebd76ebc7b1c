"""Catalogue of a night on disk: everything about items that executors, readers and the online side need, memory-mapped.

Rows are sorted by item_id ascending; an item's row is its *code*. Order by code is order by id, so ties break the same everywhere.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import load_file

from recsys_batch.errors import RecsysBatchError
from recsys_batch.ranking.business_rules import RULE_DTYPES, ItemRules
from recsys_batch.schemas import ALL_SEGMENTS
from recsys_batch.storage.tensor_files import write_tensors
from recsys_batch.tables.list_columns import flat_positions

_MAX_ID_SPAN_PER_ITEM = 8  # up to so many numbers per item, ids are looked up in a table
_ARRAYS = {"embeddings": np.float32, "history": np.float32, "log_popularity": np.float32, "retrievable": np.bool_}
CATALOGUE_FILES = ("item_ids.arrow", "rules.safetensors", "rules.json", *(f"{name}.npy" for name in _ARRAYS))


@dataclass(frozen=True)
class Catalogue:
    """The n items of one night, by code.

    Attributes:
        item_ids: Arrow array [n], int64 or string, ascending.
        embeddings: float32 [n, d], item tower output.
        history: float32 [n, h], what the user tower pools for an item in a history ([n, 0] where the model has no tower).
        log_popularity: float32 [n], log(1 + users) frozen at training.
        retrievable: bool [n], available and with an embedding.
        eligible: segment -> bool [n], what its users may be recommended; ALL_SEGMENTS for segments that are not named.
        item_rules: boosts, blocklist, freshness and the cap per category.
    """

    item_ids: pa.Array
    embeddings: np.ndarray
    history: np.ndarray
    log_popularity: np.ndarray
    retrievable: np.ndarray
    eligible: Mapping[str, np.ndarray] = field(default_factory=dict)
    item_rules: ItemRules = field(default_factory=ItemRules)

    def __len__(self) -> int:
        return len(self.item_ids)

    def codes(self, item_ids: pa.Array) -> np.ndarray:
        """Look up the int64 codes of ids; -1 for an id that is not in the catalogue."""
        if self._code_table is not None and item_ids.null_count == 0:
            first, table = self._code_table
            numbers = item_ids.to_numpy(zero_copy_only=False) - first
            return np.asarray(table[np.where((numbers >= 0) & (numbers < len(table) - 1), numbers, -1)], dtype=np.int64)
        return flat_positions(item_ids, self.item_ids)

    @cached_property
    def _code_table(self) -> tuple[int, np.ndarray] | None:
        """(smallest id, int32 code of each id - smallest, -1 last) where ids are numbers close together: several times a hash's speed."""
        if len(self) == 0 or not pa.types.is_integer(self.item_ids.type):
            return None
        numbers = self.item_ids.to_numpy(zero_copy_only=False)
        span = int(numbers[-1]) - int(numbers[0]) + 1
        if span > _MAX_ID_SPAN_PER_ITEM * len(self):
            return None
        table = np.full(span + 1, -1, dtype=np.int32)
        table[numbers - numbers[0]] = np.arange(len(self), dtype=np.int32)
        return int(numbers[0]), table

    def ids(self, codes: np.ndarray) -> pa.Array:
        """Look up the ids of codes; -1 is not allowed."""
        return self.item_ids.take(pa.array(codes, type=pa.int64()))

    def retrievable_codes(self) -> np.ndarray:
        """List the int64 codes, ascending, that an index is built over."""
        return np.flatnonzero(self.retrievable).astype(np.int64)

    def rules_by_segment(self, segments: pa.Array) -> np.ndarray:
        """Number the eligibility rule of each segment (string, nulls allowed): int64 position in ``eligible``, -1 for none."""
        positions = pc.index_in(segments, value_set=pa.array(list(self.eligible), type=pa.string()))
        default = self.rule_of_segment(None)
        return np.asarray(pc.fill_null(positions, default).to_numpy(zero_copy_only=False), dtype=np.int64)

    def rule_of_segment(self, segment: str | None) -> int:
        """Number the eligibility rule of one segment, as ``rules_by_segment``; None for a user without one."""
        names: list[str | None] = list(self.eligible)
        name = segment if segment in names else ALL_SEGMENTS
        return names.index(name) if name in names else -1

    def eligible_mask(self, rule: int, codes: np.ndarray | None = None) -> np.ndarray:
        """Mark the items that are retrievable and eligible under a rule's number: bool [n]; or of these codes alone, of their shape."""
        at = slice(None) if codes is None else codes
        return self.retrievable[at] if rule < 0 else self.retrievable[at] & list(self.eligible.values())[rule][at]


def write_catalogue(directory: Path, catalogue: Catalogue) -> None:
    """Write a catalogue into an existing folder.

    Raises RecsysBatchError: ids not strictly ascending, arrays of different lengths, or an embedding that is not finite.
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
    item_rules = catalogue.item_rules
    rules = {name: getattr(item_rules, name) for name in RULE_DTYPES if getattr(item_rules, name) is not None}
    rules["eligible"] = np.array(list(catalogue.eligible.values()), dtype=bool).reshape(-1, n)
    write_tensors(directory / "rules.safetensors", rules)
    names = {"segments": list(catalogue.eligible), "max_per_category": item_rules.max_per_category}
    (directory / "rules.json").write_text(json.dumps(names), encoding="utf-8")
    table = pa.table({"item_id": catalogue.item_ids})
    with pa.OSFile(str(directory / "item_ids.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def mmap_npy(path: Path) -> np.ndarray:
    """Memory-map an .npy file. A plain array: indexing numpy's memmap subclass takes 8 us more."""
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    return array


def mmap_catalogue(directory: str) -> Catalogue:
    """Memory-map a catalogue; raises RecsysBatchError where a file is missing."""
    folder = Path(directory)
    missing = [name for name in CATALOGUE_FILES if not (folder / name).is_file()]
    if missing:
        problem = f"the catalogue {folder} lacks {', '.join(missing)}"
        raise RecsysBatchError(f"{problem}: it was cleaned away, or another release wrote it; begin a new run (--force)")
    with pa.memory_map(str(folder / "item_ids.arrow")) as source:
        ids = pa.ipc.open_file(source).read_all()["item_id"].combine_chunks()
    arrays = {name: mmap_npy(folder / f"{name}.npy") for name in _ARRAYS}
    rules = load_file(folder / "rules.safetensors")
    names = json.loads((folder / "rules.json").read_text(encoding="utf-8"))
    eligible = dict(zip(names["segments"], rules.pop("eligible"), strict=True))
    return Catalogue(item_ids=ids, **arrays, eligible=eligible, item_rules=ItemRules(**rules, max_per_category=names["max_per_category"]))


open_catalogue = lru_cache(maxsize=1)(mmap_catalogue)
"""Memory-map a catalogue and keep it open, one per process: a Python worker serves one night at a time."""
