"""Executor code of the audit: the published rows of a range of users, held against what these users have seen and may get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_batch.ragged import ragged
from recsys_batch.spark.batches import BatchFunction
from recsys_batch.spark.carry import Files, Range

COUNTS = (
    "n_known",
    "n_users",
    "n_rows",
    "n_popular",
    "lists_broken",
    "rows_not_finite",
    "rows_seen",
    "rows_unavailable",
    "rows_ineligible",
    "rows_ruled_out",
    "lists_short_unexplained",
)
COUNTS_SCHEMA = pa.schema([(name, pa.int64()) for name in COUNTS])


@dataclass(frozen=True)
class VerifyTask:
    """What executors need to know.

    Attributes:
        items: Parquet of item_id, is_available, ruled_out and "eligible 0" .., as the items table says.
        segments: the segment of each eligibility column; ``default`` is the place of the one for all others, -1 for none.
    """

    topk: Files
    shortfalls: Files
    items: Path
    segments: Sequence[str]
    default: int
    top_k: int
    bounds: Sequence[Range]


def verifier(task: VerifyTask) -> BatchFunction:
    """A function for mapInArrow: (range, user_id or null, seen, segment), a range's rows all in one task -> counts per range.

    Every range comes with a row without a user, so that it is looked at even if nobody in it is known.
    """

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = [batch for batch in batches if batch.num_rows]
        if not rows:
            return
        known = pa.Table.from_batches(rows)
        for number in pc.unique(known["range"]).to_pylist():
            mine = known.filter(pc.and_(pc.equal(known["range"], number), known["user_id"].is_valid())).combine_chunks()
            counts = _verified(task, task.bounds[number], mine)
            yield pa.RecordBatch.from_pylist([counts], schema=COUNTS_SCHEMA)

    return run


def _verified(task: VerifyTask, bounds: Range, known: pa.Table) -> dict[str, int]:
    rows = task.topk.between(bounds, ["user_id", "rank", "item_id", "score", "source"])
    rows = rows.sort_by([("user_id", "ascending"), ("rank", "ascending")]).combine_chunks()
    items = pq.read_table(task.items)
    item = _places(rows["item_id"], items["item_id"])
    users, owner = _owners(rows["user_id"])
    n_rows = np.bincount(owner, minlength=len(users)).astype(np.int64)
    first = np.cumsum(n_rows) - n_rows
    place = np.arange(len(owner)) - first[owner]
    score = np.asarray(rows["score"].to_numpy(), dtype=np.float64)
    rises = np.diff(score, prepend=np.inf) > 0
    rises[first] = False
    broken = np.zeros(len(users), dtype=bool)
    broken[owner[(np.asarray(rows["rank"].to_numpy()) != place + 1) | rises]] = True
    # An item that is nowhere is told apart from others by its id alone.
    named = np.where(item >= 0, item, len(items) + np.asarray(rows["item_id"].combine_chunks().dictionary_encode().indices))
    keys = np.sort(owner * (2 * len(items) + len(rows) + 1) + named)
    broken[keys[1:][keys[1:] == keys[:-1]] // (2 * len(items) + len(rows) + 1)] = True
    popular = np.asarray(pc.equal(rows["source"], "popular").to_numpy(zero_copy_only=False)).astype(bool)
    return {
        "n_known": len(known),
        "n_users": len(users),
        "n_rows": len(rows),
        "n_popular": int(np.count_nonzero(np.bincount(owner[popular], minlength=len(users)) == n_rows)) if len(users) else 0,
        "lists_broken": int(np.count_nonzero(broken)),
        "rows_not_finite": int(np.count_nonzero(~np.isfinite(score))),
        "rows_seen": _seen(known, users, owner, item, items["item_id"]),
        "rows_unavailable": len(rows) - int(np.count_nonzero(_flags(items, "is_available")[item])),
        "rows_ineligible": _ineligible(task, known, users, owner, item, items),
        "rows_ruled_out": int(np.count_nonzero(_flags(items, "ruled_out")[item])),
        "lists_short_unexplained": _short(task, bounds, users, n_rows),
    }


def _places(values: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """int64 places, -1 for what is not there."""
    found = pc.index_in(values, value_set=among.combine_chunks())
    return np.asarray(pc.fill_null(found, -1).to_numpy(), dtype=np.int64)


def _owners(user_ids: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The users in order, and the number of each row's."""
    encoded = user_ids.combine_chunks().dictionary_encode()
    return encoded.dictionary, np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _flags(items: pa.Table, name: str) -> np.ndarray:
    """bool [n + 1], the last (place -1) false."""
    return np.append(np.asarray(items[name].to_numpy(zero_copy_only=False)).astype(bool), False)


def _seen(known: pa.Table, users: pa.Array, owner: np.ndarray, item: np.ndarray, item_ids: pa.ChunkedArray) -> int:
    values, offsets = ragged(known["seen"].combine_chunks())
    seen_item = _places(pa.chunked_array([values]), item_ids)
    seen_user = np.repeat(_places(known["user_id"], pa.chunked_array([users])), np.diff(offsets))
    there = (seen_item >= 0) & (seen_user >= 0)
    keys = np.sort(seen_user[there] * len(item_ids) + seen_item[there])
    asked = np.where(item >= 0, owner * len(item_ids) + item, -1)
    if len(keys) == 0:
        return 0
    found = keys[np.minimum(np.searchsorted(keys, asked), len(keys) - 1)] == asked
    return int(np.count_nonzero(found))


def _ineligible(task: VerifyTask, known: pa.Table, users: pa.Array, owner: np.ndarray, item: np.ndarray, items: pa.Table) -> int:
    if not task.segments:
        return 0
    rules = pc.fill_null(pc.index_in(known["segment"], value_set=pa.array(list(task.segments), pa.string())), task.default)
    place = _places(pa.chunked_array([users]), known["user_id"])
    rule = np.append(np.asarray(rules.to_numpy(), dtype=np.int64), task.default)[place][owner]
    allowed = np.stack([_flags(items, f"eligible {number}") for number in range(len(task.segments))])
    return int(np.count_nonzero((rule >= 0) & ~allowed[rule, item]))


def _short(task: VerifyTask, bounds: Range, users: pa.Array, n_rows: np.ndarray) -> int:
    explained = task.shortfalls.between(bounds, ["user_id", "n_items"])
    place = _places(pa.chunked_array([users]), explained["user_id"])
    n_items = np.append(np.asarray(explained["n_items"].to_numpy(), dtype=np.int64), -1)[place]
    return int(np.count_nonzero((n_rows < task.top_k) & (n_items != n_rows)))
