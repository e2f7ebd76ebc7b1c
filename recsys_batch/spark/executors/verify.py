"""Executor code of the audit: the published rows of a range of users, held against what these users have seen and may get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.spark.executors.changed_events import find_changed_users
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.spark.executors.profiling import profile_batches
from recsys_batch.storage.filesystems import read_parquet
from recsys_batch.tables.list_columns import sorted_unique
from recsys_batch.tables.user_ranges import UserRange, UserSortedFiles, drop_users, group_boundaries, users_in_range

BROKEN = (
    "lists_broken",
    "rows_not_finite",
    "rows_seen",
    "rows_unavailable",
    "rows_ineligible",
    "rows_ruled_out",
    "rows_not_carried",
    "lists_short_unexplained",
)
"""Counts of rows or lists that are wrong."""
VERIFY_COUNTS = ("n_known", "n_known_before", "n_users", "n_rows", "n_popular", "n_head", *BROKEN)
_SAME = ["user_id", "rank", "item_id", "score"]
_COLUMNS = [*_SAME, "source"]
LISTED = "listed"
"""Bit per item of the catalogue, as bytes: whether it is in a list."""
COUNTS_SCHEMA = pa.schema([*((name, pa.int64()) for name in VERIFY_COUNTS), (LISTED, pa.binary())])


@dataclass(frozen=True)
class BaseRunFiles:
    """The audited night that an incremental one went on from.

    Attributes:
        changed: Parquet of user_id; all others' rows are to be the same.
    """

    topk: UserSortedFiles
    embeddings: UserSortedFiles
    changed: str


@dataclass(frozen=True)
class VerifyTask:
    """What executors need to know.

    Attributes:
        items: location of Parquet of item_id, is_available, ruled_out, is_head (much taken) and "eligible 0" .., as the items table says.
        segments: the segment of each eligibility column; ``default`` is the place of the one for all others, -1 for none.
        earlier: None where all rows are new.
    """

    topk: UserSortedFiles
    shortfalls: UserSortedFiles
    embeddings: UserSortedFiles
    items: str
    segments: Sequence[str]
    default: int
    top_k: int
    bounds: Sequence[UserRange]
    earlier: BaseRunFiles | None


def make_verifier(task: VerifyTask) -> BatchFunction:
    """A function for mapInArrow: (range, user_id, item_id, segment, now, before), a range's rows all in one task -> counts per range.

    A row is something that the inputs say of a user (an event, or a segment), ``now`` or at the time of the night ``before``. Every
    range comes with a row without a user, so that it is looked at even if nobody in it is known.
    """

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = [batch for batch in batches if batch.num_rows]
        if not rows:
            return
        said = pa.Table.from_batches(rows)
        for number in pc.unique(said["range"]).to_pylist():
            mine = said.filter(pc.and_(pc.equal(said["range"], number), said["user_id"].is_valid())).combine_chunks()
            counts = _verified(task, task.bounds[number], mine)
            yield pa.RecordBatch.from_pylist([counts], schema=COUNTS_SCHEMA)

    return profile_batches(run, "audit")


def _verified(task: VerifyTask, bounds: UserRange, said: pa.Table) -> dict[str, Any]:
    items = read_parquet(task.items)
    listed = np.zeros(len(items) + 1, dtype=bool)
    if task.earlier is None:
        rows, counts = task.topk.between(bounds, _COLUMNS), Counter[str]()
    else:
        rows, counts = _carried(task, task.earlier, bounds, items, said, listed)
    counts.update(_known(task, bounds, said))
    counts.update(_checked(task, bounds, _in_order(rows), items, said, listed))
    return {**{name: counts[name] for name in VERIFY_COUNTS}, LISTED: np.packbits(listed[:-1]).tobytes()}


def _checked(task: VerifyTask, bounds: UserRange, rows: pa.Table, items: pa.Table, said: pa.Table, listed: np.ndarray) -> dict[str, int]:
    """Rows that are new, from everything that they have to keep to."""
    users, starts = group_boundaries(rows["user_id"].combine_chunks())
    n_rows = np.diff(starts)
    owner, item = np.repeat(np.arange(len(users)), n_rows), _places(rows["item_id"], items["item_id"])
    score = np.asarray(rows["score"].to_numpy(), dtype=np.float64)
    rises = np.diff(score, prepend=np.inf) > 0
    rises[starts[:-1]] = False
    broken = np.zeros(len(users), dtype=bool)
    broken[owner[(np.asarray(rows["rank"].to_numpy()) != np.arange(len(owner)) - starts[owner] + 1) | rises]] = True
    # An item that is nowhere is told apart from others by its id alone.
    nowhere = np.flatnonzero(item < 0)
    named, n_names = item.copy(), len(items) + len(nowhere) + 1
    named[nowhere] = len(items) + np.asarray(rows["item_id"].take(pa.array(nowhere)).combine_chunks().dictionary_encode().indices)
    keys = np.sort(owner * n_names + named)
    broken[keys[1:][keys[1:] == keys[:-1]] // n_names] = True
    return {
        "n_users": len(users),
        "n_rows": len(rows),
        "n_popular": int(np.count_nonzero(np.bincount(owner[_popular(rows["source"])], minlength=len(users)) == n_rows)),
        "lists_broken": int(np.count_nonzero(broken)),
        "rows_not_finite": int(np.count_nonzero(~np.isfinite(score))),
        "rows_seen": _seen(said, users, keys, n_names, items["item_id"]),
        "rows_ineligible": _ineligible(task, said, users, owner, item, items),
        **_of_items(item, items, listed),
        "lists_short_unexplained": _short(task, bounds, users, n_rows),
    }


def _carried(
    task: VerifyTask, earlier: BaseRunFiles, bounds: UserRange, items: pa.Table, said: pa.Table, listed: np.ndarray
) -> tuple[pa.Table, Counter[str]]:
    """Rows of users who changed; and counts over all others, whose rows are to be those of the earlier night.

    What that night's audit found of these rows holds still. What may have happened since is looked at: items that went, and events of
    users who should be among the changed.
    """
    changed, counts, mine = users_in_range(find_changed_users(earlier.changed), bounds), Counter[str](), []
    users, n_rows, n_popular = [], [], []

    def kept() -> Iterator[pa.RecordBatch]:
        for batch in task.topk.batches(bounds, _COLUMNS):
            mine.append(batch.filter(pc.is_in(batch["user_id"], value_set=changed)))
            batch = drop_users(batch, changed)
            who, starts = group_boundaries(batch["user_id"])
            users.append(who)
            n_rows.append(np.diff(starts))
            n_popular.append(np.add.reduceat(_popular(batch["source"]).astype(np.int64), starts[:-1]) if len(who) else starts[:0])
            counts.update(_of_items(_places(batch["item_id"], items["item_id"]), items, listed))
            yield batch.select(_SAME)

    before = (drop_users(batch, changed) for batch in earlier.topk.batches(bounds, _SAME))
    counts["rows_not_carried"] = find_differing_columns(kept(), before)
    # A user's rows may lie in two batches.
    who, starts = group_boundaries(pa.concat_arrays(users) if users else pa.array([], task.topk.where.ids.user_arrow))
    total = [np.add.reduceat(np.concatenate(each), starts[:-1]) if len(who) else starts[:0] for each in (n_rows, n_popular)]
    counts.update(n_users=len(who), n_rows=int(total[0].sum()), n_popular=int(np.count_nonzero(total[0] == total[1])))
    counts["lists_short_unexplained"] = _short(task, bounds, who, total[0])
    missed = said.filter(pc.invert(pc.is_in(said["user_id"], value_set=changed)))
    counts["rows_not_carried"] += len(missed)
    return pa.Table.from_batches(mine) if mine else task.topk.between((None, None), _COLUMNS).slice(0, 0), counts


def find_differing_columns(now: Iterator[pa.RecordBatch], before: Iterator[pa.RecordBatch]) -> int:
    """Rows that are not the same in two streams of rows, whose batches need not begin and end together."""
    left, right, n_differing = next(now, None), next(before, None), 0
    while left is not None and right is not None:
        n = min(left.num_rows, right.num_rows)
        one, other = left.slice(0, n), right.slice(0, n)
        if not one.equals(other):
            same = [np.asarray(pc.equal(*columns)).astype(bool) for columns in zip(one.columns, other.columns, strict=True)]
            n_differing += n - int(np.count_nonzero(np.logical_and.reduce(same)))
        left = left.slice(n) if left.num_rows > n else next(now, None)
        right = right.slice(n) if right.num_rows > n else next(before, None)
    rest = [batch for batch in (left, right) if batch is not None]
    return n_differing + int(sum(batch.num_rows for batch in [*rest, *now, *before]))


def _in_order(rows: pa.Table) -> pa.Table:
    """By user and rank, as a night writes them; who rewrites the table's files may not keep that."""
    users, starts = group_boundaries(rows["user_id"].combine_chunks())
    owner = np.repeat(np.arange(len(users)), np.diff(starts))
    as_written = (np.asarray(rows["rank"].to_numpy()) == np.arange(len(owner)) - starts[owner] + 1).all()
    if as_written and pc.all(pc.less(users[:-1], users[1:])).as_py() is not False:
        return rows
    return rows.sort_by([("user_id", "ascending"), ("rank", "ascending")]).combine_chunks()


def _known(task: VerifyTask, bounds: UserRange, said: pa.Table) -> dict[str, int]:
    """Users who are to have a list; beside an earlier night only of those who changed, and how many of them it knew."""
    sides = {"n_known": (said.filter(said["now"]), task.embeddings)}
    if task.earlier is not None:
        sides["n_known_before"] = said.filter(said["before"]), task.earlier.embeddings
    counts = {"n_known_before": 0}
    for name, (rows, embeddings) in sides.items():
        embedded = embeddings.between(bounds, ["user_id"])["user_id"]
        if task.earlier is not None:
            embedded = embedded.filter(pc.is_in(embedded, value_set=users_in_range(find_changed_users(task.earlier.changed), bounds)))
        counts[name] = len(pa.chunked_array([*rows["user_id"].chunks, *embedded.chunks], embedded.type).unique())
    return counts


def _places(values: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """int64 places, -1 for what is not there."""
    found = pc.index_in(values, value_set=among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among)
    return np.asarray(pc.fill_null(found, -1).to_numpy(), dtype=np.int64)


def _popular(source: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """bool [n]."""
    return np.asarray(pc.equal(source, "popular").to_numpy(zero_copy_only=False)).astype(bool)


def _of_items(item: np.ndarray, items: pa.Table, listed: np.ndarray) -> dict[str, int]:
    """What the items of rows say of them; ``listed`` is marked."""
    listed[item] = True
    counted = {"n_head": "is_head", "rows_ruled_out": "ruled_out"}
    found = {name: int(np.count_nonzero(_flags(items, flag)[item])) for name, flag in counted.items()}
    return {**found, "rows_unavailable": len(item) - int(np.count_nonzero(_flags(items, "is_available")[item]))}


def _flags(items: pa.Table, name: str) -> np.ndarray:
    """bool [n + 1], the last (place -1) false."""
    return np.append(np.asarray(items[name].to_numpy(zero_copy_only=False)).astype(bool), False)


def _seen(said: pa.Table, users: pa.Array, keys: np.ndarray, n_names: int, item_ids: pa.ChunkedArray) -> int:
    """Listed pairs that the user has seen; ``keys`` are the listed ones, ascending."""
    seen_user, seen_item = _places(said["user_id"], pa.chunked_array([users])), _places(said["item_id"], item_ids)
    there = (seen_item >= 0) & (seen_user >= 0)
    asked = sorted_unique(seen_user[there] * n_names + seen_item[there])
    if len(keys) == 0:
        return 0
    return int(np.count_nonzero(keys[np.minimum(np.searchsorted(keys, asked), len(keys) - 1)] == asked))


def _ineligible(task: VerifyTask, said: pa.Table, users: pa.Array, owner: np.ndarray, item: np.ndarray, items: pa.Table) -> int:
    if not task.segments:
        return 0
    named = said.filter(pc.and_(said["now"], said["segment"].is_valid()))
    rules = pc.fill_null(pc.index_in(named["segment"], value_set=pa.array(list(task.segments), pa.string())), task.default)
    place = _places(pa.chunked_array([users]), named["user_id"])
    rule = np.append(np.asarray(rules.to_numpy(), dtype=np.int64), task.default)[place][owner]
    allowed = np.stack([_flags(items, f"eligible {number}") for number in range(len(task.segments))])
    return int(np.count_nonzero((rule >= 0) & ~allowed[rule, item]))


def _short(task: VerifyTask, bounds: UserRange, users: pa.Array, n_rows: np.ndarray) -> int:
    explained = task.shortfalls.between(bounds, ["user_id", "n_items"])
    place = _places(pa.chunked_array([users]), explained["user_id"])
    n_items = np.append(np.asarray(explained["n_items"].to_numpy(), dtype=np.int64), -1)[place]
    return int(np.count_nonzero((n_rows < task.top_k) & (n_items != n_rows)))
