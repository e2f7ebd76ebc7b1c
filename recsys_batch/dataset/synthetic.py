"""Made-up users, items and interactions with a taste to be learned; every row follows from its number alone.

Every value is a hash of (seed, what it is for, row number), so that the same seed gives the same rows however the work is
split. Users and items belong to latent clusters; a user mostly takes items of one or two of them. How much a user does and
how popular an item is follow power laws, which are drawn from by their closed-form cumulative, not from tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys_batch.schemas import TABLES, IdTypes

IDS = IdTypes("BIGINT", "BIGINT")
DAYS = 60
END_US = 1_767_225_600_000_000
"""2026-01-01T00:00Z: no event is at or after it."""

_DAY_US = 86_400_000_000
_START_US = END_US - DAYS * _DAY_US
_MAX_AGE_DAYS = 400
_UNAVAILABLE = 0.02
_N_SEGMENTS = 8
# Shares of a user's events: the favourite cluster, the second one; the rest follows popularity alone.
_FAVOURITE, _SECOND = 0.55, 0.2
# The favourite's events are more often purchases: a ranker can tell a look from a like.
_PURCHASE, _PURCHASE_ELSEWHERE, _RETURN = 0.35, 0.12, 0.02
_WEIGHTS = {"view": 1.0, "purchase": 3.0, "return": -1.0}
_ACTIVITY_EXPONENT, _POPULARITY_EXPONENT = 0.8, 0.9
_WOODS = ("Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Juniper", "Larch", "Maple", "Oak", "Pine", "Rowan", "Spruce")
_THINGS = ("Bowl", "Chair", "Clock", "Desk", "Easel", "Flute", "Frame", "Kettle", "Lamp", "Mirror", "Oar", "Shelf", "Vase")


@dataclass(frozen=True)
class PowerLaw:
    """Ranks 0 .. n-1, drawn with probability falling as (rank + offset) ** -exponent, exponent < 1; a larger offset flattens the head."""

    n: np.ndarray | int
    exponent: float
    offset: float

    def cumulative(self, rank: np.ndarray) -> np.ndarray:
        """float64 in [0, 1]: share of the mass below ``rank``; 0 at 0 and 1 at n."""
        power = 1.0 - self.exponent
        low = self.offset**power
        mass: np.ndarray = ((rank + self.offset) ** power - low) / ((self.n + self.offset) ** power - low)
        return mass.clip(0.0, 1.0)

    def rank(self, uniform: np.ndarray) -> np.ndarray:
        """int64 ranks, the inverse of ``cumulative`` at float64 ``uniform`` in [0, 1)."""
        power = 1.0 - self.exponent
        low = self.offset**power
        exact_rank: np.ndarray = (low + uniform * ((self.n + self.offset) ** power - low)) ** (1.0 / power) - self.offset
        return exact_rank.astype(np.int64).clip(0, np.asarray(self.n) - 1)


@dataclass(frozen=True)
class Permutation:
    """A permutation of 0 .. n-1 without a table: ``n`` stays below 2 ** 31, so that no product overflows int64."""

    n: int
    factor: int
    shift: int

    @classmethod
    def seeded(cls, n: int, seed: int, stream: int) -> Permutation:
        factor = int(0.6180339887498949 * n) | 1
        while np.gcd(factor, n) != 1:
            factor += 1
        return cls(n, factor % n if n > 1 else 0, int(hash_to_uniform(seed, stream, np.arange(1))[0] * n))

    def forward(self, value: np.ndarray) -> np.ndarray:
        return np.asarray((value * self.factor + self.shift) % self.n)

    def backward(self, value: np.ndarray) -> np.ndarray:
        inverse = pow(self.factor, -1, self.n) if self.n > 1 else 0
        return np.asarray(((value - self.shift) % self.n) * inverse % self.n)


def hash_to_uniform(seed: int, stream: int, rows: np.ndarray) -> np.ndarray:
    """Hash each row number to a float64 in [0, 1): SplitMix64 of (seed, stream, row) [Steele, Lea, Flood 2014, OOPSLA].

    ``stream`` says what the number is for; streams of one row are independent.
    """
    with np.errstate(over="ignore"):
        key = _splitmix64(_splitmix64(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], np.uint64)) + np.uint64(stream))
        return (_splitmix64(rows.astype(np.uint64) + key) >> np.uint64(11)) * 2.0**-53


def _splitmix64(state: np.ndarray) -> np.ndarray:
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class World:
    """A synthetic data set by numbers: users and items are 1 .. n, events are a run of numbers per user."""

    n_users: int
    n_items: int
    n_events: int
    seed: int

    @property
    def n_clusters(self) -> int:
        """Clusters of items: one for about 50 items, at most 200."""
        return int(np.clip(self.n_items // 50, min(2, self.n_items), 200))

    def favourites(self, user_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw the int64 clusters that each user prefers most and second; they differ where there are two."""
        first = (hash_to_uniform(self.seed, 1, user_ids) * self.n_clusters).astype(np.int64)
        step = 1 + (hash_to_uniform(self.seed, 2, user_ids) * max(self.n_clusters - 1, 1)).astype(np.int64)
        return first, (first + step) % self.n_clusters

    def clusters(self, item_ids: np.ndarray) -> np.ndarray:
        """Assign each item its int64 cluster: popularity ranks are dealt out to clusters in turn, so each has its own head and tail."""
        return self._popularity_order.forward(item_ids - 1) % self.n_clusters

    def event_counts(self, user_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number each user's events: int64 first event, and how many; together they are 0 .. n_events - 1."""
        rank = Permutation.seeded(self.n_users, self.seed, 3).forward(user_ids - 1)
        law = PowerLaw(self.n_users, _ACTIVITY_EXPONENT, max(0.02 * self.n_users, 0.5))
        first, end = (np.floor(self.n_events * law.cumulative(edge)).astype(np.int64) for edge in (rank, rank + 1))
        return first, np.where(rank == self.n_users - 1, self.n_events, end) - first

    @property
    def _popularity_order(self) -> Permutation:
        return Permutation.seeded(self.n_items, self.seed, 4)

    def items_taken(self, events: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw the int64 item of each event, and a bool: whether from the favourite cluster ``first`` (int64 per event)."""
        choice, draw = hash_to_uniform(self.seed, 5, events), hash_to_uniform(self.seed, 6, events)
        favourite = choice < _FAVOURITE
        cluster = np.where(favourite, first, second)
        size = (self.n_items - cluster + self.n_clusters - 1) // self.n_clusters
        inside = PowerLaw(size, _POPULARITY_EXPONENT, 1.0).rank(draw) * self.n_clusters + cluster
        anywhere = PowerLaw(self.n_items, _POPULARITY_EXPONENT, 1.0).rank(draw)
        rank = np.where(choice < _FAVOURITE + _SECOND, inside, anywhere)
        return self._popularity_order.backward(rank) + 1, favourite


def make_interactions(world: World, user_ids: np.ndarray) -> pa.Table:
    """Make all interactions of the users (int64), as the table interactions; no two of a user's have the same time."""
    first_event, count = world.event_counts(user_ids)
    owner = np.repeat(np.arange(len(user_ids)), count)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    events = first_event[owner] + nth
    first, second = (favourite[owner] for favourite in world.favourites(user_ids))
    item_ids, favourite = world.items_taken(events, first, second)
    # The n-th event lies in the n-th of equal spans, which makes times distinct without looking for duplicates.
    inside_span = hash_to_uniform(world.seed, 7, events) * 0.999
    event_us = _START_US + np.floor((nth + inside_span) * (DAYS * _DAY_US / np.maximum(count, 1))[owner]).astype(np.int64)
    event_types = _draw_event_types(hash_to_uniform(world.seed, 8, events), favourite)
    names = np.array(list(_WEIGHTS))
    columns = {
        "user_id": pa.array(user_ids[owner]),
        "item_id": pa.array(item_ids),
        "event_ts": pa.array(event_us).cast(pa.timestamp("us", tz="UTC")),
        "event_type": pa.DictionaryArray.from_arrays(pa.array(event_types), pa.array(names)).cast(pa.string()),
        "weight": pa.array(np.array(list(_WEIGHTS.values()), np.float32)[event_types]),
        "event_date": pa.array((event_us // _DAY_US).astype(np.int32)).cast(pa.date32()),
    }
    return _table("interactions", columns)


def _draw_event_types(draw: np.ndarray, favourite: np.ndarray) -> np.ndarray:
    """Draw int32 positions in ``_WEIGHTS``: 0 view, 1 purchase, 2 return."""
    purchase = np.where(favourite, _PURCHASE, _PURCHASE_ELSEWHERE)
    return np.where(draw < _RETURN, 2, np.where(draw < _RETURN + purchase, 1, 0)).astype(np.int32)


def make_items(world: World, item_ids: np.ndarray) -> pa.Table:
    """Make the catalogue rows of the items (int64); categories name the cluster, and a department of up to 10 clusters."""
    cluster = world.clusters(item_ids)
    wood = (hash_to_uniform(world.seed, 9, item_ids) * len(_WOODS)).astype(np.int64)
    titles = [f"{_WOODS[w]} {_THINGS[c % len(_THINGS)]} {item}" for w, c, item in zip(wood, cluster, item_ids, strict=True)]
    age_us = (hash_to_uniform(world.seed, 10, item_ids) * _MAX_AGE_DAYS * _DAY_US).astype(np.int64)
    columns = {
        "item_id": pa.array(item_ids),
        "title": pa.array(titles),
        "categories": pa.array([[f"category {c}", f"department {c // 10}"] for c in cluster], pa.list_(pa.string())),
        "is_available": pa.array(hash_to_uniform(world.seed, 11, item_ids) >= _UNAVAILABLE),
        # listed before the first event that there is
        "first_seen_ts": pa.array(_START_US - age_us).cast(pa.timestamp("us", tz="UTC")),
        "attributes": pa.array([[("wood", _WOODS[w].lower())] for w in wood], pa.map_(pa.string(), pa.string())),
    }
    return _table("items", columns)


def make_users(world: World, user_ids: np.ndarray) -> pa.Table:
    """Make the rows of the users (int64); the segment follows the favourite cluster."""
    first, _ = world.favourites(user_ids)
    country = (hash_to_uniform(world.seed, 12, user_ids) * 5).astype(np.int64)
    columns = {
        "user_id": pa.array(user_ids),
        "segment": pa.array([f"segment {c % _N_SEGMENTS}" for c in first]),
        "attributes": pa.array([[("country", "ABCDE"[c])] for c in country], pa.map_(pa.string(), pa.string())),
    }
    return _table("users", columns)


def _table(name: str, columns: dict[str, pa.Array]) -> pa.Table:
    schema = TABLES[name].arrow_schema(IDS)
    return pa.Table.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)
