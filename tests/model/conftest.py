"""Small tables for training: pyspark's MovieLens sample, and a market with planted taste."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys_batch.config import Config, load_config
from recsys_batch.model.training_data import Positives
from recsys_batch.registry.bundle import Bundle

N_USERS, N_ITEMS, N_GROUPS = 240, 80, 4


@dataclass(frozen=True)
class Tables:
    """What ``train`` takes."""

    interactions: pa.Table
    items: pa.Table
    users: pa.Table | None

    def without_time(self) -> Tables:
        at = self.interactions.schema.get_field_index("event_ts")
        nulls = pa.nulls(self.interactions.num_rows, pa.timestamp("us", "UTC"))
        return replace(self, interactions=self.interactions.set_column(at, "event_ts", nulls))


def interactions_of(users: Sequence[Any], items: Sequence[Any], seconds: Sequence[int | None], weights: Sequence[float]) -> pa.Table:
    stamps = pa.array([None if second is None else second * 1_000_000 for second in seconds], pa.int64()).cast(pa.timestamp("us", "UTC"))
    return pa.table({"user_id": users, "item_id": items, "event_ts": stamps, "weight": pa.array(weights, pa.float32())})


def items_of(ids: Sequence[Any], categories: Sequence[list[str]]) -> pa.Table:
    attributes = pa.array([[] for _ in ids], pa.map_(pa.string(), pa.string()))
    return pa.table({"item_id": ids, "categories": pa.array(categories, pa.list_(pa.string())), "attributes": attributes})


def users_of(ids: Sequence[Any], segments: Sequence[str | None]) -> pa.Table:
    attributes = pa.array([[("plan", "free")] for _ in ids], pa.map_(pa.string(), pa.string()))
    return pa.table({"user_id": ids, "segment": pa.array(segments, pa.string()), "attributes": attributes})


def planted_tables() -> Tables:
    """A user takes ten times as often from the group of a quarter of the items that the user's number falls in."""
    rng = np.random.default_rng(3)
    events: list[tuple[str, int, int, float]] = []
    for user in range(N_USERS):
        own = np.arange(N_ITEMS) % N_GROUPS == user % N_GROUPS
        chance = np.where(own, 10.0, 1.0) / (1 + np.arange(N_ITEMS) / 10)
        taken = rng.choice(N_ITEMS, size=rng.integers(8, 16), replace=False, p=chance / chance.sum())
        events += [(f"u{user:03d}", int(item), int(rng.integers(0, 2_000_000)), 1.0) for item in taken]
    interactions = interactions_of(*(list(column) for column in zip(*events, strict=True)))
    items = items_of(list(range(N_ITEMS)), [[f"group {item % N_GROUPS}"] for item in range(N_ITEMS)])
    users = users_of([f"u{user:03d}" for user in range(N_USERS)], [f"segment {user % N_GROUPS}" for user in range(N_USERS)])
    return Tables(interactions, items, users)


def movielens_tables() -> Tables:
    """pyspark's sample: 30 users, 100 items, 1,501 ratings, one time for all; three stars and more are positive."""
    import pyspark

    path = Path(pyspark.__file__).parent / "data" / "mllib" / "als" / "sample_movielens_ratings.txt"
    rows = [[int(part) for part in line.split("::")] for line in path.read_text().split()]
    users, items, stars, seconds = (list(column) for column in zip(*rows, strict=True))
    catalogue = sorted(set(items))
    return Tables(
        interactions_of(users, items, seconds, [star - 2.0 for star in stars]), items_of(catalogue, [[] for _ in catalogue]), None
    )


def positives_of(histories: Sequence[Sequence[int]], n_items: int, event_us: Sequence[int] | None = None) -> Positives:
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    codes = np.array([code for history in histories for code in history], dtype=np.int64)
    # An hour between a user's events, the newest of all users at one time.
    hours = np.concatenate([1_000 - np.arange(len(history)) for history in histories]) if histories else np.zeros(0)
    stamps = (hours * 3_600_000_000).astype(np.int64) if event_us is None else np.array(event_us, dtype=np.int64)
    return Positives(n_items, offsets, codes, stamps)


@pytest.fixture(scope="session")
def make_interactions() -> Callable[..., pa.Table]:
    """(users, items, seconds, weights) -> interactions."""
    return interactions_of


@pytest.fixture(scope="session")
def make_items() -> Callable[..., pa.Table]:
    """(ids, categories) -> items."""
    return items_of


@pytest.fixture(scope="session")
def make_users() -> Callable[..., pa.Table]:
    """(ids, segments) -> users."""
    return users_of


@pytest.fixture(scope="session")
def make_positives() -> Callable[..., Positives]:
    """(histories newest first, n_items) -> Positives."""
    return positives_of


@pytest.fixture(scope="session")
def planted() -> Tables:
    return planted_tables()


@pytest.fixture(scope="session")
def movielens() -> Tables:
    return movielens_tables()


@pytest.fixture(scope="session")
def small() -> Config:
    """Few dimensions, few epochs, one seed."""
    return load_config(None, ["model.embedding_dim=16", "training.max_epochs=4", "training.learning_rate=0.005"])


@pytest.fixture(scope="session")
def train_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """(tables, config, progress, champion) -> bundle in a folder of its own."""
    from recsys_batch.model.training import train_bundle

    def run(tables: Tables, config: Config, progress: Any = lambda *_: None, champion: Bundle | None = None) -> Bundle:
        folder = tmp_path_factory.mktemp("bundle")
        return train_bundle(tables.interactions, tables.items, tables.users, config, folder, progress, champion)

    return run


@pytest.fixture(scope="session")
def bundle(planted: Tables, small: Config, train_on: Callable[..., Bundle]) -> Bundle:
    """Trained on the planted market. Read only."""
    return train_on(planted, small)
