"""Hold published lists against what users did later, beside plain popularity on the same users. No JVM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.evaluation.metrics import evaluate_lists
from recsys_batch.read import has_table, read_run_slice, read_table
from recsys_batch.tables.list_columns import flat_positions
from recsys_batch.tables.run_manifest import Run

_EVENT_KEY = ("user_id", "item_id", "event_ts", "event_type", "weight")


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one run.

    Attributes:
        n_users: users with a list and at least one relevant item: what the metrics average over.
        n_users_without_list: users of the truth that the run did not know; left out of the averages.
        model, popularity: metric name -> value, for the published lists and for popularity with seen items left out.
    """

    run_id: str
    model_version: str
    truth: str
    n_users: int
    n_users_without_list: int
    n_relevant: int
    model: dict[str, float]
    popularity: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_holdout_truth(warehouse: str, run: Run) -> tuple[pa.Table, str]:
    """True later interactions: the holdout table, or where there is none what arrived after the run's inputs were pinned.

    Returns:
        user_id, item_id, weight; and in words where they come from.

    Raises:
        InputMissing: neither exists.
    """
    if has_table(warehouse, "holdout"):
        held_out = read_table(warehouse, "holdout", columns=["user_id", "item_id", "weight"])
        if held_out.num_rows:
            return held_out, "the holdout table"
    columns = list(_EVENT_KEY)
    now = read_table(warehouse, "interactions", columns=columns)
    then = read_table(warehouse, "interactions", columns=columns, version=run.input_versions["interactions"])
    later = _comparable(now).join(_comparable(then), columns, join_type="left anti")
    if later.num_rows == 0:
        raise InputMissing(
            "there is no holdout table and no interaction arrived after the run: ingest with --holdout 0.2, or pass --truth PATH"
        )
    return later.select(["user_id", "item_id", "weight"]), f"interactions that arrived after run {run.run_id} began"


def evaluate_run(warehouse: str, run: Run, truth: pa.Table, origin: str, ks: Sequence[int], min_weight: float) -> Evaluation:
    """Metrics of a published run's topk at each k.

    Args:
        run: manifest row of the run.
        truth: user_id, item_id, weight; an item is relevant when one of its rows has weight > min_weight.
        origin: where the truth comes from, in words.
        ks: list lengths; a list shorter than k counts as it is.

    Raises:
        InputMissing: no user of the truth has a list.
        UsageError: a k that no list reaches.
    """
    topk = read_run_slice(warehouse, "topk", run, columns=["user_id", "rank", "item_id"])
    longest = pc.max(topk["rank"]).as_py() or 0
    if max(ks) > longest:
        raise UsageError(f"--k {max(ks)} is longer than the lists of run {run.run_id}, which have at most {longest} items")
    topk = topk.filter(pc.less_equal(topk["rank"], max(ks)))
    truth = truth.filter(pc.greater(truth["weight"], min_weight)).group_by(["user_id", "item_id"]).aggregate([])
    users = pc.unique(topk["user_id"])
    row = flat_positions(truth["user_id"], users)
    known = row >= 0
    without_list = len(pc.unique(truth["user_id"].filter(pa.array(~known))))
    if not known.any():
        raise InputMissing(f"no user of {origin} has a list in run {run.run_id}: are the user ids of the same kind?")
    order = np.argsort(row[known], kind="stable")
    truth, row = truth.filter(pa.array(known)).take(pa.array(order)), row[known][order]
    truth_offsets = np.searchsorted(row, np.arange(len(users) + 1)).astype(np.int64)

    catalogue = _catalogue(warehouse, run, truth["item_id"], min_weight)
    lists = _lists(topk, users, catalogue.item_ids)
    popular = _popularity_lists(warehouse, run, users, catalogue, lists.shape[1])
    truth_codes = flat_positions(truth["item_id"], catalogue.item_ids)
    model, popularity = (
        evaluate_lists(ranked, truth_offsets, truth_codes, catalogue.counts, ks, available=catalogue.available)
        for ranked in (lists, popular)
    )
    return Evaluation(run.run_id, run.model_version, origin, len(np.unique(row)), without_list, len(row), model, popularity)


@dataclass(frozen=True)
class _Catalogue:
    """Items of the run and of the truth, ids ascending; counts are users with a positive interaction before the run."""

    item_ids: pa.Array
    available: np.ndarray
    counts: np.ndarray


def _catalogue(warehouse: str, run: Run, truth_items: pa.ChunkedArray, min_weight: float) -> _Catalogue:
    items = read_table(warehouse, "items", columns=["item_id", "is_available"], version=run.input_versions["items"])
    item_ids = _sorted_unique([items["item_id"], truth_items])
    available = np.zeros(len(item_ids), dtype=bool)
    available[flat_positions(items["item_id"].filter(items["is_available"]), item_ids)] = True
    where, version = pc.field("weight") > min_weight, run.input_versions["interactions"]
    positives = read_table(warehouse, "interactions", columns=["user_id", "item_id"], where=where, version=version)
    liked = flat_positions(positives.group_by(["user_id", "item_id"]).aggregate([])["item_id"], item_ids)
    return _Catalogue(item_ids, available, np.bincount(liked[liked >= 0], minlength=len(item_ids)).astype(np.int64))


def _popularity_lists(warehouse: str, run: Run, users: pa.Array, catalogue: _Catalogue, k: int) -> np.ndarray:
    """int64 [n_users, k]: the most popular available items that each user has not seen, ties by item_id; -1 behind the end."""
    version = run.input_versions["interactions"]
    seen = read_table(warehouse, "interactions", columns=["user_id", "item_id"], version=version)
    order = np.lexsort((np.arange(len(catalogue.counts)), -catalogue.counts))
    order = order[catalogue.available[order]]
    place = np.full(len(catalogue.counts) + 1, len(order), dtype=np.int64)  # the extra last entry answers code -1
    place[order] = np.arange(len(order))
    row, at = flat_positions(seen["user_id"], users), place[flat_positions(seen["item_id"], catalogue.item_ids)]
    by_user = np.argsort(row, kind="stable")
    bounds = np.searchsorted(row[by_user], np.arange(len(users) + 1))
    lists = np.full((len(users), k), -1, dtype=np.int64)
    for user in range(len(users)):
        mine = at[by_user[bounds[user] : bounds[user + 1]]]
        # The first k unseen are among the first k + len(mine) of everybody's order.
        unseen = np.ones(min(k + len(mine), len(order)), dtype=bool)
        unseen[mine[mine < len(unseen)]] = False
        best = order[: len(unseen)][unseen][:k]
        lists[user, : len(best)] = best
    return lists


def _lists(topk: pa.Table, users: pa.Array, item_ids: pa.Array) -> np.ndarray:
    """int64 [n_users, K] item codes by rank, -1 where the list is shorter."""
    ranks = topk["rank"].to_numpy()
    lists = np.full((len(users), int(ranks.max())), -1, dtype=np.int64)
    lists[flat_positions(topk["user_id"], users), ranks - 1] = flat_positions(topk["item_id"], item_ids)
    return lists


def _sorted_unique(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    values = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks]))
    return values.take(pc.sort_indices(values))


def _comparable(events: pa.Table) -> pa.Table:
    """Nulls as values, since a join never finds a null equal to a null."""
    stamps = pc.fill_null(pc.cast(events["event_ts"], pa.int64()), np.iinfo(np.int64).min)
    kinds = pc.fill_null(events["event_type"], "")
    return events.set_column(events.schema.get_field_index("event_ts"), "event_ts", stamps).set_column(
        events.schema.get_field_index("event_type"), "event_type", kinds
    )
