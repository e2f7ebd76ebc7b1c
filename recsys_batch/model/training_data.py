"""Training data as arrays: positives per user newest first, and the content tokens of users and items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.config import Config
from recsys_batch.dataset.histories import NO_TIME
from recsys_batch.errors import InputMissing
from recsys_batch.model.content_tokens import ContentTokens, extract_content_tokens
from recsys_batch.tables.list_columns import flat_positions, mask_ragged, sorted_ids

Progress = Callable[[str, Mapping[str, float]], None]
"""Called with a stage of training and its metrics after each epoch."""

MAX_EVALUATION_SCORES = 1_000_000_000
"""Scores of one evaluation, some 20 s on two cores: 5,000 users over 200,000 items, 1,000 over a million."""

_BLOCK_SCORES = 20_000_000  # scores of a block of users: 80 MB


@dataclass(frozen=True)
class Repeats:
    """Events of items that their user has again later, which a history leaves out: user, item code and microseconds, int64 [r] each."""

    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    event_us: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class Positives:
    """Distinct positive items of each user, newest first (in seeded random order where there is no time).

    offsets int64 [n_users + 1]; codes int64 [total], below n_items; event_us int64 [total], microseconds, NO_TIME where unknown.
    ``repeats`` are of all users, for a split by time; a selection of users or entries has none.
    """

    n_items: int
    offsets: np.ndarray
    codes: np.ndarray
    event_us: np.ndarray
    repeats: Repeats = Repeats()

    @property
    def n_users(self) -> int:
        """Number of users, also those without entries."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """Entries per user, int64 [n_users]."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """User of each entry, int64 [total]."""
        return np.repeat(np.arange(self.n_users), self.counts)

    @property
    def positions(self) -> np.ndarray:
        """Position of each entry within its user, int64 [total]; 0 is newest."""
        return np.asarray(np.arange(len(self.codes)) - np.repeat(self.offsets[:-1], self.counts))

    @property
    def item_counts(self) -> np.ndarray:
        """Users per item, int64 [n_items]."""
        return np.asarray(np.bincount(self.codes, minlength=self.n_items))

    def where(self, keep: np.ndarray) -> Positives:
        """Keep the entries where ``keep`` (bool [total]) is true; users without entries stay."""
        return Positives(self.n_items, mask_ragged(self.offsets, keep), self.codes[keep], self.event_us[keep])

    def select_users(self, chosen: np.ndarray) -> Positives:
        """Select the users ``chosen``, in that order."""
        counts = self.counts[chosen]
        starts = np.cumsum(counts) - counts
        entries = np.repeat(self.offsets[:-1][chosen] - starts, counts) + np.arange(counts.sum())
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Positives(self.n_items, offsets, self.codes[entries], self.event_us[entries])


@dataclass(frozen=True)
class TrainingData:
    """Encoded input of training.

    Attributes:
        item_ids, user_ids: Arrow arrays, ascending; items are those with a positive.
        has_time: whether event_ts is known.
        item_tokens, user_tokens: content tokens per item, per user ("category=Drama", "segment=18-24", "gender=F").
    """

    item_ids: pa.Array
    user_ids: pa.Array
    positives: Positives
    has_time: bool
    item_tokens: ContentTokens
    user_tokens: ContentTokens


def prepare_training_data(interactions: pa.Table, items: pa.Table, users: pa.Table | None, config: Config) -> TrainingData:
    """Encode the tables for training; raises InputMissing where there is no positive interaction."""
    min_weight = config.data.min_weight
    positive = interactions.filter(pc.greater(interactions["weight"], min_weight))
    if positive.num_rows == 0:
        raise InputMissing(f"none of {interactions.num_rows} interactions has weight > {min_weight} (data.min_weight): nothing to learn")
    item_ids, user_ids = sorted_ids(positive["item_id"]), sorted_ids(positive["user_id"])
    codes, rows = flat_positions(positive["item_id"], item_ids), flat_positions(positive["user_id"], user_ids)
    event_us = pc.fill_null(pc.cast(positive["event_ts"], pa.int64()), NO_TIME).to_numpy()
    has_time = bool((event_us != NO_TIME).any())
    positives = _group_by_user(rows, codes, event_us, len(user_ids), len(item_ids), has_time, config.training.seed)
    item_tokens = _tokens_of_ids(items, "item_id", item_ids, "categories")
    user_tokens = _tokens_of_ids(users, "user_id", user_ids, "segment") if users is not None else ContentTokens.empty(len(user_ids))
    return TrainingData(item_ids, user_ids, positives, has_time, item_tokens, user_tokens)


def split_user_blocks(users: np.ndarray, n_items: int, max_users: int = 256) -> list[np.ndarray]:
    """Split users into blocks of at most ``max_users`` whose scores of the whole catalogue fit into 80 MB, one user at least."""
    step = max(1, min(max_users, _BLOCK_SCORES // max(n_items, 1)))
    return [users[start : start + step] for start in range(0, len(users), step)]


def bound_users(max_users: int, n_items: int, max_scores: int = MAX_EVALUATION_SCORES) -> int:
    """Bound how many users are scored over the whole catalogue: ``max_users``, fewer where that is more than ``max_scores`` scores."""
    return min(max_users, max(max_scores // max(n_items, 1), 1))


def sample_evaluable_users(inputs: Positives, held_out: Positives, max_users: int, seed: int) -> np.ndarray:
    """Sample at most ``max_users`` users with a history and held-out positives, int64, ascending; the same ones for equal arguments."""
    evaluable = np.flatnonzero((held_out.counts > 0) & (inputs.counts > 0))
    return np.sort(np.random.default_rng(seed).permutation(evaluable)[:max_users])


def group_by_user(rows: np.ndarray, codes: np.ndarray, event_us: np.ndarray, n_users: int, n_items: int) -> Positives:
    """Group events by user, newest first; an item that a user has several times counts once, at its newest event."""
    newest_first = np.lexsort((codes, ~event_us, rows))  # ~: negation would turn NO_TIME into itself, the newest
    rows, codes, event_us = rows[newest_first], codes[newest_first], event_us[newest_first]
    _, first = np.unique(rows * n_items + codes, return_index=True)
    is_first = np.zeros(len(rows), dtype=bool)
    is_first[first] = True
    offsets = np.searchsorted(rows[is_first], np.arange(n_users + 1)).astype(np.int64)
    repeats = Repeats(rows[~is_first], codes[~is_first], event_us[~is_first])
    return Positives(n_items, offsets, codes[is_first], event_us[is_first], repeats)


def _tokens_of_ids(table: pa.Table, key: str, ids: pa.Array, column: str) -> ContentTokens:
    """Extract the tokens of each id; an id that the table lacks has none."""
    rows = pc.index_in(ids, value_set=table[key].combine_chunks())
    return extract_content_tokens(table.select([column, "attributes"]).take(rows), column)


def _group_by_user(
    rows: np.ndarray, codes: np.ndarray, event_us: np.ndarray, n_users: int, n_items: int, has_time: bool, seed: int
) -> Positives:
    if has_time:
        return group_by_user(rows, codes, event_us, n_users, n_items)
    # Arbitrary, but the same however the rows are stored.
    order = np.empty(len(rows), dtype=np.int64)
    order[np.lexsort((codes, rows))] = np.random.default_rng(seed).permutation(len(rows))
    shuffled = group_by_user(rows, codes, order, n_users, n_items)
    return replace(shuffled, event_us=np.full(len(shuffled.codes), NO_TIME), repeats=Repeats())
