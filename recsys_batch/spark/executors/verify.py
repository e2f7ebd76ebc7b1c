"""Executor code of the audit: the topk rows of a range of users, checked against what these users have seen and may get."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.seen_policy import SeenPolicy
from recsys_batch.spark.executors.changed_events import find_changed_users
from recsys_batch.spark.executors.functions import BatchFunction, profile_batches
from recsys_batch.storage.filesystems import read_parquet
from recsys_batch.tables.list_columns import flat_positions, sorted_unique
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
_CARRIED_COLUMNS = ["user_id", "rank", "item_id", "score"]
_COLUMNS = [*_CARRIED_COLUMNS, "source"]
LISTED = "listed"
"""Bit per item of the catalogue, as bytes: whether it is in a list."""
COUNTS_SCHEMA = pa.schema([*((name, pa.int64()) for name in VERIFY_COUNTS), (LISTED, pa.binary())])


@dataclass(frozen=True)
class BaseRunFiles:
    """Files of the audited run that an incremental one went on from.

    ``changed``: Parquet of user_id; all others' rows are to be the same.
    """

    topk: UserSortedFiles
    embeddings: UserSortedFiles
    changed: str


@dataclass(frozen=True)
class VerifyTask:
    """Files, items and limits of an audit task.

    Attributes:
        items: location of Parquet of item_id, is_available, ruled_out, is_head (much taken) and "eligible 0" .., as the items table says.
        segments: the segment of each eligibility column; ``default`` is the place of the one for all others, -1 for none.
        seen: which events keep an item out of a list.
        base: None where all rows are new.
    """

    topk: UserSortedFiles
    shortfalls: UserSortedFiles
    embeddings: UserSortedFiles
    items: str
    segments: Sequence[str]
    default: int
    top_k: int
    bounds: Sequence[UserRange]
    seen: SeenPolicy
    base: BaseRunFiles | None


def make_verifier(task: VerifyTask) -> BatchFunction:
    """Make a function for mapInArrow: (range, user_id, item_id, segment, now, before), a range's rows all in one task -> counts per range.

    A row is something that the inputs say of a user (an event, or a segment), ``now`` or at the time of the night ``before``; with
    event_us, where the policy of seen items needs times. Every range comes with a row without a user, so that it is looked at even if
    nobody in it is known.
    """

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = [batch for batch in batches if batch.num_rows]
        if not rows:
            return
        evidence = pa.Table.from_batches(rows)
        for number in pc.unique(evidence["range"]).to_pylist():
            range_rows = evidence.filter(pc.and_(pc.equal(evidence["range"], number), evidence["user_id"].is_valid())).combine_chunks()
            counts = _verify_range(task, task.bounds[number], range_rows)
            yield pa.RecordBatch.from_pylist([counts], schema=COUNTS_SCHEMA)

    return profile_batches(run, "audit")


def _verify_range(task: VerifyTask, bounds: UserRange, evidence: pa.Table) -> dict[str, Any]:
    items = read_parquet(task.items)
    is_listed = np.zeros(len(items) + 1, dtype=bool)
    if task.base is None:
        rows, counts = task.topk.between(bounds, _COLUMNS), Counter[str]()
    else:
        rows, counts = _check_carried_rows(task, task.base, bounds, items, evidence, is_listed)
    counts.update(_count_known_users(task, bounds, evidence))
    counts.update(_check_new_rows(task, bounds, _sort_rows(rows), items, evidence, is_listed))
    return {**{name: counts[name] for name in VERIFY_COUNTS}, LISTED: np.packbits(is_listed[:-1]).tobytes()}


def _check_new_rows(
    task: VerifyTask, bounds: UserRange, rows: pa.Table, items: pa.Table, evidence: pa.Table, is_listed: np.ndarray
) -> dict[str, int]:
    """Check new rows against everything that they have to keep to; returns counts."""
    users, starts = group_boundaries(rows["user_id"].combine_chunks())
    n_rows, item_ids = np.diff(starts), items["item_id"].combine_chunks()
    owner, item = np.repeat(np.arange(len(users)), n_rows), flat_positions(rows["item_id"], item_ids)
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
        "n_popular": int(np.count_nonzero(np.bincount(owner[_is_popular(rows["source"])], minlength=len(users)) == n_rows)),
        "lists_broken": int(np.count_nonzero(broken)),
        "rows_not_finite": int(np.count_nonzero(~np.isfinite(score))),
        "rows_seen": _count_seen(task.seen, evidence, users, keys, n_names, item_ids),
        "rows_ineligible": _count_ineligible(task, evidence, users, owner, item, items),
        **_count_item_flags(item, items, is_listed),
        "lists_short_unexplained": _count_short(task, bounds, users, n_rows),
    }


def _check_carried_rows(
    task: VerifyTask, base: BaseRunFiles, bounds: UserRange, items: pa.Table, evidence: pa.Table, is_listed: np.ndarray
) -> tuple[pa.Table, Counter[str]]:
    """Check carried rows against the base run's; returns the rows of users who changed, and counts over all others.

    What the base run's audit found of these rows holds still. What may have happened since is looked at: items that went, and events of
    users who should be among the changed.
    """
    changed, counts, changed_rows = users_in_range(find_changed_users(base.changed), bounds), Counter[str](), []
    users, n_rows, n_popular = [], [], []
    item_ids = items["item_id"].combine_chunks()

    def kept() -> Iterator[pa.RecordBatch]:
        for batch in task.topk.batches(bounds, _COLUMNS):
            changed_rows.append(batch.filter(pc.is_in(batch["user_id"], value_set=changed)))
            batch = drop_users(batch, changed)
            carried_users, starts = group_boundaries(batch["user_id"])
            users.append(carried_users)
            n_rows.append(np.diff(starts))
            n_popular.append(
                np.add.reduceat(_is_popular(batch["source"]).astype(np.int64), starts[:-1]) if len(carried_users) else starts[:0]
            )
            counts.update(_count_item_flags(flat_positions(batch["item_id"], item_ids), items, is_listed))
            yield batch.select(_CARRIED_COLUMNS)

    before = (drop_users(batch, changed) for batch in base.topk.batches(bounds, _CARRIED_COLUMNS))
    counts["rows_not_carried"] = find_differing_columns(kept(), before)
    # A user's rows may lie in two batches.
    carried_users, starts = group_boundaries(pa.concat_arrays(users) if users else pa.array([], task.topk.where.ids.user_arrow))
    total = [np.add.reduceat(np.concatenate(each), starts[:-1]) if len(carried_users) else starts[:0] for each in (n_rows, n_popular)]
    counts.update(n_users=len(carried_users), n_rows=int(total[0].sum()), n_popular=int(np.count_nonzero(total[0] == total[1])))
    counts["lists_short_unexplained"] = _count_short(task, bounds, carried_users, total[0])
    missed = evidence.filter(pc.invert(pc.is_in(evidence["user_id"], value_set=changed)))
    counts["rows_not_carried"] += len(missed)
    return pa.Table.from_batches(changed_rows) if changed_rows else task.topk.between((None, None), _COLUMNS).slice(0, 0), counts


def find_differing_columns(now: Iterator[pa.RecordBatch], before: Iterator[pa.RecordBatch]) -> int:
    """Count the rows that differ in two streams of rows, whose batches need not begin and end together."""
    left, right, n_differing = next(now, None), next(before, None), 0
    while left is not None and right is not None:
        n = min(left.num_rows, right.num_rows)
        left_rows, right_rows = left.slice(0, n), right.slice(0, n)
        if not left_rows.equals(right_rows):
            same = [np.asarray(pc.equal(*columns)).astype(bool) for columns in zip(left_rows.columns, right_rows.columns, strict=True)]
            n_differing += n - int(np.count_nonzero(np.all(same, axis=0)))
        left = left.slice(n) if left.num_rows > n else next(now, None)
        right = right.slice(n) if right.num_rows > n else next(before, None)
    rest = [batch for batch in (left, right) if batch is not None]
    return n_differing + int(sum(batch.num_rows for batch in [*rest, *now, *before]))


def _sort_rows(rows: pa.Table) -> pa.Table:
    """Sort rows by user and rank, as a night writes them; who rewrites the table's files may not keep that."""
    users, starts = group_boundaries(rows["user_id"].combine_chunks())
    owner = np.repeat(np.arange(len(users)), np.diff(starts))
    as_written = (np.asarray(rows["rank"].to_numpy()) == np.arange(len(owner)) - starts[owner] + 1).all()
    if as_written and pc.all(pc.less(users[:-1], users[1:])).as_py() is not False:
        return rows
    return rows.sort_by([("user_id", "ascending"), ("rank", "ascending")]).combine_chunks()


def _count_known_users(task: VerifyTask, bounds: UserRange, evidence: pa.Table) -> dict[str, int]:
    """Count the users who are to have a list; beside a base run only those who changed, and how many of them it knew."""
    sides = {"n_known": (evidence.filter(evidence["now"]), task.embeddings)}
    if task.base is not None:
        sides["n_known_before"] = evidence.filter(evidence["before"]), task.base.embeddings
    counts = {"n_known_before": 0}
    for name, (rows, embeddings) in sides.items():
        embedded = embeddings.between(bounds, ["user_id"])["user_id"]
        if task.base is not None:
            embedded = embedded.filter(pc.is_in(embedded, value_set=users_in_range(find_changed_users(task.base.changed), bounds)))
        counts[name] = len(pa.chunked_array([*rows["user_id"].chunks, *embedded.chunks], embedded.type).unique())
    return counts


def _is_popular(source: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Mark the rows of source "popular": bool [n]."""
    return np.asarray(pc.equal(source, "popular").to_numpy(zero_copy_only=False)).astype(bool)


def _count_item_flags(item: np.ndarray, items: pa.Table, is_listed: np.ndarray) -> dict[str, int]:
    """Count rows by the flags of their items; ``is_listed`` is marked."""
    is_listed[item] = True
    counted = {"n_head": "is_head", "rows_ruled_out": "ruled_out"}
    counts = {name: int(np.count_nonzero(_item_flags(items, flag)[item])) for name, flag in counted.items()}
    return {**counts, "rows_unavailable": len(item) - int(np.count_nonzero(_item_flags(items, "is_available")[item]))}


def _item_flags(items: pa.Table, name: str) -> np.ndarray:
    """Read a flag of items: bool [n + 1], the last (position -1) false."""
    return np.append(np.asarray(items[name].to_numpy(zero_copy_only=False)).astype(bool), False)


def _count_seen(policy: SeenPolicy, evidence: pa.Table, users: pa.Array, keys: np.ndarray, n_names: int, item_ids: pa.Array) -> int:
    """Count listed pairs that the user has seen; ``keys`` are the listed ones, ascending."""
    seen_user, seen_item = flat_positions(evidence["user_id"], users), flat_positions(evidence["item_id"], item_ids)
    is_seen = (seen_item >= 0) & (seen_user >= 0)
    if not policy.excludes_all:
        event_us = evidence["event_us"].filter(pa.array(is_seen)) if policy.needs_times else None
        is_seen[is_seen] = policy.mark_seen(_find_segments(evidence, users), seen_user[is_seen], event_us)
    seen_keys = sorted_unique(seen_user[is_seen] * n_names + seen_item[is_seen])
    if len(keys) == 0:
        return 0
    return int(np.count_nonzero(keys[np.minimum(np.searchsorted(keys, seen_keys), len(keys) - 1)] == seen_keys))


def _find_segments(evidence: pa.Table, users: pa.Array) -> pa.Array:
    """Find the segment that each user has now: string [n_users], null for users without one."""
    rows = evidence.filter(pc.and_(evidence["now"], evidence["segment"].is_valid()))
    return rows["segment"].combine_chunks().take(pc.index_in(users, value_set=rows["user_id"].combine_chunks()))


def _count_ineligible(task: VerifyTask, evidence: pa.Table, users: pa.Array, owner: np.ndarray, item: np.ndarray, items: pa.Table) -> int:
    if not task.segments:
        return 0
    rules = pc.index_in(_find_segments(evidence, users), value_set=pa.array(list(task.segments), pa.string()))
    rule = np.asarray(pc.fill_null(rules, task.default).to_numpy(zero_copy_only=False), dtype=np.int64)[owner]
    allowed = np.stack([_item_flags(items, f"eligible {number}") for number in range(len(task.segments))])
    return int(np.count_nonzero((rule >= 0) & ~allowed[rule, item]))


def _count_short(task: VerifyTask, bounds: UserRange, users: pa.Array, n_rows: np.ndarray) -> int:
    shortfalls = task.shortfalls.between(bounds, ["user_id", "n_items"])
    rows = flat_positions(users, shortfalls["user_id"].combine_chunks())
    n_items = np.append(np.asarray(shortfalls["n_items"].to_numpy(), dtype=np.int64), -1)[rows]
    return int(np.count_nonzero((n_rows < task.top_k) & (n_items != n_rows)))
