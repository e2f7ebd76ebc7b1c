"""Training data as arrays: positives per user newest first, and the validation part carved from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.config import Config
from recsys_batch.dataset.histories import NO_TIME
from recsys_batch.errors import InputMissing
from recsys_batch.tables.list_columns import flat_positions, sorted_ids


@dataclass(frozen=True)
class Positives:
    """Each user's distinct positive items, newest first (by a seeded shuffle where there is no time).

    Attributes:
        n_items: codes run from 0 to n_items - 1.
        offsets: int64 [n_users + 1]. codes: int64 [total]. event_us: int64 [total], microseconds, NO_TIME where unknown.
    """

    n_items: int
    offsets: np.ndarray
    codes: np.ndarray
    event_us: np.ndarray

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """int64 [n_users]."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """int64 [total], the user of each entry."""
        return np.repeat(np.arange(self.n_users), self.counts)

    @property
    def places(self) -> np.ndarray:
        """int64 [total], position within the user, 0 is newest."""
        return np.asarray(np.arange(len(self.codes)) - np.repeat(self.offsets[:-1], self.counts))

    @property
    def item_counts(self) -> np.ndarray:
        """int64 [n_items], users per item."""
        return np.asarray(np.bincount(self.codes, minlength=self.n_items))

    def where(self, keep: np.ndarray) -> Positives:
        """The entries where ``keep`` (bool [total]); users stay, some with nothing."""
        offsets = np.concatenate([[0], np.cumsum(keep)])[self.offsets].astype(np.int64)
        return replace(self, offsets=offsets, codes=self.codes[keep], event_us=self.event_us[keep])

    def users(self, chosen: np.ndarray) -> Positives:
        """The given users, in that order."""
        counts = self.counts[chosen]
        starts = np.cumsum(counts) - counts
        entries = np.repeat(self.offsets[:-1][chosen] - starts, counts) + np.arange(counts.sum())
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return replace(self, offsets=offsets, codes=self.codes[entries], event_us=self.event_us[entries])


@dataclass(frozen=True)
class TrainingData:
    """Everything that training reads.

    Attributes:
        item_ids, user_ids: Arrow arrays, ascending; items are those with a positive.
        has_time: whether event_ts is known.
        item_tokens, user_tokens: content tokens per item, per user ("category=Drama", "segment=18-24", "gender=F").
    """

    item_ids: pa.Array
    user_ids: pa.Array
    positives: Positives
    has_time: bool
    item_tokens: list[list[str]]
    user_tokens: list[list[str]]


def prepare_training_data(interactions: pa.Table, items: pa.Table, users: pa.Table | None, config: Config) -> TrainingData:
    """From the tables.

    Raises:
        InputMissing: no positive interaction.
    """
    positive = interactions.filter(pc.greater(interactions["weight"], config.data.min_weight))
    if positive.num_rows == 0:
        raise InputMissing(
            f"none of {interactions.num_rows} interactions has weight > {config.data.min_weight} (data.min_weight): nothing to learn"
        )
    item_ids, user_ids = sorted_ids(positive["item_id"]), sorted_ids(positive["user_id"])
    codes, rows = flat_positions(positive["item_id"], item_ids), flat_positions(positive["user_id"], user_ids)
    stamps = pc.fill_null(pc.cast(positive["event_ts"], pa.int64()), NO_TIME).to_numpy()
    has_time = bool((stamps != NO_TIME).any())
    positives = _group(rows, codes, stamps, len(user_ids), len(item_ids), has_time, config.training.seed)
    item_tokens = _tokens(items, "item_id", item_ids, "categories")
    user_tokens = _tokens(users, "user_id", user_ids, "segment") if users is not None else [[] for _ in range(len(user_ids))]
    return TrainingData(item_ids, user_ids, positives, has_time, item_tokens, user_tokens)


def split_training_data(positives: Positives, fraction: float) -> tuple[Positives, Positives]:
    """(train, held out): the newest ``fraction`` of each user's positives, at least one where the user has three or more."""
    n_held = np.maximum(np.floor(positives.counts * fraction), positives.counts >= 3)
    held = positives.places < np.repeat(n_held, positives.counts)
    return positives.where(~held), positives.where(held)


def extract_content_tokens(table: pa.Table, column: str) -> list[list[str]]:
    """Tokens of each row: ``column`` (a list or one value) and every attribute as name=value, sorted."""
    columns = [table[column].to_pylist(), table["attributes"].to_pylist(maps_as_pydicts="strict")]
    return [row_tokens(column, value, attributes) for value, attributes in zip(*columns, strict=True)]


def row_tokens(column: str, value: list[str] | str | None, attributes: dict[str, str] | None) -> list[str]:
    """As ``content_tokens``, of one row."""
    values = value if isinstance(value, list) else [value] if value is not None else []
    named = [f"{column}={part}" for part in values] + [f"{key}={part}" for key, part in (attributes or {}).items()]
    return sorted(set(named))


def _tokens(table: pa.Table, key: str, ids: pa.Array, column: str) -> list[list[str]]:
    """Tokens of each id; none for an id that the table lacks."""
    place = pc.index_in(ids, value_set=table[key].combine_chunks()).to_pylist()
    by_row = extract_content_tokens(table, column)
    return [by_row[row] if row is not None else [] for row in place]


def _group(rows: np.ndarray, codes: np.ndarray, stamps: np.ndarray, n_users: int, n_items: int, has_time: bool, seed: int) -> Positives:
    if not has_time:
        # An order that means nothing, but is the same however the rows are stored.
        stamps = np.empty(len(rows), dtype=np.int64)
        stamps[np.lexsort((codes, rows))] = np.random.default_rng(seed).permutation(len(rows))
    newest_first = np.lexsort((codes, ~stamps, rows))  # ~: negation would turn NO_TIME into itself, the newest
    rows, codes, stamps = rows[newest_first], codes[newest_first], stamps[newest_first]
    _, first = np.unique(rows * n_items + codes, return_index=True)  # an item taken twice counts once, at its newest
    kept = np.sort(first)
    offsets = np.searchsorted(rows[kept], np.arange(n_users + 1)).astype(np.int64)
    event_us = stamps[kept].astype(np.int64) if has_time else np.full(len(kept), NO_TIME)
    return Positives(n_items, offsets, codes[kept], event_us)
