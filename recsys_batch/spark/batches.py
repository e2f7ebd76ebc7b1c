"""The one shape of executor code: a plain function over record batches, which a test calls without a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

BatchFunction = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""What mapInArrow takes. Empty iterators and empty batches happen."""
