"""Sorts interactions into ranges of user_id through files of this machine: the table lies in order of time."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.tables.user_ranges import UserRange

_CHUNK = 65_536


class EventsByRange:
    """Writes each range's events to a file of its own as they arrive, and reads them back range by range.

    Args:
        folder: an existing one for the files, about 30 bytes per event.
        bounds: ranges that together hold all users, in order.
    """

    def __init__(self, folder: Path, bounds: Sequence[UserRange], schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._ends = [upto for _, upto in bounds[:-1]]
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def add(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Write events, in any order, to their ranges' files."""
        try:
            for batch in batches:
                for start in range(0, batch.num_rows, _CHUNK):
                    self._add(batch.slice(start, _CHUNK))
        finally:
            for writer in self._writers.values():
                writer.close()

    def _add(self, batch: pa.RecordBatch) -> None:
        numbers = self._range_numbers(batch["user_id"])
        order = np.argsort(numbers, kind="stable")
        batch, numbers = batch.take(pa.array(order)), numbers[order]
        for number in np.unique(numbers).tolist():
            first, last = np.searchsorted(numbers, [number, number + 1])
            if number not in self._writers:
                self._writers[number] = pa.ipc.new_stream(str(self._range_path(number)), self._schema)
            self._writers[number].write_batch(batch.slice(first, last - first))

    def _range_numbers(self, users: pa.Array) -> np.ndarray:
        if pa.types.is_integer(users.type):
            return np.asarray(np.searchsorted(np.asarray(self._ends, dtype=np.int64), users.to_numpy()), dtype=np.int64)
        encoded = users.dictionary_encode()
        # Python orders text by code point, as UTF-8 and so Arrow do.
        of_each = np.array([bisect_left(self._ends, user) for user in encoded.dictionary.to_pylist()], dtype=np.int64)
        return np.asarray(of_each[np.asarray(encoded.indices)])

    def read(self, number: int) -> pa.Table:
        """Read the events of a range, in order of user_id."""
        if number not in self._writers:
            return self._schema.empty_table()
        with pa.memory_map(str(self._range_path(number))) as source:
            table = pa.ipc.open_stream(source).read_all()
        return table.take(pc.sort_indices(table["user_id"])).combine_chunks()

    def _range_path(self, number: int) -> Path:
        return self._folder / f"{number}.arrows"
