"""Verdicts on typed rows that need the other rows of their key: repeats, rows that tables have, rows that a newer one supersedes."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.sources.typed_rows import FILE, POSITION, REASON, UPDATED
from recsys_batch.tables.tombstones import ERASED

ALREADY_PRESENT = "already_present"
"""Reason of rows that the table already has: neither used nor rejected."""

DUPLICATE = "duplicate"
"""Reason of rows that repeat another of the same sources."""

SUPERSEDED = "superseded"
"""Reason of rows of an item or user of which a later file, or a newer updated_ts, says more: neither used nor rejected."""

UNKNOWN_ITEM = "unknown_item"
"""Reason of an interaction with an item that a declared catalogue lacks."""

NOT_KEPT = (ALREADY_PRESENT, SUPERSEDED, ERASED)
"""Reasons of rows that are counted, and in no table, also not in rejected."""

IN_TABLE = "_in_table"
EVENT_KEY = ("user_id", "item_id", "event_ts", "event_type", "weight")
"""Rows equal in all of these are the same event. Weight is included: a return of -1 may equal the purchase that it undoes in
everything else, where times are dates or missing."""


def mark_duplicates(rows: pa.Table, key: Sequence[str] = EVENT_KEY) -> pa.Table:
    """Mark the usable rows that repeat another (DUPLICATE) and those that are in a table (ALREADY_PRESENT); the first of equal rows stays.

    Args:
        rows: all rows of some keys, with ``_file``, ``_position`` and ``_reason``. Where a column ``_in_table`` is true, the row is a
            table's and has the key alone; these are left out of what is returned, and so is that column.
        key: columns in which duplicates are equal.
    """
    in_table = np.zeros(len(rows), dtype=bool)
    if IN_TABLE in rows.column_names:
        in_table = np.asarray(rows[IN_TABLE].combine_chunks(), dtype=bool)
        rows = rows.drop_columns([IN_TABLE])
    places = np.empty(len(rows), dtype=np.int64)
    places[np.lexsort((_numbers(rows, POSITION), _numbers(rows, FILE), in_table))] = np.arange(len(rows))
    usable = pc.is_null(rows[REASON].combine_chunks())
    keys = rows.select(list(key))
    if "weight" in key:  # -0.0 is 0.0
        keys = keys.set_column(list(key).index("weight"), "weight", pc.add(keys["weight"], pa.scalar(0.0, pa.float32())))
    keys = keys.append_column("_place", pa.array(places)).append_column(IN_TABLE, pa.array(in_table)).filter(usable)
    groups = keys.group_by(list(key), use_threads=False).aggregate([("_place", "min"), (IN_TABLE, "max")])
    first = np.asarray(groups["_place_min"].combine_chunks())
    is_first, is_present = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    is_first[first] = True
    is_present[first[np.asarray(groups[f"{IN_TABLE}_max"].combine_chunks(), dtype=bool)]] = True
    verdicts = pc.if_else(pa.array(is_present[places]), ALREADY_PRESENT, pa.scalar(None, pa.string()))
    verdicts = pc.if_else(pa.array(~is_first[places]), DUPLICATE, verdicts)
    return _with_verdicts(rows, verdicts).filter(pa.array(~in_table))


def mark_repeated_keys(rows: pa.Table, key: str) -> pa.Table:
    """Mark all usable rows of a ``key`` but the newest: by updated_ts, then by file, then by place in the file.

    Those of other files, or older by updated_ts, are SUPERSEDED; others repeat the key in their own file: duplicate_KEY.
    """
    usable = np.flatnonzero(np.asarray(pc.is_null(rows[REASON].combine_chunks())))
    codes = np.asarray(rows[key].combine_chunks().take(pa.array(usable)).dictionary_encode().indices)
    updated = np.asarray(pc.fill_null(rows[UPDATED].combine_chunks().cast(pa.int64()), np.iinfo(np.int64).min))[usable]
    files, positions = _numbers(rows, FILE)[usable], _numbers(rows, POSITION)[usable]
    order = np.lexsort((positions, files, updated, codes))
    # The last of a key's rows is the newest.
    newest = np.empty(int(codes.max(initial=-1)) + 1, dtype=np.int64)
    newest[codes[order]] = order
    kept = newest[codes]
    is_other = (files != files[kept]) | (updated != updated[kept])
    is_repeated = kept != np.arange(len(usable))
    verdicts = np.full(len(rows), None, dtype=object)
    verdicts[usable[is_repeated]] = np.where(is_other[is_repeated], SUPERSEDED, f"duplicate_{key}")
    return _with_verdicts(rows, pa.array(verdicts, pa.string()))


def _with_verdicts(rows: pa.Table, verdicts: pa.Array) -> pa.Table:
    """Give rows without a reason their verdict as one."""
    reason = pc.coalesce(rows[REASON].combine_chunks(), verdicts)
    return rows.set_column(rows.column_names.index(REASON), rows.schema.field(REASON), reason)


def _numbers(rows: pa.Table, name: str) -> np.ndarray:
    return np.asarray(pc.fill_null(rows[name].combine_chunks(), 0), dtype=np.int64)
