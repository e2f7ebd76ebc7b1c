"""Executor code of an incremental night: the base run's rows carried forward, with rows computed again in the place of changed users'."""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.ann.kernels import inner_products, normalise_rows
from recsys_batch.dataset.catalogue import open_catalogue
from recsys_batch.ranking.top_k import NO_CODE, order_pairs
from recsys_batch.spark.executors.changed_events import find_changed_users
from recsys_batch.spark.executors.functions import BatchFunction, RangeFunction, apply_by_range
from recsys_batch.storage.filesystems import read_parquet
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.list_columns import column_matrix, flatten_lists, list_column, pad_lists
from recsys_batch.tables.slice_writer import attach_counts, read_counts
from recsys_batch.tables.user_ranges import BATCH_ROWS, UserRange, UserSortedFiles, group_boundaries, merge_sorted, users_in_range

CARRIED, COMPUTED = "rows_carried", "users_computed"
"""Counts of a merge."""

BatchChange = Callable[[pa.RecordBatch], pa.RecordBatch]


def carry_forward(
    base: UserSortedFiles,
    fresh: RangeFunction,
    changed: str,
    bounds: Sequence[UserRange],
    change: Callable[[UserRange], BatchChange] | None = None,
    n_rows: int = BATCH_ROWS,
) -> BatchFunction:
    """Make a function for mapInArrow: numbers of ``bounds`` -> the base's rows without the changed users', and the fresh rows, by user.

    Args:
        base: its rows stream through.
        fresh: rows of a range's users who are computed again; all of them are in memory.
        changed: location of a Parquet file of user_id; the users of fresh rows are replaced, too.
        change: what is done to rows of the base first, in a range.
        n_rows: of the base, that are read at a time.
    """
    schema = base.where.file_schema

    def rows(within: UserRange) -> Iterator[pa.RecordBatch]:
        computed = [batch for batch in fresh(within) if batch.num_rows]
        counts = sum((Counter(read_counts(batch)) for batch in computed), Counter())
        fresh_rows = pa.Table.from_batches([base.where.conform(batch) for batch in computed], schema)
        users = group_boundaries(fresh_rows["user_id"].combine_chunks())[0] if computed else pa.array([], schema.field("user_id").type)
        replaced = pa.concat_arrays([users_in_range(find_changed_users(changed), within), users])
        counts[COMPUTED] = len(users)
        carried = base.batches(within, n_rows=n_rows)
        if change is not None:
            carried = map(change(within), carried)
        for batch, n_carried in merge_sorted(carried, replaced, fresh_rows):
            if batch.num_rows:
                yield attach_counts(batch, {CARRIED: n_carried, **counts})
                counts = Counter()

    return apply_by_range(rows, bounds)


@dataclass(frozen=True)
class NewItems:
    """Items that all users may get now and could not when the base run was made.

    Attributes:
        codes: int64 [g], ascending. seen: location of a Parquet file of (user_id, item_id), who has seen which of them.
    """

    codes: np.ndarray
    catalogue_dir: str
    cosine: bool
    n_candidates: int
    seen: str
    embeddings: UserSortedFiles
    cache: NodeCache

    def insert_into(self, bounds: UserRange) -> BatchChange:
        """Make the change of candidates' rows of a range; users without an embedding have changed, and their rows are left out."""
        embeddings = self.embeddings.between(bounds, ["user_id", "embedding"])
        return lambda rows: self._insert_into_batch(rows, embeddings)

    def _insert_into_batch(self, rows: pa.RecordBatch, embeddings: pa.Table) -> pa.RecordBatch:
        """Insert the new items into lists of candidates by score; the best n_candidates stay."""
        catalogue = open_catalogue(str(self.cache.local_copy(self.catalogue_dir)))
        positions = pc.index_in(rows["user_id"], value_set=embeddings["user_id"].combine_chunks())
        rows, positions = rows.filter(positions.is_valid()), positions.drop_null()
        queries = column_matrix(embeddings["embedding"].combine_chunks().take(positions))
        vectors = np.ascontiguousarray(catalogue.embeddings[self.codes])
        if self.cosine:
            queries, vectors = normalise_rows(queries), normalise_rows(vectors)
        all_vectors = np.broadcast_to(np.arange(len(vectors)), (len(queries), len(vectors)))
        scores = inner_products(np.ascontiguousarray(queries), vectors, all_vectors)
        scores[self._seen_pairs(rows["user_id"], catalogue.ids(self.codes))] = -np.inf
        pairs, offsets = flatten_lists(rows["items"])
        width = max(int(np.diff(offsets).max(initial=0)), 1)
        old_codes = pad_lists(catalogue.codes(pairs.field("item_id")), offsets, NO_CODE, width)
        old_scores = pad_lists(pairs.field("score").to_numpy(zero_copy_only=False), offsets, -np.inf, width)
        new_codes = np.where(np.isfinite(scores), self.codes, NO_CODE)
        best, codes = order_pairs(np.hstack([old_scores, scores]), np.hstack([old_codes, new_codes]), self.n_candidates)
        kept = codes != NO_CODE
        kind = rows.schema.field("items").type
        structs = pa.StructArray.from_arrays([catalogue.ids(codes[kept]), pa.array(best[kept])], fields=list(kind.value_type))
        items = list_column(structs, np.concatenate([[0], np.cumsum(kept.sum(axis=1))])).cast(kind)
        return rows.set_column(rows.schema.get_field_index("items"), rows.schema.field("items"), items)

    def _seen_pairs(self, users: pa.Array, item_ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Find the pairs that were seen: numbers of rows in ``users`` and in ``item_ids``."""
        table = _seen_table(self.seen)
        rows = pc.index_in(table["user_id"].combine_chunks(), value_set=users)
        columns = pc.index_in(table["item_id"].combine_chunks(), value_set=item_ids)
        both = pc.and_(rows.is_valid(), columns.is_valid())
        return np.asarray(rows.filter(both)), np.asarray(columns.filter(both))


def restamp(generated_at: dt.datetime) -> Callable[[UserRange], BatchChange]:
    """Make the change of topk's rows that gives carried ones this night's ``generated_at``."""

    def change(rows: pa.RecordBatch) -> pa.RecordBatch:
        field = rows.schema.field("generated_at")
        stamp = pa.repeat(pa.scalar(generated_at, field.type), rows.num_rows)
        return rows.set_column(rows.schema.get_field_index("generated_at"), field, stamp)

    return lambda bounds: change


@lru_cache(maxsize=1)
def _seen_table(location: str) -> pa.Table:
    return read_parquet(location)
