"""Contents of a snapshot before it is written, wherever they come from."""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.online.snapshot.item_table import ItemMetadata
from recsys_batch.online.snapshot.popular_lists import PopularLists
from recsys_batch.online.snapshot.sample_users import SampleUsers
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.schemas import IdTypes


@dataclass(frozen=True)
class SnapshotInfo:
    """Facts that a snapshot's manifest states about it.

    Attributes:
        snapshot_id: its name, that of the run.
        generated_at: when the night began, UTC; a snapshot's age counts from here.
        metric: what a retrieval score is, "ip" or "cosine".
        user_norm: typical length of a user's embedding; one that is made from a session is brought to it.
        segments: names; records have places in it.
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


@dataclass(frozen=True)
class SnapshotContents:
    """A snapshot to be written.

    Attributes:
        ranker: ``ranker.onnx``; None where the model has none, and the retrieval order is the ranking.
        records: (key, record) of every user, best in the order of keys; read once, so that memory stays bounded. None where they
            are in a store beside the snapshot.
        samples: users to look at, with the codes of what they did lately; may be empty.
    """

    facts: SnapshotInfo
    catalogue: Catalogue = field(repr=False)
    item_metadata: ItemMetadata = field(repr=False)
    popular: PopularLists = field(repr=False)
    features: FeatureSpec
    ranker: bytes | None = field(repr=False)
    records: Iterable[tuple[bytes, bytes]] | None = field(repr=False)
    samples: SampleUsers = field(default_factory=dict, repr=False)
