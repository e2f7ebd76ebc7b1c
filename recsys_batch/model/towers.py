"""The two towers at work: items and users to embeddings, from a bundle's weights.

User embedding = [sum_j w_j H_j / sqrt(sum_j w_j^2) + bias + tokens, 1], item embedding = [E_i, b_i]; so their inner product is
the pooled-history score plus the item's own bias. w_j = (1 + position_j)^-recency, position 0 is the newest event. Nothing
depends on the clock: a user without new events has the same embedding tomorrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from recsys_batch.errors import BundleError
from recsys_batch.model.training_data import extract_content_tokens, row_tokens
from recsys_batch.registry.bundle import Bundle

TENSORS = ("item_history", "item_embedding", "item_content", "user_bias", "user_tokens", "log_popularity")


@dataclass(frozen=True)
class ItemVectors:
    """Item tower output, rows in the order of the input: embeddings float32 [n, d], history float32 [n, h], log_popularity float32 [n]."""

    embeddings: np.ndarray
    history: np.ndarray
    log_popularity: np.ndarray


class Towers:
    """Inference. Weights: item_history [n, h], item_embedding [n, h + 1], item_content [t, 2h + 1], user_bias [h], user_tokens [s, h]."""

    def __init__(self, tensors: dict[str, np.ndarray], vocab: dict[str, Any], recency: float, history_length: int) -> None:
        self._t = tensors
        self._item_ids = vocab["item_id"]
        self._item_token = {name: row for row, name in enumerate(vocab["item_token"])}
        self._user_token = {name: row for row, name in enumerate(vocab["user_token"])}
        self._recency = recency
        self.history_length = history_length

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Towers:
        """Raises BundleError where the bundle has no towers."""
        missing = [name for name in TENSORS if name not in bundle.tensors]
        if missing or not bundle.vocab:
            raise BundleError(f"{bundle.path} has no towers: it lacks {', '.join(missing) or 'vocab.json'}")
        model = bundle.manifest["model"]
        return cls(bundle.tensors, bundle.vocab, float(model["recency"]), int(model["history_length"]))

    def encode_items(self, items: pa.Table) -> ItemVectors:
        """Columns item_id, categories, attributes. An item that training never saw gets what its content says, and popularity 0.

        Raises:
            BundleError: item_id is of another type than the training's.
        """
        ids = items["item_id"].combine_chunks()
        try:
            known_ids = pa.array(self._item_ids, type=ids.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise BundleError(f"the model was trained on other item ids than {ids.type}: train it on this warehouse") from None
        place = np.asarray(pc.fill_null(pc.index_in(ids, value_set=known_ids), -1).to_numpy(zero_copy_only=False), dtype=np.int64)
        known = place >= 0
        h = self._t["item_history"].shape[1]
        vectors = np.zeros((len(ids), 2 * h + 1), dtype=np.float32)
        vectors[known, :h] = self._t["item_history"][place[known]]
        vectors[known, h:] = self._t["item_embedding"][place[known]]
        new = np.flatnonzero(~known)
        if len(new):
            vectors[new] = self._from_content(extract_content_tokens(items.take(pa.array(new)), "categories"))
        log_popularity = np.where(known, self._t["log_popularity"][np.where(known, place, 0)], 0.0).astype(np.float32)
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
        """Embeddings of B users.

        Args:
            codes: int64 [total], rows of ``history``; each user's events newest first.
            offsets: int64 [B + 1].
            event_ts: int64 [total] microseconds; None where the order is unknown, then every event weighs the same.
            weights: float32 [total], above data.min_weight; all count the same beyond that.
            segments, attributes: of each user, None where unknown.
            history: float32 [n_items, h], from ``encode_items``.

        Returns:
            float32 [B, d]; a user's row does not depend on the others.
        """
        # Copied where it is a read-only memory map, which torch cannot hold; only the rows that these users need.
        used, places = np.unique(codes, return_inverse=True)
        rows = torch.from_numpy(np.array(history[used], dtype=np.float32))
        pooled = pool(rows, places, offsets, self._recency if event_ts is not None else 0.0).numpy()
        pooled += self._t["user_bias"]
        for row, (segment, values) in enumerate(zip(segments, attributes, strict=True)):
            tokens = [self._user_token[name] for name in row_tokens("segment", segment, values) if name in self._user_token]
            if tokens:
                pooled[row] += self._t["user_tokens"][tokens].sum(axis=0)
        return np.concatenate([pooled, np.ones((len(pooled), 1), dtype=np.float32)], axis=1)

    def _from_content(self, tokens: list[list[str]]) -> np.ndarray:
        vectors = np.zeros((len(tokens), self._t["item_content"].shape[1]), dtype=np.float32)
        for row, names in enumerate(tokens):
            places = [self._item_token[name] for name in (*names, ALWAYS) if name in self._item_token]
            vectors[row] = self._t["item_content"][places].sum(axis=0) if places else 0.0
        return vectors


ALWAYS = "(any)"
"""The token that every item has: what is known of an item of which nothing is known."""


def pool(history: torch.Tensor, codes: np.ndarray, offsets: np.ndarray, recency: float) -> torch.Tensor:
    """sum_j w_j H_j / sqrt(sum_j w_j^2) for each user, float32 [B, h]; zeros for a user without events."""
    counts = np.diff(offsets)
    places = np.arange(len(codes)) - np.repeat(offsets[:-1], counts)
    weights = (1.0 + places) ** -recency
    rows = np.repeat(np.arange(len(counts)), counts)
    norms = np.sqrt(np.bincount(rows, weights=weights * weights, minlength=len(counts)))
    scaled = torch.from_numpy((weights / np.maximum(norms, 1e-12)[rows]).astype(np.float32))
    starts = torch.from_numpy(offsets[:-1].copy())
    return torch.nn.functional.embedding_bag(torch.from_numpy(codes), history, starts, mode="sum", per_sample_weights=scaled)
