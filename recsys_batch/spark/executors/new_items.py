"""Executor code that merges items into lists of candidates by exact scores: items that the lists' index does not have."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.ann.kernels import all_inner_products
from recsys_batch.dataset.catalogue import Catalogue, open_catalogue
from recsys_batch.ranking.top_k import NO_CODE, order_pairs
from recsys_batch.ranking.vector_lengths import normalise_rows
from recsys_batch.storage.filesystems import read_parquet
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.list_columns import column_matrix, flatten_lists, list_column, pad_lists
from recsys_batch.tables.user_ranges import UserRange, UserSortedFiles

Pairs = tuple[np.ndarray, np.ndarray]
"""Numbers of rows, and numbers of items."""


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

    def insert_into(self, bounds: UserRange) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        """Make the change of candidates' rows of a range; users without an embedding have changed, and their rows are left out."""
        embeddings = self.embeddings.between(bounds, ["user_id", "embedding"])

        def change(rows: pa.RecordBatch) -> pa.RecordBatch:
            catalogue = open_catalogue(str(self.cache.local_copy(self.catalogue_dir)))
            rows = rows.filter(pc.is_in(rows["user_id"], value_set=embeddings["user_id"].combine_chunks()))
            seen = find_pairs(_seen_table(self.seen), rows["user_id"], catalogue.ids(self.codes))
            return insert_items(rows, embeddings, self.codes, catalogue, self.cosine, self.n_candidates, seen)

        return change


def insert_items(
    rows: pa.RecordBatch, embeddings: pa.Table, codes: np.ndarray, catalogue: Catalogue, cosine: bool, n_candidates: int, excluded: Pairs
) -> pa.RecordBatch:
    """Insert items into rows of candidates by score; the best ``n_candidates`` of each list stay.

    Args:
        embeddings: user_id and embedding of every user of ``rows``.
        codes: int64 [g], items of the catalogue. What a list has of them by now goes, and what is not retrievable in the catalogue.
        excluded: rows, and places in ``codes``, that do not go together.
    """
    positions = pc.index_in(rows["user_id"], value_set=embeddings["user_id"].combine_chunks())
    queries = column_matrix(embeddings["embedding"].combine_chunks().take(positions))
    vectors = np.ascontiguousarray(catalogue.embeddings[codes])
    if cosine:
        queries, vectors = normalise_rows(queries), normalise_rows(vectors)
    scores = all_inner_products(np.ascontiguousarray(queries), vectors)
    scores[excluded] = -np.inf
    pairs, offsets = flatten_lists(rows["items"])
    width = max(int(np.diff(offsets).max(initial=0)), 1)
    old_codes = catalogue.codes(pairs.field("item_id"))
    old_codes[~np.append(catalogue.retrievable, False)[old_codes] | np.isin(old_codes, codes)] = NO_CODE
    old_codes = pad_lists(old_codes, offsets, NO_CODE, width)
    old_scores = pad_lists(pairs.field("score").to_numpy(zero_copy_only=False), offsets, -np.inf, width)
    old_scores[old_codes == NO_CODE] = -np.inf
    new_codes = np.where(np.isfinite(scores), codes, NO_CODE)
    best, best_codes = order_pairs(np.hstack([old_scores, scores]), np.hstack([old_codes, new_codes]), n_candidates)
    kept = best_codes != NO_CODE
    kind = rows.schema.field("items").type
    structs = pa.StructArray.from_arrays([catalogue.ids(best_codes[kept]), pa.array(best[kept])], fields=list(kind.value_type))
    items = list_column(structs, np.concatenate([[0], np.cumsum(kept.sum(axis=1))])).cast(kind)
    return rows.set_column(rows.schema.get_field_index("items"), rows.schema.field("items"), items)


def find_pairs(table: pa.Table, users: pa.Array, item_ids: pa.Array) -> Pairs:
    """Find the rows (user_id, item_id) of a table among users and items: their numbers in both."""
    rows = pc.index_in(table["user_id"].combine_chunks(), value_set=users)
    columns = pc.index_in(table["item_id"].combine_chunks(), value_set=item_ids)
    both = pc.and_(rows.is_valid(), columns.is_valid())
    return np.asarray(rows.filter(both)), np.asarray(columns.filter(both))


@lru_cache(maxsize=1)
def _seen_table(location: str) -> pa.Table:
    return read_parquet(location)
