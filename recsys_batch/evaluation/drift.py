"""Drift of a run's lists from those of another run, on sampled users. The audit and the report call it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.tables.list_columns import flat_positions
from recsys_batch.tables.user_ranges import UserRange, UserSortedFiles, group_boundaries

_N_SAMPLED_FILES = 20  # files of which the first rows are looked at: 65,536 each, so about 13,000 users with 100 items
_N_BINS = 10
_MIN_BIN_SHARE = 1e-4  # share of an empty bin, which has no logarithm


@dataclass(frozen=True)
class RunComparison:
    """Overlap and scores of the sampled users who are in both runs.

    jaccard float64 [n_users], items in both lists / items in either; now, before float32 [rows], scores of their lists.
    """

    jaccard: np.ndarray
    now: np.ndarray
    before: np.ndarray


def compare_runs(now: UserSortedFiles, before: UserSortedFiles) -> RunComparison | None:
    """Compare two runs' lists of sampled users; None where no user is in both."""
    shared: list[np.ndarray] = []
    either: list[np.ndarray] = []
    scores: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for bounds in sample_user_ranges(now):
        rows = [side.between(bounds, ["user_id", "item_id", "score"]) for side in (now, before)]
        users = rows[0]["user_id"].combine_chunks().unique()
        users = users.filter(pc.is_in(users, value_set=rows[1]["user_id"].combine_chunks()))
        sides = [side.filter(pc.is_in(side["user_id"], value_set=users)) for side in rows]
        items = pa.concat_tables([side.select(["item_id"]) for side in sides])["item_id"].unique()
        n_items = max(len(items), 1)
        keys = [flat_positions(side["user_id"], users) * n_items + flat_positions(side["item_id"], items) for side in sides]
        both = np.bincount(np.intersect1d(*keys) // n_items, minlength=len(users))
        shared.append(both)
        either.append(np.bincount(np.concatenate(keys) // n_items, minlength=len(users)) - both)
        for scores_of_side, side in zip(scores, sides, strict=True):
            scores_of_side.append(np.asarray(side["score"].combine_chunks()))
    total = np.concatenate(either) if either else np.zeros(0)
    if len(total) == 0:
        return None
    return RunComparison(np.concatenate(shared) / np.maximum(total, 1), np.concatenate(scores[0]), np.concatenate(scores[1]))


def population_stability_index(now: np.ndarray, before: np.ndarray) -> float:
    """Compute the population stability index of scores over the deciles of ``before``: sum (p - q) ln(p / q).

    0 where the distributions are the same; by common use, up to 0.1 is little and above 0.25 much.
    """
    edges = np.unique(np.quantile(before, np.linspace(0, 1, _N_BINS + 1)[1:-1]))
    shares = []
    for values in (now, before):
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        shares.append(np.maximum(counts / max(len(values), 1), _MIN_BIN_SHARE))
    p, q = shares
    return float(np.sum((p - q) * np.log(p / q)))


def sample_user_ranges(files: UserSortedFiles) -> Sequence[UserRange]:
    """Sample ranges of users, evenly over the files: each begins with a file's first user and has about a batch of rows."""
    if not files.parts:
        return []
    chosen = [files.parts[number] for number in np.unique(np.linspace(0, len(files.parts) - 1, _N_SAMPLED_FILES).astype(int)).tolist()]
    ranges = []
    for part in chosen:
        first = next(UserSortedFiles(files.where, [part]).batches(columns=["user_id"]))
        users, _ = group_boundaries(first["user_id"])
        if len(users) > 1:
            # The first user has no lower end to be asked by, and the last one's rows may be cut off.
            ranges.append((users[0].as_py(), users[len(users) - 2].as_py()))
        elif len(chosen) == 1:
            ranges.append((None, users[0].as_py()))
    return ranges
