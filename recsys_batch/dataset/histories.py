"""What users did, grouped: each one's newest positive items, and all that was seen. Pure functions over rows in order of user_id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.tables.user_ranges import group_boundaries

NO_TIME = np.iinfo(np.int64).min
"""Microseconds of an event without a time: older than any."""


@dataclass(frozen=True)
class Histories:
    """The histories of n users.

    Attributes:
        user_ids: Arrow array [n].
        offsets: int64 [n + 1] into codes (int64, of the catalogue), event_us (int64, NO_TIME where unknown), weights (float32).
        n_events: int32 [n], distinct items, also those beyond the length of the history or not in the catalogue.
    """

    user_ids: pa.Array
    offsets: np.ndarray
    codes: np.ndarray
    event_us: np.ndarray
    weights: np.ndarray
    n_events: np.ndarray


def build_histories(positives: pa.Table, catalogue: Catalogue, length: int) -> Histories:
    """Each user's newest ``length`` items, newest first, those of one time by item_id.

    An item taken several times counts once, at its newest (the heaviest, where it was twice at one time), as in training. Items that
    are not in the catalogue take their places and are then left out.

    Args:
        positives: user_id (in order), item_id, event_us, weight.
    """
    user_ids, starts = group_boundaries(_column(positives, "user_id"))
    owner = np.repeat(np.arange(len(user_ids)), np.diff(starts))
    items = _column(positives, "item_id")
    codes = catalogue.codes(items)
    n_codes = len(catalogue)
    unknown = codes < 0
    if unknown.any():
        others = items.filter(pa.array(unknown)).dictionary_encode()
        codes[unknown] = len(catalogue) + np.asarray(others.indices)
        n_codes += len(others.dictionary)
    event_us = np.asarray(pc.fill_null(_column(positives, "event_us"), NO_TIME))
    weights = np.asarray(_column(positives, "weight"), dtype=np.float32)
    # ~: negation would turn NO_TIME into itself, the newest.
    newest_first = np.lexsort((-weights, codes, ~event_us, owner))
    codes = codes[newest_first]
    keys = owner * n_codes + codes  # owner is in order already
    once = np.sort(_first_of_each(keys))
    counts = np.bincount(owner[once], minlength=len(user_ids))
    begins = np.cumsum(counts) - counts
    kept = once[(np.arange(len(once)) - np.repeat(begins, counts) < length) & (codes[once] < len(catalogue))]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=len(user_ids)))])
    order = newest_first[kept]
    return Histories(user_ids, offsets, codes[kept], event_us[order], weights[order], counts.astype(np.int32))


def _first_of_each(keys: np.ndarray) -> np.ndarray:
    """Places of the first appearance of each key. By a stable sort: np.unique's takes several times as long."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return np.asarray(order[first])


def _column(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()
