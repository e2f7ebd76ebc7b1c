"""Contents of a snapshot before it is written, wherever they come from."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.online.snapshot.item_table import ItemMetadata
from recsys_batch.online.snapshot.vector_search import IvfLists
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.schemas import ALL_SEGMENTS, IdTypes

if TYPE_CHECKING:
    from recsys_batch.config import SeenSetting

SampleUsers = Mapping[int | str, Sequence[int]]
"""A few users for people who look at the snapshot, no ranking reads it: user_id -> codes of items, newest first; in the order of ids."""


@dataclass(frozen=True)
class SnapshotInfo:
    """Facts that a snapshot's manifest states about it.

    Attributes:
        snapshot_id: its name, that of the run.
        generated_at: when the night began, UTC; a snapshot's age counts from here.
        metric: what a retrieval score is, "ip" or "cosine".
        user_norm: typical length of a user's embedding; one that is made from a session is brought to it.
        segments: names; records have places in it.
        seen: ``retrieval.seen`` of the night's config.
    """

    snapshot_id: str
    run_id: str
    run_date: dt.date
    model_version: str
    generated_at: dt.datetime
    ids: IdTypes
    metric: Literal["ip", "cosine"]
    user_norm: float
    segments: tuple[str, ...]
    code_version: str
    seen: SeenSetting = "exclude"


@dataclass(frozen=True)
class PopularLists:
    """Popular items by segment, the ladder's last rung: codes int32 and scores float32, best first; ``ALL_SEGMENTS`` is everybody's."""

    lists: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def for_segment(self, segment: str | None) -> tuple[np.ndarray, np.ndarray]:
        """The segment's list, everybody's where it has none; empty where a run published none at all."""
        codes_and_scores = self.lists.get(segment or ALL_SEGMENTS) or self.lists.get(ALL_SEGMENTS)
        return codes_and_scores if codes_and_scores is not None else (np.zeros(0, np.int32), np.zeros(0, np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        """To be saved."""
        named = enumerate(self.lists.values())
        return {f"{name}_{n}": array for n, pair in named for name, array in zip(("codes", "scores"), pair, strict=True)}

    @classmethod
    def from_arrays(cls, segments: list[str], arrays: Mapping[str, np.ndarray]) -> PopularLists:
        """The inverse of ``arrays``, for the same segments in the same order."""
        return cls({segment: (arrays[f"codes_{n}"], arrays[f"scores_{n}"]) for n, segment in enumerate(segments)})


@dataclass(frozen=True)
class SnapshotContents:
    """A snapshot to be written.

    Attributes:
        ranker: ``ranker.onnx``; None where the model has none, and the retrieval order is the ranking.
        ranker_weights: of the same ranker, by the names of ``numpy_ranker.WEIGHT_SHAPES``, where it is the reference ranker; None where
            it is another one.
        records: (key, record) of every user, best in the order of keys; read once, so that memory stays bounded. None where they
            are in a store beside the snapshot.
        user_keys: keys of all users, in any order, where there are no records; read once.
        samples: users to look at, with the codes of what they did lately; may be empty.
        item_lists: to find items near a vector; None where all are searched.
    """

    facts: SnapshotInfo
    catalogue: Catalogue = field(repr=False)
    item_metadata: ItemMetadata = field(repr=False)
    popular: PopularLists = field(repr=False)
    features: FeatureSpec
    ranker: bytes | None = field(repr=False)
    records: Iterable[tuple[bytes, bytes]] | None = field(repr=False)
    user_keys: Iterable[bytes] | None = field(default=None, repr=False)
    samples: SampleUsers = field(default_factory=dict, repr=False)
    ranker_weights: Mapping[str, np.ndarray] | None = field(default=None, repr=False)
    item_lists: IvfLists | None = field(default=None, repr=False)
