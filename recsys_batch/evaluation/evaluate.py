"""Compare published lists with what users did later, beside popularity and the run before on the same users. No JVM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.seen_policy import SeenPolicy
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.evaluation.bootstrap import Interval, bootstrap_gains, bootstrap_intervals
from recsys_batch.evaluation.metrics import evaluate_users, summarize_metrics
from recsys_batch.evaluation.seen_pairs import SeenPairs, read_seen_pairs
from recsys_batch.read import has_table, read_table, run_slice
from recsys_batch.tables.list_columns import flat_positions, sorted_ids
from recsys_batch.tables.run_manifest import Run


@dataclass(frozen=True)
class PreviousRun:
    """Lists published before the run, measured on the users with both lists.

    Attributes:
        model: metric name -> value, of the earlier lists. gain: the interval of the later lists' mean difference to them.
    """

    run_id: str
    model_version: str
    n_users: int
    model: dict[str, float]
    gain: dict[str, Interval]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one run.

    Attributes:
        n_users: users with a list and at least one relevant item: what the metrics average over.
        n_users_without_list: users of the truth that the run did not know; left out of the averages.
        n_relevant: relevant items of these users, that a list can hold.
        n_seen: relevant items that the users had before and no list may hold, by ``retrieval.seen``; left out.
        model, popularity: metric name -> value, for the published lists and for popularity with seen items left out.
        intervals: metric name -> the 95 % interval of the model's mean over users, for metrics that are one.
        gain_over_popularity: the same names -> the interval of the mean difference to popularity, user by user.
        previous: the comparison with the lists that were published before; None where there were none, or not of these users.
    """

    run_id: str
    model_version: str
    truth: str
    n_users: int
    n_users_without_list: int
    n_relevant: int
    n_seen: int
    model: dict[str, float]
    popularity: dict[str, float]
    intervals: dict[str, Interval]
    gain_over_popularity: dict[str, Interval]
    previous: PreviousRun | None


def read_holdout_truth(warehouse: str, run: Run) -> tuple[pa.Table, str]:
    """Read true later interactions: the holdout table, or where there is none what arrived after the run's inputs were pinned.

    Returns user_id, item_id, weight; and in words where they come from. Raises InputMissing where neither exists.
    """
    if has_table(warehouse, "holdout"):
        held_out = read_table(warehouse, "holdout", columns=["user_id", "item_id", "weight"])
        if held_out.num_rows:
            return held_out, "the holdout table"
    columns = ["user_id", "item_id", "event_ts", "event_type", "weight"]
    now = read_table(warehouse, "interactions", columns=columns)
    then = read_table(warehouse, "interactions", columns=columns, version=run.input_versions["interactions"])
    later = _fill_nulls(now).join(_fill_nulls(then), columns, join_type="left anti")
    if later.num_rows == 0:
        raise InputMissing(
            "there is no holdout table and no interaction arrived after the run: ingest with --holdout 0.2, or pass --truth PATH"
        )
    return later.select(["user_id", "item_id", "weight"]), f"interactions that arrived after run {run.run_id} began"


def evaluate_run(
    warehouse: str,
    run: Run,
    truth: pa.Table,
    origin: str,
    ks: Sequence[int],
    min_weight: float,
    policy: SeenPolicy,
    previous: Run | None = None,
) -> Evaluation:
    """Compute the metrics of a published run's topk at each k.

    Args:
        run: manifest row of the run.
        truth: user_id, item_id, weight; an item is relevant when one of its rows has weight > min_weight, and the user had not seen it.
        origin: where the truth comes from, in words.
        ks: list lengths; a list shorter than k counts as it is.
        policy: which of a user's events before the run kept an item out of the list.
        previous: the run whose lists these replaced, for ``Evaluation.previous``; None to leave it out.

    Raises:
        InputMissing: no user of the truth has a list, or all that is relevant had been seen.
        UsageError: a k that no list reaches.
    """
    topk = run_slice(warehouse, "topk", run, columns=["user_id", "rank", "item_id"])
    longest = pc.max(topk["rank"]).as_py() or 0
    if max(ks) > longest:
        raise UsageError(f"--k {max(ks)} is longer than the lists of run {run.run_id}, which have at most {longest} items")
    topk = topk.filter(pc.less_equal(topk["rank"], max(ks)))
    truth = truth.filter(pc.greater(truth["weight"], min_weight)).group_by(["user_id", "item_id"]).aggregate([])
    users = pc.unique(topk["user_id"])
    row = flat_positions(truth["user_id"], users)
    has_list = row >= 0
    without_list = len(pc.unique(truth["user_id"].filter(pa.array(~has_list))))
    if not has_list.any():
        raise InputMissing(f"no user of {origin} has a list in run {run.run_id}: are the user ids of the same kind?")
    order = np.argsort(row[has_list], kind="stable")
    truth, row = truth.filter(pa.array(has_list)).take(pa.array(order)), row[has_list][order]

    catalogue, seen = _load_catalogue(warehouse, run, truth["item_id"], min_weight), read_seen_pairs(warehouse, run, users, policy)
    truth_codes, n_items = flat_positions(truth["item_id"], catalogue.item_ids), len(catalogue.item_ids)
    is_new = ~np.isin(row * n_items + truth_codes, _pair_keys(seen, catalogue.item_ids))
    if not is_new.any():
        raise InputMissing(f"users had seen all {len(row)} relevant items of {origin} before run {run.run_id}: no list may hold one")
    n_seen, row, truth_codes = int(np.count_nonzero(~is_new)), row[is_new], truth_codes[is_new]
    truth_offsets = np.searchsorted(row, np.arange(len(users) + 1)).astype(np.int64)
    lists = _codes_by_rank(topk, users, catalogue.item_ids)
    popular = _make_popularity_lists(len(users), seen, catalogue, lists.shape[1])
    relevant = (truth_offsets, truth_codes)
    per_user, of_popularity = (evaluate_users(ranked, *relevant, n_items, ks) for ranked in (lists, popular))
    model, popularity = (
        summarize_metrics(values, ranked, catalogue.counts, ks, available=catalogue.available)
        for values, ranked in ((per_user, lists), (of_popularity, popular))
    )
    return Evaluation(
        run_id=run.run_id,
        model_version=run.model_version,
        truth=origin,
        n_users=len(np.unique(row)),
        n_users_without_list=without_list,
        n_relevant=len(row),
        n_seen=n_seen,
        model=model,
        popularity=popularity,
        intervals=bootstrap_intervals(per_user),
        gain_over_popularity=bootstrap_gains(per_user, of_popularity),
        previous=_compare_with_previous(warehouse, previous, users, per_user, relevant, catalogue, ks) if previous else None,
    )


def _compare_with_previous(
    warehouse: str,
    previous: Run,
    users: pa.Array,
    per_user: dict[str, np.ndarray],
    truth: tuple[np.ndarray, np.ndarray],
    catalogue: _Catalogue,
    ks: Sequence[int],
) -> PreviousRun | None:
    """Measure the lists of ``previous`` on the judged users who had one; None where nobody had.

    Args:
        users: ids of all lists. per_user: metrics of the judged users. truth: offsets by user, and codes.
    """
    topk = run_slice(warehouse, "topk", previous, columns=["user_id", "rank", "item_id"])
    topk = topk.filter(pc.and_(pc.less_equal(topk["rank"], max(ks)), pc.is_in(topk["user_id"], value_set=users)))
    if topk.num_rows == 0:
        return None
    lists = _codes_by_rank(topk, users, catalogue.item_ids)
    has_list = np.zeros(len(users), dtype=bool)
    has_list[flat_positions(topk["user_id"], users)] = True
    is_compared = has_list[np.diff(truth[0]) > 0]
    if not is_compared.any():
        return None
    earlier = {name: values[is_compared] for name, values in evaluate_users(lists, *truth, len(catalogue.counts), ks).items()}
    later = {name: values[is_compared] for name, values in per_user.items()}
    return PreviousRun(
        run_id=previous.run_id,
        model_version=previous.model_version,
        n_users=int(np.count_nonzero(is_compared)),
        model={name: float(values.mean()) for name, values in earlier.items()},
        gain=bootstrap_gains(later, earlier),
    )


@dataclass(frozen=True)
class _Catalogue:
    """Items of the run and of the truth, ids ascending; counts are users with a positive interaction before the run."""

    item_ids: pa.Array
    available: np.ndarray
    counts: np.ndarray


def _load_catalogue(warehouse: str, run: Run, truth_items: pa.ChunkedArray, min_weight: float) -> _Catalogue:
    items = read_table(warehouse, "items", columns=["item_id", "is_available"], version=run.input_versions["items"])
    item_ids = sorted_ids(items["item_id"], truth_items)
    available = np.zeros(len(item_ids), dtype=bool)
    available[flat_positions(items["item_id"].filter(items["is_available"]), item_ids)] = True
    is_positive, version = pc.field("weight") > min_weight, run.input_versions["interactions"]
    positives = read_table(warehouse, "interactions", columns=["user_id", "item_id"], where=is_positive, version=version)
    liked_codes = flat_positions(positives.group_by(["user_id", "item_id"]).aggregate([])["item_id"], item_ids)
    return _Catalogue(item_ids, available, np.bincount(liked_codes[liked_codes >= 0], minlength=len(item_ids)).astype(np.int64))


def _pair_keys(seen: SeenPairs, item_ids: pa.Array) -> np.ndarray:
    """Encode pairs as int64 owner * n_items + position of the item; those of items that are not among ``item_ids`` are left out."""
    codes = flat_positions(seen.item_ids, item_ids)
    return np.asarray(seen.owner[codes >= 0] * len(item_ids) + codes[codes >= 0])


def _make_popularity_lists(n_users: int, seen: SeenPairs, catalogue: _Catalogue, k: int) -> np.ndarray:
    """Make each user's popularity list: int64 [n_users, k] available items not seen yet, ties by item_id; -1 behind the end."""
    order = np.lexsort((np.arange(len(catalogue.counts)), -catalogue.counts))
    order = order[catalogue.available[order]]
    place_of_code = np.full(len(catalogue.counts) + 1, len(order), dtype=np.int64)  # the extra last entry answers code -1
    place_of_code[order] = np.arange(len(order))
    places = place_of_code[flat_positions(seen.item_ids, catalogue.item_ids)]
    by_user = np.argsort(seen.owner, kind="stable")
    bounds = np.searchsorted(seen.owner[by_user], np.arange(n_users + 1))
    lists = np.full((n_users, k), -1, dtype=np.int64)
    for user in range(n_users):
        seen_places = places[by_user[bounds[user] : bounds[user + 1]]]
        # The first k unseen are among the first k + len(seen_places) of the common order.
        unseen = np.ones(min(k + len(seen_places), len(order)), dtype=bool)
        unseen[seen_places[seen_places < len(unseen)]] = False
        best = order[: len(unseen)][unseen][:k]
        lists[user, : len(best)] = best
    return lists


def _codes_by_rank(topk: pa.Table, users: pa.Array, item_ids: pa.Array) -> np.ndarray:
    """Arrange item codes by rank: int64 [n_users, K], -1 where the list is shorter."""
    ranks = topk["rank"].to_numpy()
    lists = np.full((len(users), int(ranks.max())), -1, dtype=np.int64)
    lists[flat_positions(topk["user_id"], users), ranks - 1] = flat_positions(topk["item_id"], item_ids)
    return lists


def _fill_nulls(events: pa.Table) -> pa.Table:
    """Replace nulls of event_ts and event_type by values, since a join never finds a null equal to a null."""
    event_us = pc.fill_null(pc.cast(events["event_ts"], pa.int64()), np.iinfo(np.int64).min)
    columns = dict(zip(events.column_names, events.columns, strict=True))
    return pa.table({**columns, "event_ts": event_us, "event_type": pc.fill_null(events["event_type"], "")})
