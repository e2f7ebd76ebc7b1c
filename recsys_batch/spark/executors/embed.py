"""Executor code of the embed step: events of a range of users in, their embeddings out."""

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
    """Settings and locations of an embed task; small, as it travels in the closure.

    ``history_length``: newest items that the user tower reads; 0 where embeddings were brought.
    """

    run_id: str
    user_events: UserEvents
    min_weight: float
    bundle_dir: str
    catalogue_dir: str
    history_length: int
    cache: NodeCache

    def catalogue(self) -> Catalogue:
        return open_catalogue(str(self.cache.local_copy(self.catalogue_dir)))

    def encode_range(self, bounds: UserRange) -> Iterator[pa.RecordBatch]:
        """Make a range's rows of user_embeddings by the user tower, for every user with a positive event."""
        catalogue = self.catalogue()
        histories = build_histories(self.user_events.positives(bounds, self.min_weight), catalogue, self.history_length)
        profiles = self.user_events.profiles(bounds)
        profile_rows = pc.index_in(histories.user_ids, value_set=profiles["user_id"].combine_chunks())
        for start in range(0, len(histories.user_ids), _USERS):
            users = slice(start, min(start + _USERS, len(histories.user_ids)))
            first, last = histories.offsets[users.start], histories.offsets[users.stop]
            segments, attributes = (profiles[name].combine_chunks().take(profile_rows[users]) for name in ("segment", "attributes"))
            embeddings = _towers(str(self.cache.local_copy(self.bundle_dir))).encode_users(
                histories.codes[first:last],
                histories.offsets[users.start : users.stop + 1] - first,
                histories.event_us[first:last],
                histories.weights[first:last],
                segments.to_pylist(),
                attributes.to_pylist(maps_as_pydicts="strict"),
                catalogue.history,
            )
            is_finite = np.isfinite(embeddings).all(axis=1)
            if not is_finite.all():
                user = histories.user_ids[start + int(np.flatnonzero(~is_finite)[0])].as_py()
                raise RecsysBatchError(f"the embedding of user {user!r} is not finite: the model is broken, or its input is")
            yield self._rows(histories.user_ids[users], matrix_column(embeddings), pa.array(histories.n_events[users]))

    def copy_imported_range(self, bounds: UserRange) -> Iterator[pa.RecordBatch]:
        """Make a range's rows of user_embeddings from imported vectors, as they were registered."""
        assert self.user_events.vectors is not None
        counts = build_histories(self.user_events.positives(bounds, self.min_weight), self.catalogue(), 0)
        for batch in self.user_events.vectors.batches(bounds, n_rows=_USERS):
            rows = pc.index_in(batch["user_id"], value_set=counts.user_ids)
            n_events = pc.fill_null(pa.array(counts.n_events).take(rows), 0)
            yield self._rows(batch["user_id"], batch["embedding"], n_events)

    def _rows(self, user_ids: pa.Array, embeddings: pa.Array, n_events: pa.Array) -> pa.RecordBatch:
        schema = TABLES["user_embeddings"].arrow_schema(self.user_events.events.where.ids)
        columns = [pa.repeat(self.run_id, len(user_ids)), user_ids, embeddings, n_events.cast(pa.int32())]
        return pa.RecordBatch.from_arrays([column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)


def count_popularity(user_events: UserEvents, min_weight: float, bounds: UserRange) -> Iterator[pa.RecordBatch]:
    """Count a range's users per segment and item; in an incremental night, less what the base run counted of the same users."""
    positives, ids = user_events.positives(bounds, min_weight), user_events.events.where.ids
    segments = user_events.users.between(bounds, ["user_id", "segment", "segment_before"]) if user_events.users else None
    now = count_users(positives, segments.select(["user_id", "segment"]) if segments else None, ids)
    positives_before = positives.filter(positives["before"])
    if positives_before.num_rows:
        before = segments.select(["user_id", "segment_before"]).rename_columns(["user_id", "segment"]) if segments else None
        now = add_counts(now, negate_counts(count_users(positives_before, before, ids)))
    yield from now.to_batches()


@lru_cache(maxsize=1)
def _towers(bundle_dir: str) -> Towers:
    """Open the towers of a bundle, once per Python worker."""
    return Towers.from_bundle(load_bundle(bundle_dir))
