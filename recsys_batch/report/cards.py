"""Cards of some users: what they liked and what they are recommended, by title."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.read import read_table
from recsys_batch.tables.run_manifest import Run

_N_SHOWN = 10


@dataclass(frozen=True)
class CardItem:
    """Recommended item of a card."""

    rank: int
    title: str
    categories: str
    score: float
    candidate_rank: int | None


@dataclass(frozen=True)
class UserCard:
    """Sample user: titles of positive interactions, newest first, beside the top of the list."""

    user_id: Any
    source: str
    history: tuple[str, ...]
    topk: tuple[CardItem, ...]


def make_cards(warehouse: str, run: Run, sample: pa.Table, items: pa.Table, min_weight: float, n: int) -> tuple[UserCard, ...]:
    """Make the cards of ``n`` users spread evenly over the sample.

    Args:
        sample: rows of topk, whole lists, those of a user together.
        items: item_id, title, categories.
    """
    users = pc.unique(sample["user_id"])
    chosen = users.take(pa.array(np.unique(np.linspace(0, len(users) - 1, min(n + 2, len(users))).astype(int))[:n]))
    rows = sample.filter(pc.is_in(sample["user_id"], value_set=chosen)).filter(pc.less_equal(pc.field("rank"), _N_SHOWN))
    version, columns = run.input_versions["interactions"], ["user_id", "item_id", "event_ts"]
    is_liked = pc.field("user_id").isin(chosen) & (pc.field("weight") > min_weight)
    liked = read_table(warehouse, "interactions", columns=columns, where=is_liked, version=version)
    liked = liked.sort_by([("event_ts", "descending"), ("item_id", "ascending")])
    shown = pa.concat_arrays([*rows["item_id"].chunks, *liked["item_id"].chunks])
    described = {
        item["item_id"]: (item["title"] or str(item["item_id"]), ", ".join(item["categories"] or ()))
        for item in items.filter(pc.is_in(items["item_id"], value_set=shown)).to_pylist()
    }
    return tuple(_make_card(user, rows, liked, described) for user in chosen.to_pylist())


def _make_card(user: Any, rows: pa.Table, liked: pa.Table, described: dict[Any, tuple[str, str]]) -> UserCard:
    user_rows = rows.filter(pc.equal(rows["user_id"], pa.scalar(user, rows["user_id"].type))).sort_by("rank").to_pylist()
    history = liked.filter(pc.equal(liked["user_id"], pa.scalar(user, liked["user_id"].type)))["item_id"].to_pylist()[:_N_SHOWN]
    topk = tuple(
        CardItem(line["rank"], *described.get(line["item_id"], (str(line["item_id"]), "")), line["score"], line["candidate_rank"])
        for line in user_rows
    )
    return UserCard(user, user_rows[0]["source"], tuple(described.get(item, (str(item), ""))[0] for item in history), topk)
