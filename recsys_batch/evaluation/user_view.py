"""History and recommendations of a user with titles, for a person to look at. No JVM."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.errors import InputMissing
from recsys_batch.evaluation.run_diff import as_id
from recsys_batch.read import published_run, read_table, run_slice


@dataclass(frozen=True)
class UserView:
    """Titles that a user liked, newest first, and (title, score) of those recommended, by rank; source is model or popular."""

    user_id: Any
    source: str
    history: list[str]
    topk: list[tuple[str, str]]


def sample_users(warehouse: str, run_id: str | None, n: int) -> list[Any]:
    """Sample ``n`` users spread evenly over the run's user ids."""
    run = published_run(warehouse, run_id)
    users = pc.unique(run_slice(warehouse, "topk", run, columns=["user_id"])["user_id"])
    positions = np.unique(np.linspace(0, len(users) - 1, num=min(n + 2, len(users))).astype(int))
    inner = positions[1:-1] if len(positions) > n else positions
    return list(users.take(pa.array(inner)).to_pylist())


def load_user_view(warehouse: str, user_id: Any, run_id: str | None, n: int, min_weight: float) -> UserView:
    """Load the history and top ``n`` of one user; a user id given as text is read as the tables' id type.

    Raises InputMissing where the user has no list in the run, UsageError where it is not an id of the tables' type.
    """
    run = published_run(warehouse, run_id)
    user = as_id(warehouse, "user_id", user_id)
    rows = run_slice(warehouse, "topk", run, user_ids=[user], columns=["rank", "item_id", "score", "source"])
    if rows.num_rows == 0:
        raise InputMissing(f"user {user!r} has no list in run {run.run_id}: it was not known when the run began")
    is_liked, version = (pc.field("user_id") == user) & (pc.field("weight") > min_weight), run.input_versions["interactions"]
    liked = read_table(warehouse, "interactions", columns=["item_id", "event_ts"], where=is_liked, version=version)
    history = liked.sort_by([("event_ts", "descending"), ("item_id", "ascending")])["item_id"].to_pylist()[:n]
    recommended = rows.slice(0, n).to_pylist()
    titles = _read_titles(warehouse, [*history, *(row["item_id"] for row in recommended)])
    topk = [(titles[row["item_id"]], f"{row['score']:.3f}") for row in recommended]
    return UserView(user, recommended[0]["source"], [titles[item] for item in history], topk)


def _read_titles(warehouse: str, item_ids: list[Any]) -> dict[Any, str]:
    rows = read_table(warehouse, "items", columns=["item_id", "title"], where=pc.field("item_id").isin(item_ids)).to_pylist()
    titles = {row["item_id"]: row["title"] for row in rows}
    return {item: titles.get(item) or str(item) for item in item_ids}
