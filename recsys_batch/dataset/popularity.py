"""Users per item and segment: counted per range of users, added up, and the popular lists that follow."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.schemas import ALL_SEGMENTS, IdTypes
from recsys_batch.storage.artifacts import get_pointer
from recsys_batch.storage.filesystems import join
from recsys_batch.tables.list_columns import flat_positions, sorted_unique
from recsys_batch.tables.user_ranges import group_boundaries

COUNTS_FILE_NAME = "counts.parquet"


def counts_path(root: str, run_id: str) -> str:
    """Locate the Parquet file, in ``counts_schema``, of a run's counts; raises InputMissing where the run has not got so far."""
    return join(root, "popularity", str(get_pointer(root, run_id, "popularity")["folder"]), COUNTS_FILE_NAME)


def counts_schema(ids: IdTypes) -> pa.Schema:
    """Build the schema of counts: segment (null for users without one), item_id, n users."""
    return pa.schema([("segment", pa.string()), ("item_id", ids.item_arrow), ("n", pa.int64())])


def count_users(positives: pa.Table, segments: pa.Table | None, ids: IdTypes) -> pa.Table:
    """Count distinct users per segment and item, in ``counts_schema``.

    ``positives``: user_id (rows lie user by user), item_id. ``segments``: user_id, segment; a user who is not there has none.
    """
    users, starts = group_boundaries(positives["user_id"].combine_chunks())
    items = positives["item_id"].combine_chunks().dictionary_encode()
    n_items = max(len(items.dictionary), 1)
    owner = np.repeat(np.arange(len(users)), np.diff(starts))
    pairs = sorted_unique(owner * n_items + np.asarray(items.indices, dtype=np.int64))
    owner, item = pairs // n_items, pairs % n_items
    if segments is None:
        names, segment = pa.array([None], pa.string()), np.zeros(len(users), dtype=np.int64)
    else:
        rows = pc.index_in(users, value_set=segments["user_id"].combine_chunks())
        encoded = segments["segment"].combine_chunks().take(rows).dictionary_encode(null_encoding="encode")
        names, segment = encoded.dictionary, np.asarray(encoded.indices, dtype=np.int64)
    cells, n = np.unique(segment[owner] * n_items + item, return_counts=True)
    columns = [names.take(pa.array(cells // n_items)), items.dictionary.take(pa.array(cells % n_items)), pa.array(n, pa.int64())]
    return pa.Table.from_arrays(columns, schema=counts_schema(ids))


def add_counts(*tables: pa.Table) -> pa.Table:
    """Add up tables of counts; rows that come to 0 are left out."""
    total = pa.concat_tables(tables).group_by(["segment", "item_id"]).aggregate([("n", "sum")])
    total = total.rename_columns(["segment", "item_id", "n"]).select(tables[0].schema.names)
    return total.filter(pc.not_equal(total["n"], 0)).cast(tables[0].schema)


def negate_counts(counts: pa.Table) -> pa.Table:
    """Negate counts, so that ``add_counts`` subtracts them."""
    return counts.set_column(2, counts.schema.field("n"), pc.negate(counts["n"]))


def users_by_item(counts: pa.Table, item_ids: pa.Array) -> np.ndarray:
    """Sum counts over segments: int32 [n_items] users of each item."""
    codes = flat_positions(counts["item_id"], item_ids)
    in_catalogue = codes >= 0
    n_users = np.bincount(codes[in_catalogue], weights=np.asarray(counts["n"])[in_catalogue], minlength=len(item_ids))
    return n_users.astype(np.int32)


def rank_popular_items(counts: pa.Table, available: pa.Array, length: int) -> pa.Table:
    """Rank the popular list of each segment and of all users: segment, rank, item_id, score (distinct users), ties by item_id.

    ``available`` are the item_ids that may be recommended, ``length`` the rows per segment.
    """
    counts = counts.filter(pc.is_in(counts["item_id"], value_set=available))
    by_segment = counts.filter(pc.not_equal(counts["segment"], ALL_SEGMENTS))
    everybody = counts.set_column(0, counts.schema.field("segment"), pa.repeat(ALL_SEGMENTS, len(counts)))
    order = [("segment", "ascending"), ("n", "descending"), ("item_id", "ascending")]
    listed = add_counts(by_segment, everybody).sort_by(order).combine_chunks()
    encoded = listed["segment"].combine_chunks().dictionary_encode()
    segment = np.asarray(encoded.indices, dtype=np.int64)
    n = np.bincount(segment, minlength=len(encoded.dictionary))
    rank = np.arange(len(segment)) - (np.cumsum(n) - n)[segment] + 1
    listed = listed.append_column("rank", pa.array(rank.astype(np.int32)))
    listed = listed.append_column("score", listed["n"].cast(pa.float32(), safe=False))
    return listed.filter(pc.less_equal(listed["rank"], length)).select(["segment", "rank", "item_id", "score"])


def group_by_segment(rows: pa.Table, catalogue: Catalogue) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split popular rows (segment, item_id, score) by segment: (codes int64, scores float32) of retrievable items, in order."""
    codes, scores = catalogue.codes(rows["item_id"].combine_chunks()), rows["score"].to_numpy()
    segments = np.asarray(rows["segment"].to_pylist(), dtype=object)
    usable = (codes >= 0) & np.asarray(catalogue.retrievable)[codes]
    masks = {str(segment): (segments == segment) & usable for segment in dict.fromkeys(segments)}
    return {segment: (codes[mask], scores[mask]) for segment, mask in masks.items()}


def sum_counts(tables: Sequence[pa.Table], ids: IdTypes) -> pa.Table:
    """Add up any number of tables of counts, none included."""
    return add_counts(counts_schema(ids).empty_table(), *tables)
