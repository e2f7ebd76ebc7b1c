"""What changed between two nights for one user or one item, and why, as far as the tables tell. No JVM."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.read import read_column_type, read_run_slice, read_table
from recsys_batch.tables.run_manifest import Run


@dataclass(frozen=True)
class ItemChange:
    """An item that is in one top and not in the other, or has moved.

    Attributes:
        before, now: its ranks; None where it is not in the list.
        why: in words.
    """

    item_id: Any
    title: str
    before: int | None
    now: int | None
    why: str


@dataclass(frozen=True)
class UserChanges:
    """Of one user.

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ItemChanges:
    """Of one item: lists that have it, their median rank, and whether it could be recommended; earlier and later."""

    item_id: Any
    title: str
    before: str
    now: str
    n_lists: tuple[int, int]
    median_rank: tuple[float | None, float | None]
    available: tuple[bool | None, bool | None]
    n_new_events: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diff_user(warehouse: str, user_id: Any, before: Run, now: Run, n: int) -> UserChanges:
    """The user's top ``n`` of the run ``now`` against that of ``before``.

    Raises:
        InputMissing: the user has no list in one of them.
        UsageError: not an id of the tables' type.
    """
    user = as_id(warehouse, "user_id", user_id)
    lists = [_list_of(warehouse, run, user) for run in (before, now)]
    places = [_candidates_of(warehouse, run, user) for run in (before, now)]
    seen = [_seen(warehouse, run, user) for run in (before, now)]
    tops = [[item for item, rank in one.items() if rank <= n] for one in lists]
    came = [item for item in tops[1] if item not in set(tops[0])]
    went = [item for item in tops[0] if item not in set(tops[1])]
    known = [_described(warehouse, run, [*came, *went]) for run in (before, now)]
    title = {item: (known[1].get(item) or known[0].get(item) or (str(item), True))[0] for item in (*came, *went)}
    models = (before.model_version, now.model_version)
    cause = _cause(len(seen[1]) - len(seen[0]), models)
    return UserChanges(
        user,
        before.run_id,
        now.run_id,
        models,
        max(len(seen[1]) - len(seen[0]), 0),
        len(set(tops[0]) & set(tops[1])),
        tuple(ItemChange(i, title[i], lists[0].get(i), lists[1][i], _why_came(i, lists, places, known, cause)) for i in came),
        tuple(ItemChange(i, title[i], lists[0][i], lists[1].get(i), _why_went(i, lists, places, known, seen)) for i in went),
    )


def diff_item(warehouse: str, item_id: Any, before: Run, now: Run) -> ItemChanges:
    """In how many lists of either run the item is, and where.

    Raises:
        InputMissing: there is no such item.
        UsageError: not an id of the tables' type.
    """
    item = as_id(warehouse, "item_id", item_id)
    known = [_described(warehouse, run, [item]).get(item) for run in (before, now)]
    if known == [None, None]:
        raise InputMissing(f"there is no item {item!r}")
    ranks = []
    for run in (before, now):
        where = (pc.field("run_id") == run.run_id) & (pc.field("item_id") == item)
        ranks.append(np.asarray(read_table(warehouse, "topk", columns=["rank"], where=where)["rank"]))
    events = [_n_events(warehouse, run, pc.field("item_id") == item) for run in (before, now)]
    return ItemChanges(
        item,
        next(one[0] for one in reversed(known) if one is not None),
        before.run_id,
        now.run_id,
        (len(ranks[0]), len(ranks[1])),
        (_median(ranks[0]), _median(ranks[1])),
        (None if known[0] is None else known[0][1], None if known[1] is None else known[1][1]),
        max(events[1] - events[0], 0),
    )


def as_id(warehouse: str, column: str, value: Any) -> Any:
    """An id that was given as text, as the tables have it.

    Raises:
        UsageError: it is not one of their type.
    """
    id_type = read_column_type(warehouse, "topk", column)
    try:
        return pa.scalar(value).cast(id_type).as_py()
    except pa.ArrowInvalid:
        raise UsageError(f"{column.replace('_', ' ')} {value!r} is not of type {id_type}, which the tables use") from None


def _list_of(warehouse: str, run: Run, user: Any) -> dict[Any, int]:
    rows = read_run_slice(warehouse, "topk", run, user_ids=[user], columns=["item_id", "rank"])
    if rows.num_rows == 0:
        raise InputMissing(f"user {user!r} has no list in run {run.run_id}: not known to it, or its rows were removed")
    return dict(zip(rows["item_id"].to_pylist(), rows["rank"].to_pylist(), strict=True))


def _candidates_of(warehouse: str, run: Run, user: Any) -> dict[Any, int]:
    """item -> place in the order of retrieval, from 1."""
    rows = read_run_slice(warehouse, "candidates", run, user_ids=[user], columns=["items"])["items"].to_pylist()
    return {item["item_id"]: place for place, item in enumerate(rows[0], start=1)} if rows else {}


def _seen(warehouse: str, run: Run, user: Any) -> list[Any]:
    version = run.input_versions["interactions"]
    rows = read_table(warehouse, "interactions", columns=["item_id"], where=pc.field("user_id") == user, version=version)
    found: list[Any] = rows["item_id"].to_pylist()
    return found


def _n_events(warehouse: str, run: Run, where: pc.Expression) -> int:
    version = run.input_versions["interactions"]
    return int(read_table(warehouse, "interactions", columns=["item_id"], where=where, version=version).num_rows)


def _described(warehouse: str, run: Run, items: list[Any]) -> dict[Any, tuple[str, bool]]:
    """item -> (title, available), of those that were in the catalogue then."""
    columns, version = ["item_id", "title", "is_available"], run.input_versions["items"]
    rows = read_table(warehouse, "items", columns=columns, where=pc.field("item_id").isin(items), version=version).to_pylist()
    return {row["item_id"]: (row["title"] or str(row["item_id"]), row["is_available"]) for row in rows}


def _cause(n_new_events: int, models: tuple[str, str]) -> str:
    causes = [f"{n_new_events} new interactions of the user"] if n_new_events > 0 else []
    causes += [f"model version {models[1]} instead of {models[0]}"] if models[0] != models[1] else []
    return f" ({', '.join(causes)})" if causes else ""


Known = list[dict[Any, tuple[str, bool]]]


def _why_came(item: Any, lists: list[dict[Any, int]], places: list[dict[Any, int]], known: Known, cause: str) -> str:
    if item not in known[0]:
        return "new in the catalogue"
    if not known[0][item][1]:
        return "available again"
    if places[1] and item not in places[0]:
        return f"retrieved now, as number {places[1].get(item, 0)}{cause}"
    if item in lists[0]:
        return f"rose from rank {lists[0][item]}{cause}"
    return f"ranked into the list{cause}"


def _why_went(item: Any, lists: list[dict[Any, int]], places: list[dict[Any, int]], known: Known, seen: list[list[Any]]) -> str:
    if item in set(seen[1]) - set(seen[0]):
        return "the user has taken it since"
    if item not in known[1]:
        return "no longer in the catalogue"
    if not known[1][item][1]:
        return "no longer available"
    if item in lists[1]:
        return f"fell to rank {lists[1][item]}"
    if places[1] and item not in places[1]:
        return f"no longer retrieved (it was number {places[0].get(item, 0)})"
    return "ranked below the list"


def _median(ranks: np.ndarray) -> float | None:
    return float(np.median(ranks)) if len(ranks) else None
