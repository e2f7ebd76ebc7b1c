"""The shapes of executor code: plain functions over record batches, which a test calls without a session."""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from recsys_batch.tables.user_ranges import UserRange

BatchFunction = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""What mapInArrow takes. Empty iterators and empty batches happen."""

RangeFunction = Callable[[UserRange], Iterator[pa.RecordBatch]]
"""The rows that a step makes for a range of users, in their order."""


def apply_by_range(rows: RangeFunction, bounds: Sequence[UserRange]) -> BatchFunction:
    """Make a function for mapInArrow: numbers of ``bounds`` -> the rows of these ranges."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from rows(bounds[number])

    return run
