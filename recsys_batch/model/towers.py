"""Encode items and users to embeddings with the two towers of a bundle. Called by executors and model commands. No torch.

User embedding = [sum_j w_j H_j / sqrt(sum_j w_j^2) + bias + tokens, 1], item embedding = [E_i, b_i]; so their inner product is
the pooled-history score plus the item's own bias. w_j = (1 + position_j)^-recency, position 0 is the newest event. Nothing
depends on the clock: a user without new events has the same embedding tomorrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_batch.errors import BundleError
from recsys_batch.model.content_tokens import ContentTokens, extract_content_tokens, extract_row_tokens
from recsys_batch.registry.bundle import Bundle
from recsys_batch.tables.list_columns import flat_positions, mask_ragged

TENSOR_NAMES = ("item_history", "item_embedding", "item_content", "user_bias", "user_tokens", "log_popularity")


@dataclass(frozen=True)
class ItemVectors:
    """Output of the item tower, rows in input order: embeddings float32 [n, d], history float32 [n, h], log_popularity float32 [n]."""

    embeddings: np.ndarray
    history: np.ndarray
    log_popularity: np.ndarray


class Towers:
    """Encoder of items and users; weights item_history [n, h], item_embedding [n, h+1], item_content [t, 2h+1], user_bias, user_tokens."""

    def __init__(self, tensors: dict[str, np.ndarray], vocab: dict[str, Any], recency: float, history_length: int) -> None:
        self._tensors = tensors
        self._item_ids = vocab["item_id"]
        self._item_token = {name: row for row, name in enumerate(vocab["item_token"])}
        self._user_token = {name: row for row, name in enumerate(vocab["user_token"])}
        self._recency = recency
        self.history_length = history_length

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Towers:
        """Load the towers of a bundle; raises BundleError where it has none."""
        missing = [name for name in TENSOR_NAMES if name not in bundle.tensors]
        if missing or not bundle.vocab:
            raise BundleError(f"{bundle.path} has no towers: it lacks {', '.join(missing) or 'vocab.json'}")
        model = bundle.manifest["model"]
        return cls(bundle.tensors, bundle.vocab, float(model["recency"]), int(model["history_length"]))

    def encode_items(self, items: pa.Table) -> ItemVectors:
        """Encode items (columns item_id, categories, attributes). Items without training events are encoded from content, popularity 0.

        Raises BundleError where item_id has another type than in training.
        """
        ids = items["item_id"].combine_chunks()
        try:
            known_ids = pa.array(self._item_ids, type=ids.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise BundleError(f"the model was trained on other item ids than {ids.type}: train it on this warehouse") from None
        rows = flat_positions(ids, known_ids)
        known = rows >= 0
        h = self._tensors["item_history"].shape[1]
        vectors = np.zeros((len(ids), 2 * h + 1), dtype=np.float32)
        vectors[known, :h] = self._tensors["item_history"][rows[known]]
        vectors[known, h:] = self._tensors["item_embedding"][rows[known]]
        new = np.flatnonzero(~known)
        if len(new):
            vectors[new] = self._encode_content(
                extract_content_tokens(items.take(pa.array(new)), "categories").append_token(ANY_ITEM_TOKEN)
            )
        log_popularity = np.where(known, self._tensors["log_popularity"][np.where(known, rows, 0)], 0.0).astype(np.float32)
        return ItemVectors(np.ascontiguousarray(vectors[:, h:]), np.ascontiguousarray(vectors[:, :h]), log_popularity)

    def encode_users(
        self,
        codes: np.ndarray,
        offsets: np.ndarray,
        event_ts: np.ndarray | None,
        weights: np.ndarray,
        segments: list[str | None],
        attributes: list[dict[str, str] | None],
        history: np.ndarray,
    ) -> np.ndarray:
        """Encode B users.

        Args:
            codes: int64 [total], rows of ``history``; each user's events newest first.
            offsets: int64 [B + 1].
            event_ts: int64 [total] microseconds; None where the order is unknown: all events weigh the same then.
            weights: float32 [total], all above data.min_weight; their values are not used.
            segments, attributes: of each user, None where unknown.
            history: float32 [n_items, h], from ``encode_items``.

        Returns:
            float32 [B, d]; a user's row does not depend on the batch.
        """
        pooled = pool_history(history, codes, offsets, self._recency if event_ts is not None else 0.0)
        pooled += self._tensors["user_bias"]
        for row, (segment, values) in enumerate(zip(segments, attributes, strict=True)):
            tokens = [self._user_token[name] for name in extract_row_tokens("segment", segment, values) if name in self._user_token]
            if tokens:
                pooled[row] += self._tensors["user_tokens"][tokens].sum(axis=0)
        return np.concatenate([pooled, np.ones((len(pooled), 1), dtype=np.float32)], axis=1)

    def _encode_content(self, tokens: ContentTokens) -> np.ndarray:
        """Sum the vectors of each row's tokens that training saw, in their order, float32 [n, 2h + 1]."""
        known = pa.array(list(self._item_token), pa.string())
        codes = flat_positions(tokens.names, known)[tokens.codes]
        offsets, codes = mask_ragged(tokens.offsets, codes >= 0), codes[codes >= 0]
        return sum_weighted_rows(self._tensors["item_content"], codes, offsets, np.ones(len(codes), np.float32))


ANY_ITEM_TOKEN = "(any)"
"""Token that every item has: the content of an item without any other content."""


_LISTS_AT_ONCE = 1024
"""So that their sums and the rows that are added, 256 KB each at 64 dimensions, stay in a core's cache."""


def pool_history(history: np.ndarray, codes: np.ndarray, offsets: np.ndarray, recency: float) -> np.ndarray:
    """Pool each user's history to sum_j w_j H_j / sqrt(sum_j w_j^2), float32 [B, h]; zeros for a user without events.

    Args:
        history: float32 [n_items, h]. codes: int64 [total], rows of it, each user's events newest first. offsets: int64 [B + 1].
    """
    return sum_weighted_rows(history, codes, offsets, weigh_history(offsets, recency))


def sum_weighted_rows(table: np.ndarray, codes: np.ndarray, offsets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum the weighted rows of a table that each of B ragged lists names, float32 [B, d]; zeros for an empty list.

    Rows are added one by one in their order, each column by itself: the bits rest on neither the batch nor the processor.

    Args:
        table: float32 [n, d]. codes: int64 [total], rows of it. offsets: int64 [B + 1], of the lists. weights: float32 [total].
    """
    counts, weights = np.diff(offsets), weights[:, None]
    result = np.zeros((len(counts), table.shape[1]), dtype=np.float32)
    by_length = np.argsort(-counts, kind="stable")
    rows = np.empty((min(_LISTS_AT_ONCE, len(counts)), table.shape[1]), dtype=np.float32)
    for first in range(0, len(counts), _LISTS_AT_ONCE):
        lists = by_length[first : first + _LISTS_AT_ONCE]
        starts, sums = offsets[lists], np.zeros((len(lists), table.shape[1]), dtype=np.float32)
        n_longer = np.searchsorted(-counts[lists], -np.arange(counts[lists[0]]), side="left")  # lists with more rows than that
        for position, n in enumerate(n_longer.tolist()):
            entries = starts[:n] + position
            added = table.take(codes.take(entries), axis=0, out=rows[:n], mode="clip")  # clip: straight into ``out``
            added *= weights.take(entries, axis=0)
            sums[:n] += added
        result[lists] = sums
    return result


def weigh_history(offsets: np.ndarray, recency: float) -> np.ndarray:
    """Weigh each user's events, newest first: w_j / sqrt(sum_j w_j^2) with w_j = (1 + j)^-recency, float32 [total]."""
    counts = np.diff(offsets)
    weights = (1.0 + np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)) ** -recency
    users = np.repeat(np.arange(len(counts)), counts)
    norms = np.sqrt(np.bincount(users, weights=weights * weights, minlength=len(counts)))
    return np.asarray(weights / np.maximum(norms, 1e-12)[users], dtype=np.float32)
