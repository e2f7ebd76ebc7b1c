"""Contents of a snapshot about a user, in words for people: what was done lately, candidates, the night's order."""

import datetime as dt

import numpy as np
from msgspec import UNSET, Struct, UnsetType

from recsys_batch.ids import parse_id
from recsys_batch.online.api.messages import Bounds, Id, Lists
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_key import user_id_from_key
from recsys_batch.online.snapshot.user_record import UserRecord
from recsys_batch.ranking.features import DEVICES


class ItemSummary(Struct):
    """An item; of a candidate also its retrieval score (null where it is no number), and its rank in the published list (null where it is
    not in it).
    """

    item_id: Id
    title: str | None
    categories: list[str]
    score: float | UnsetType | None = UNSET
    batch_rank: int | UnsetType | None = UNSET


class ItemDetail(Struct):
    """Answer of GET /v1/items/{item_id}."""

    item_id: Id
    title: str | None
    categories: list[str]
    snapshot_id: str


class UserDetail(Struct):
    """Answer of GET /v1/users/{user_id}. ``history`` is null where the snapshot keeps none of this user; newest first, up to the night.

    ``lists`` and ``events_through`` are as in an answer of POST /v1/rank.
    """

    user_id: Id
    snapshot_id: str
    n_events: int
    segment: str | None
    modelled: bool
    history: list[ItemSummary] | None
    candidates: list[ItemSummary]
    lists: Lists = "night"
    events_through: dt.datetime | UnsetType | None = UNSET


class UserSample(Struct):
    """Answer of GET /v1/users: some users to look at, and what a request for them can say.

    ``live``: whether lists may change between two nights.
    """

    snapshot_id: str
    model_version: str
    run_date: str
    n_users: int
    n_items: int
    user_ids: list[Id]
    devices: list[str]
    attributes: list[str]
    categories: list[str]
    max_k: int
    live: bool = False


def describe_user(snapshot: Snapshot, user_id: Id, record: UserRecord) -> UserDetail:
    """Describe a user; candidates come in the order of retrieval."""
    candidates = _summarise_items(snapshot, record.codes.astype(np.int64))
    for item, score, rank in zip(candidates, record.retrieval.tolist(), record.batch_ranks().tolist(), strict=True):
        item.score, item.batch_rank = score, rank or None
    detail = UserDetail(
        user_id=user_id,
        snapshot_id=snapshot.snapshot_id,
        n_events=record.n_events,
        segment=snapshot.segment(record.segment),
        modelled=record.embedding is not None,
        history=_history(snapshot, user_id),
        candidates=candidates,
    )
    if record.live is not None:
        detail.lists, detail.events_through = "live", record.live.events_through
    return detail


def describe_sample(snapshot: Snapshot, limit: int, bounds: Bounds, *, live: bool = False) -> UserSample:
    """List at most ``limit`` users to look at: of the snapshot's samples, or where it has none of the first few thousand in its store."""
    manifest, chosen = snapshot.manifest, list(snapshot.samples)
    if not chosen and snapshot.store is not None:
        user_ids = (user_id_from_key(key, snapshot.ids.user) for key in snapshot.store.sample_keys(limit))
        chosen = [user for user in user_ids if user is not None]
    step = max(1, len(chosen) // limit)
    return UserSample(
        snapshot_id=snapshot.snapshot_id,
        model_version=snapshot.model_version,
        run_date=snapshot.facts.run_date.isoformat(),
        n_users=manifest.n_users,
        n_items=manifest.n_items,
        user_ids=chosen[::step][:limit],
        devices=list(DEVICES),
        attributes=snapshot.features.attribute_names,
        categories=sorted(snapshot.items.metadata.categories),
        max_k=bounds.max_k,
        live=live,
    )


def describe_item(snapshot: Snapshot, item_id: Id) -> ItemDetail | None:
    """Describe an item; None for one that the snapshot does not have."""
    codes = snapshot.items.codes([item_id])
    if not codes:
        return None
    (summary,) = _summarise_items(snapshot, np.array(codes))
    return ItemDetail(summary.item_id, summary.title, summary.categories, snapshot.snapshot_id)


def _history(snapshot: Snapshot, user_id: Id) -> list[ItemSummary] | None:
    parsed = parse_id(user_id, snapshot.ids.user)
    codes = None if parsed is None else snapshot.samples.get(parsed)
    return None if codes is None else _summarise_items(snapshot, np.asarray(codes, dtype=np.int64))


def _summarise_items(snapshot: Snapshot, codes: np.ndarray) -> list[ItemSummary]:
    items, code_list = snapshot.items, codes.tolist()
    columns = zip(items.item_ids(codes), items.titles(code_list), code_list, strict=True)
    return [ItemSummary(item_id, title, items.categories(place)) for item_id, title, place in columns]
