"""Differences between two runs for a user or an item, and their causes, as far as the tables tell. No JVM."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.config import SeenSetting
from recsys_batch.dataset.seen_policy import make_seen_policy
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.evaluation.seen_pairs import SeenPairs, read_seen_pairs
from recsys_batch.ids import parse_id
from recsys_batch.read import column_type, read_table, run_slice
from recsys_batch.tables.run_manifest import Run


@dataclass(frozen=True)
class ItemChange:
    """An item that is in the top of one run and not in that of the other: its ranks (None where it is not in the list), and why."""

    item_id: Any
    title: str
    before: int | None
    now: int | None
    why: str


@dataclass(frozen=True)
class UserChanges:
    """Changes of one user's list between two runs.

    Attributes:
        n_new_events: interactions of the user that the later night read and the earlier one did not.
        models: model versions, earlier and later.
        came, went: items of the later top that the earlier one has not, and the other way round.
    """

    user_id: Any
    before: str
    now: str
    models: tuple[str, str]
    n_new_events: int
    n_kept: int
    came: tuple[ItemChange, ...]
    went: tuple[ItemChange, ...]


@dataclass(frozen=True)
class ItemChanges:
    """Changes of one item between two runs: lists that have it, their median rank, whether it was available; earlier and later."""

    item_id: Any
    title: str
    before: str
    now: str
    n_lists: tuple[int, int]
    median_rank: tuple[float | None, float | None]
    available: tuple[bool | None, bool | None]
    n_new_events: int


def diff_user(warehouse: str, user_id: Any, before: Run, now: Run, n: int, seen_setting: SeenSetting) -> UserChanges:
    """Compare a user's top ``n`` of the run ``now`` with that of ``before``; ``seen_setting``: ``retrieval.seen`` of both.

    Raises InputMissing where the user has no list in one of them, UsageError where it is not an id of the tables' type.
    """
    user = as_id(warehouse, "user_id", user_id)
    lists = [_read_ranks(warehouse, run, user) for run in (before, now)]
    candidates = [_read_candidate_ranks(warehouse, run, user) for run in (before, now)]
    pairs = [_read_seen_pairs(warehouse, run, user, seen_setting) for run in (before, now)]
    seen = [set(one.item_ids.to_pylist()) for one in pairs]
    tops = [[item for item, rank in ranks.items() if rank <= n] for ranks in lists]
    came = [item for item in tops[1] if item not in set(tops[0])]
    went = [item for item in tops[0] if item not in set(tops[1])]
    items = [_read_items(warehouse, run, [*came, *went]) for run in (before, now)]
    title = {item: (items[1].get(item) or items[0].get(item) or (str(item), True))[0] for item in (*came, *went)}
    models, n_kept = (before.model_version, now.model_version), len(set(tops[0]) & set(tops[1]))
    n_new_events = pairs[1].n_events - pairs[0].n_events
    cause = _describe_cause(n_new_events, models)
    reasons = {i: _explain_entered(i, lists, candidates, items, seen, cause) for i in came}
    entered = [ItemChange(i, title[i], lists[0].get(i), lists[1][i], reasons[i]) for i in came]
    left = [ItemChange(i, title[i], lists[0][i], lists[1].get(i), _explain_left(i, lists, candidates, items, seen)) for i in went]
    return UserChanges(user, before.run_id, now.run_id, models, max(n_new_events, 0), n_kept, tuple(entered), tuple(left))


def diff_item(warehouse: str, item_id: Any, before: Run, now: Run) -> ItemChanges:
    """Compare an item's lists and median rank in two runs.

    Raises InputMissing where there is no such item, UsageError where it is not an id of the tables' type.
    """
    item = as_id(warehouse, "item_id", item_id)
    descriptions = [_read_items(warehouse, run, [item]).get(item) for run in (before, now)]
    if descriptions == [None, None]:
        raise InputMissing(f"there is no item {item!r}")
    is_item = pc.field("item_id") == item
    conditions = [(pc.field("run_id") == run.run_id) & is_item for run in (before, now)]
    ranks = [np.asarray(read_table(warehouse, "topk", columns=["rank"], where=condition)["rank"]) for condition in conditions]
    n_events = [len(_read_event_items(warehouse, run, is_item)) for run in (before, now)]
    title = next(one[0] for one in reversed(descriptions) if one is not None)
    n_lists, medians = (len(ranks[0]), len(ranks[1])), (_median_rank(ranks[0]), _median_rank(ranks[1]))
    available = (descriptions[0] and descriptions[0][1], descriptions[1] and descriptions[1][1])
    return ItemChanges(item, title, before.run_id, now.run_id, n_lists, medians, available, max(n_events[1] - n_events[0], 0))


def as_id(warehouse: str, column: str, value: Any) -> int | str:
    """Convert an id given as text to the type of the tables' column; raises UsageError where it is not one of their type."""
    id_type = column_type(warehouse, "topk", column)
    parsed = parse_id(value, "BIGINT" if pa.types.is_integer(id_type) else "STRING")
    if parsed is None:
        raise UsageError(f"{column.replace('_', ' ')} {value!r} is not of type {id_type}, which the tables use")
    return parsed


def _read_ranks(warehouse: str, run: Run, user: Any) -> dict[Any, int]:
    rows = run_slice(warehouse, "topk", run, user_ids=[user], columns=["item_id", "rank"])
    if rows.num_rows == 0:
        raise InputMissing(f"user {user!r} has no list in run {run.run_id}: not known to it, or its rows were removed")
    return dict(zip(rows["item_id"].to_pylist(), rows["rank"].to_pylist(), strict=True))


def _read_candidate_ranks(warehouse: str, run: Run, user: Any) -> dict[Any, int]:
    """Read a user's candidates of a run: item -> rank in the order of retrieval, from 1."""
    rows = run_slice(warehouse, "candidates", run, user_ids=[user], columns=["items"])["items"].to_pylist()
    return {item["item_id"]: rank for rank, item in enumerate(rows[0], start=1)} if rows else {}


def _read_event_items(warehouse: str, run: Run, condition: pc.Expression) -> list[Any]:
    """Read the item_ids of the interactions that a run read and that meet a condition."""
    version = run.input_versions["interactions"]
    return list(read_table(warehouse, "interactions", columns=["item_id"], where=condition, version=version)["item_id"].to_pylist())


def _read_seen_pairs(warehouse: str, run: Run, user: Any, setting: SeenSetting) -> SeenPairs:
    """Read what a run could not list for a user who had seen it."""
    where, users = pc.field("user_id") == user, pa.array([user], column_type(warehouse, "topk", "user_id"))
    return read_seen_pairs(warehouse, run, users, make_seen_policy(setting, run.run_date), where)


def _read_items(warehouse: str, run: Run, items: list[Any]) -> dict[Any, tuple[str, bool]]:
    """Read the items that were in the run's catalogue: item -> (title, available)."""
    columns, version = ["item_id", "title", "is_available"], run.input_versions["items"]
    rows = read_table(warehouse, "items", columns=columns, where=pc.field("item_id").isin(items), version=version).to_pylist()
    return {row["item_id"]: (row["title"] or str(row["item_id"]), row["is_available"]) for row in rows}


def _describe_cause(n_new_events: int, models: tuple[str, str]) -> str:
    causes = [f"{n_new_events} new interactions of the user"] if n_new_events > 0 else []
    causes += [f"model version {models[1]} instead of {models[0]}"] if models[0] != models[1] else []
    return f" ({', '.join(causes)})" if causes else ""


ItemsOfRuns = list[dict[Any, tuple[str, bool]]]


def _explain_entered(
    item: Any, lists: list[dict[Any, int]], candidates: list[dict[Any, int]], items: ItemsOfRuns, seen: list[set[Any]], cause: str
) -> str:
    if item not in items[0]:
        return "new in the catalogue"
    if not items[0][item][1]:
        return "available again"
    if item in seen[0] - seen[1]:
        return "the user had it long enough ago"
    if candidates[1] and item not in candidates[0]:
        return f"retrieved now, as number {candidates[1].get(item, 0)}{cause}"
    return f"rose from rank {lists[0][item]}{cause}" if item in lists[0] else f"ranked into the list{cause}"


def _explain_left(
    item: Any, lists: list[dict[Any, int]], candidates: list[dict[Any, int]], items: ItemsOfRuns, seen: list[set[Any]]
) -> str:
    if item in seen[1] - seen[0]:
        return "the user has taken it since"
    if item not in items[1]:
        return "no longer in the catalogue"
    if not items[1][item][1]:
        return "no longer available"
    if item in lists[1]:
        return f"fell to rank {lists[1][item]}"
    if candidates[1] and item not in candidates[1]:
        return f"no longer retrieved (it was number {candidates[0].get(item, 0)})"
    return "ranked below the list"


def _median_rank(ranks: np.ndarray) -> float | None:
    return float(np.median(ranks)) if len(ranks) else None
