"""Quality and variety of the lists of each segment, on sampled users."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.evaluation.metrics import hit_matrix, ndcg_at_k
from recsys_batch.read import has_table, read_table
from recsys_batch.tables.list_columns import flat_positions
from recsys_batch.tables.run_manifest import Run

K = 10
_HEAD_SHARE = 0.01
_MAX_SEGMENTS = 12


@dataclass(frozen=True)
class Segment:
    """Figures of one segment's sampled users.

    Attributes:
        n_judged: those with an interaction that was held out.
        ndcg, error: mean NDCG@10 of these, and its standard error; None where nobody is judged.
        head_share: share of the places of their lists that the most popular 1 % of items take; None where popularity is not known.
        n_items: different items in their lists.
        popular_share: users who got the popular list.
    """

    name: str
    n_users: int
    n_judged: int
    ndcg: float | None
    error: float | None
    head_share: float | None
    n_items: int
    popular_share: float


def measure_segments(
    warehouse: str, run: Run, sample: pa.Table, item_ids: pa.Array, taken: np.ndarray | None, min_weight: float
) -> tuple[Segment, ...]:
    """Measure the largest segments, "all" first.

    Args:
        sample: user_id, rank, item_id, source: whole lists, rows of a user together.
        taken: int64 [n_items], users who took the item.
        min_weight: held-out interactions above it are relevant.
    """
    users = pc.unique(sample["user_id"])
    owner = flat_positions(sample["user_id"], users)
    codes = flat_positions(sample["item_id"], item_ids)
    popular = np.zeros(len(users), dtype=bool)
    popular[owner[np.asarray(pc.equal(sample["source"].cast(pa.string()), "popular"))]] = True
    ndcg = _user_ndcg(warehouse, users, owner, np.asarray(sample["rank"]), codes, item_ids, min_weight)
    head = _head_items(taken)
    segments = []
    for name, members in _segment_masks(warehouse, run, users):
        rows = members[owner] & (codes >= 0)
        judged = ndcg[members & ~np.isnan(ndcg)]
        segment = Segment(
            name=name,
            n_users=int(members.sum()),
            n_judged=len(judged),
            ndcg=float(judged.mean()) if len(judged) else None,
            error=float(judged.std(ddof=1) / np.sqrt(len(judged))) if len(judged) > 1 else None,
            head_share=float(head[codes[rows]].mean()) if head is not None and rows.any() else None,
            n_items=len(np.unique(codes[rows])),
            popular_share=float(popular[members].mean()),
        )
        segments.append(segment)
    return tuple(segments)


def _segment_masks(warehouse: str, run: Run, users: pa.Array) -> list[tuple[str, np.ndarray]]:
    """Make (name, bool [n_users]) of all users and of each of the largest segments."""
    masks = [("all", np.ones(len(users), dtype=bool))]
    if "users" not in run.input_versions:
        return masks
    rows = read_table(warehouse, "users", columns=["user_id", "segment"], where=pc.field("user_id").isin(users))
    positions = flat_positions(rows["user_id"], users)
    names = np.full(len(users), None, dtype=object)
    names[positions] = rows["segment"].to_pylist()
    named, counts = np.unique([name for name in names if name is not None], return_counts=True)
    for number in np.argsort(-counts, kind="stable")[:_MAX_SEGMENTS]:
        masks.append((str(named[number]), names == named[number]))
    return masks


def _user_ndcg(
    warehouse: str, users: pa.Array, owner: np.ndarray, ranks: np.ndarray, codes: np.ndarray, item_ids: pa.Array, min_weight: float
) -> np.ndarray:
    """Compute each user's NDCG@10 against the holdout table: float64 [n_users], NaN where a user has nothing held out."""
    result = np.full(len(users), np.nan)
    if not has_table(warehouse, "holdout") or not len(users):
        return result
    is_relevant = pc.field("user_id").isin(users) & (pc.field("weight") > min_weight)
    truth = read_table(warehouse, "holdout", columns=["user_id", "item_id"], where=is_relevant)
    user, item = flat_positions(truth["user_id"], users), flat_positions(truth["item_id"], item_ids)
    user, item = user[item >= 0], item[item >= 0]
    order = np.argsort(user, kind="stable")
    lists = np.full((len(users), K), -1, dtype=np.int64)
    top = ranks <= K
    lists[owner[top], ranks[top] - 1] = codes[top]
    offsets = np.searchsorted(user[order], np.arange(len(users) + 1)).astype(np.int64)
    hits, n_relevant = hit_matrix(lists, offsets, item[order], len(item_ids))
    judged = n_relevant > 0
    if judged.any():
        result[judged] = ndcg_at_k(hits[judged], n_relevant[judged], K)
    return result


def _head_items(taken: np.ndarray | None) -> np.ndarray | None:
    if taken is None:
        return None
    head = np.zeros(len(taken), dtype=bool)
    head[np.argsort(-taken, kind="stable")[: max(int(len(taken) * _HEAD_SHARE), 1)]] = True
    return head
