"""Each user's newest positive items, from rows in order of user_id; the same for the towers at night and for reasons of a digest."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.tables.user_ranges import group_boundaries

NO_TIME = np.iinfo(np.int64).min
"""Microseconds that stand for an event without a time: older than any."""


@dataclass(frozen=True)
class Histories:
    """Newest positive items of n users, newest first.

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
    """Build each user's history: the newest ``length`` positive items, newest first, those of one time by item_id.

    An item taken several times counts once, at its newest (the heaviest, where it was twice at one time), as in training. Items that
    are not in the catalogue count towards ``length`` and are then left out. ``positives``: user_id (in order), item_id, event_us, weight.
    """
    user_ids, starts = group_boundaries(_column(positives, "user_id"))
    owner = np.repeat(np.arange(len(user_ids)), np.diff(starts))
    items = _column(positives, "item_id")
    codes = catalogue.codes(items)
    n_codes = len(catalogue)
    unknown = codes < 0
    if unknown.any():
        unknown_items = items.filter(pa.array(unknown)).dictionary_encode()
        codes[unknown] = len(catalogue) + np.asarray(unknown_items.indices)
        n_codes += len(unknown_items.dictionary)
    event_us = np.asarray(pc.fill_null(_column(positives, "event_us"), NO_TIME))
    weights = np.asarray(_column(positives, "weight"), dtype=np.float32)
    # ~: negation would turn NO_TIME into itself, the newest.
    newest_first = np.lexsort((-weights, codes, ~event_us, owner))
    codes = codes[newest_first]
    keys = owner * n_codes + codes  # owner is in order already
    once = np.sort(_first_occurrences(keys))
    counts = np.bincount(owner[once], minlength=len(user_ids))
    begins = np.cumsum(counts) - counts
    within_length = once[(np.arange(len(once)) - np.repeat(begins, counts) < length) & (codes[once] < len(catalogue))]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[within_length], minlength=len(user_ids)))])
    order = newest_first[within_length]
    return Histories(user_ids, offsets, codes[within_length], event_us[order], weights[order], counts.astype(np.int32))


def _first_occurrences(keys: np.ndarray) -> np.ndarray:
    """Find the position of each key's first occurrence. By a stable sort: np.unique takes several times as long."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return np.asarray(order[first])


def _column(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()
