"""Executor code of the embed step: events of a range of users in, their embeddings out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.catalogue import Catalogue, open_catalogue
from recsys_batch.dataset.histories import build_histories
from recsys_batch.dataset.popularity import add_counts, count_users, negate_counts
from recsys_batch.dataset.user_events import UserEvents
from recsys_batch.errors import RecsysBatchError
from recsys_batch.model.towers import Towers
from recsys_batch.registry.bundle import load_bundle
from recsys_batch.schemas import TABLES
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.list_columns import matrix_column
from recsys_batch.tables.user_ranges import UserRange

_USERS = 8_192  # users embedded together


@dataclass(frozen=True)
class EmbedTask:
    """What executors need to know; small, as it travels in the closure.

    Attributes:
        history_length: newest items that the user tower reads; 0 where embeddings were brought.
    """

    run_id: str
    gathered: UserEvents
    min_weight: float
    bundle_dir: str
    catalogue_dir: str
    history_length: int
    cache: NodeCache

    def catalogue(self) -> Catalogue:
        return open_catalogue(str(self.cache.local_copy(self.catalogue_dir)))

    def encode_range(self, bounds: UserRange) -> Iterator[pa.RecordBatch]:
        """Rows of user_embeddings by the user tower: everybody with a positive event."""
        catalogue = self.catalogue()
        found = build_histories(self.gathered.positives(bounds, self.min_weight), catalogue, self.history_length)
        profiles = self.gathered.profiles(bounds)
        place = pc.index_in(found.user_ids, value_set=profiles["user_id"].combine_chunks())
        for start in range(0, len(found.user_ids), _USERS):
            users = slice(start, min(start + _USERS, len(found.user_ids)))
            first, last = found.offsets[users.start], found.offsets[users.stop]
            segments, attributes = (profiles[name].combine_chunks().take(place[users]) for name in ("segment", "attributes"))
            embeddings = _towers(str(self.cache.local_copy(self.bundle_dir))).encode_users(
                found.codes[first:last],
                found.offsets[users.start : users.stop + 1] - first,
                found.event_us[first:last],
                found.weights[first:last],
                segments.to_pylist(),
                attributes.to_pylist(maps_as_pydicts="strict"),
                catalogue.history,
            )
            finite = np.isfinite(embeddings).all(axis=1)
            if not finite.all():
                user = found.user_ids[start + int(np.flatnonzero(~finite)[0])].as_py()
                raise RecsysBatchError(f"the embedding of user {user!r} is not finite: the model is broken, or its input is")
            yield self._rows(found.user_ids[users], matrix_column(embeddings), pa.array(found.n_events[users]))

    def copy_imported_range(self, bounds: UserRange) -> Iterator[pa.RecordBatch]:
        """Rows of user_embeddings as they were registered."""
        assert self.gathered.vectors is not None
        counts = build_histories(self.gathered.positives(bounds, self.min_weight), self.catalogue(), 0)
        for batch in self.gathered.vectors.batches(bounds, n_rows=_USERS):
            place = pc.index_in(batch["user_id"], value_set=counts.user_ids)
            n_events = pc.fill_null(pa.array(counts.n_events).take(place), 0)
            yield self._rows(batch["user_id"], batch["embedding"], n_events)

    def _rows(self, user_ids: pa.Array, embeddings: pa.Array, n_events: pa.Array) -> pa.RecordBatch:
        schema = TABLES["user_embeddings"].arrow_schema(self.gathered.events.where.ids)
        columns = [pa.repeat(self.run_id, len(user_ids)), user_ids, embeddings, n_events.cast(pa.int32())]
        return pa.RecordBatch.from_arrays([column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)


def count_popularity(gathered: UserEvents, min_weight: float, bounds: UserRange) -> Iterator[pa.RecordBatch]:
    """Users per segment and item in the range, less what of it the base knew (in an incremental night; nothing else)."""
    positives, ids = gathered.positives(bounds, min_weight), gathered.events.where.ids
    segments = gathered.users.between(bounds, ["user_id", "segment", "segment_before"]) if gathered.users else None
    now = count_users(positives, segments.select(["user_id", "segment"]) if segments else None, ids)
    earlier = positives.filter(positives["before"])
    if earlier.num_rows:
        before = segments.select(["user_id", "segment_before"]).rename_columns(["user_id", "segment"]) if segments else None
        now = add_counts(now, negate_counts(count_users(earlier, before, ids)))
    yield from now.to_batches()


@lru_cache(maxsize=1)
def _towers(bundle_dir: str) -> Towers:
    """Built once per Python worker."""
    return Towers.from_bundle(load_bundle(bundle_dir))
