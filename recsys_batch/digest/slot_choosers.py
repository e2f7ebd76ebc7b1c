"""Slots of a range's users: chosen now, or as the log of an earlier call has them."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.dataset.seen_policy import SeenPolicy
from recsys_batch.digest.output import OutputFormat
from recsys_batch.digest.sent_log import SentLog
from recsys_batch.digest.slot_selection import NO_ITEMS, ChosenSlots, PopularItems, choose_slots, fill_slots
from recsys_batch.schemas import ALL_SEGMENTS
from recsys_batch.tables.list_columns import flat_positions
from recsys_batch.tables.user_ranges import UserRange

_NO_KEYS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class DigestRequest:
    """Request of a sender for a digest.

    Attributes:
        slots: items per user.
        segment: only users of this segment; None for all.
        shard: (i, n): the i-th of n parts of the users, from 1, whatever order they come in.
        out: the file; form: jsonl or parquet.
        repeat_days: an item that a digest sent to a user in these days before is not sent to them again.
        max_age: of the run, since it began.
        seen: which of a user's events keep an item out, by the night's ``retrieval.seen``.
        digest_id: its name in the log; the same call of the same date has the same.
    """

    run_date: dt.date
    slots: int
    segment: str | None
    shard: tuple[int, int]
    out: Path
    form: OutputFormat
    repeat_days: int
    max_age: dt.timedelta
    seen: SeenPolicy
    digest_id: str


@dataclass(frozen=True)
class DigestRun:
    """The run's items, which all ranges of users share.

    Attributes:
        sendable: bool [n_items], could be recommended by the night and is available now.
        titles: of each item, null where it has none.
    """

    catalogue: Catalogue
    popular: PopularItems
    sendable: np.ndarray
    titles: pa.Array


@dataclass(frozen=True)
class UserLists:
    """The users of a range, their published lists, and their events. ``segments``: names, None without one."""

    bounds: UserRange
    users: pa.Array
    segments: list[str | None]
    lists: ChosenSlots
    events: pa.Table

    def pair_keys(self, rows: pa.Table, catalogue: Catalogue) -> np.ndarray:
        """Encode rows of user_id and item_id as int64 owner * n_items + code; rows of other users, or unknown items, are left out."""
        if rows.num_rows == 0:
            return _NO_KEYS
        owner = flat_positions(rows["user_id"], self.users)
        codes = catalogue.codes(rows["item_id"].combine_chunks())
        is_known = (owner >= 0) & (codes >= 0)
        return np.asarray(owner[is_known] * len(catalogue) + codes[is_known])

    def seen_events(self, policy: SeenPolicy) -> pa.Table:
        """Select the events that count as seen."""
        if policy.excludes_all or not self.events.num_rows:
            return self.events
        owner = flat_positions(self.events["user_id"], self.users)
        return self.events.filter(pa.array(policy.mark_seen(pa.array(self.segments, pa.string()), owner, self.events["event_us"])))


SlotChooser = Callable[[UserLists, DigestRun], ChosenSlots]
"""Chooses the slots of a range's users."""


@dataclass(frozen=True)
class FreshChooser:
    """Chooses the top of each list without what was sent lately, filled up with popular items."""

    log: SentLog
    request: DigestRequest

    def __call__(self, user_lists: UserLists, run: DigestRun) -> ChosenSlots:
        request, sent = self.request, _NO_KEYS
        if request.repeat_days:
            since = request.run_date - dt.timedelta(days=request.repeat_days)
            sent = user_lists.pair_keys(self.log.read_since(since, request.digest_id, user_lists.bounds), run.catalogue)
        chosen = choose_slots(user_lists.lists, len(user_lists.users), request.slots, run.sendable, sent)
        barred = np.concatenate([sent, user_lists.pair_keys(user_lists.seen_events(request.seen), run.catalogue)])
        return fill_slots(chosen, user_lists.segments, request.slots, run.popular, run.sendable, barred)


@dataclass(frozen=True)
class LoggedChooser:
    """Gives the slots that the log has of a digest made before."""

    log: SentLog
    digest_id: str

    def __call__(self, user_lists: UserLists, run: DigestRun) -> ChosenSlots:
        keys = user_lists.pair_keys(self.log.read_digest(self.digest_id, user_lists.bounds), run.catalogue)
        n_items, lists = len(run.catalogue), user_lists.lists
        owner, codes = keys // n_items, keys % n_items
        list_keys = lists.owner * n_items + lists.codes
        order = np.argsort(list_keys)
        position = order[np.searchsorted(list_keys, keys, sorter=order).clip(max=len(list_keys) - 1)] if len(list_keys) else _NO_KEYS
        is_listed = list_keys[position] == keys
        scores, popular = lists.scores[position].copy(), lists.popular[position] | ~is_listed
        for slot in np.flatnonzero(~is_listed).tolist():
            scores[slot] = _find_popular_score(run.popular, user_lists.segments[int(owner[slot])], int(codes[slot]))
        return ChosenSlots(owner, codes, scores, popular)


def _find_popular_score(popular: PopularItems, segment: str | None, code: int) -> float:
    for name in (segment or ALL_SEGMENTS, ALL_SEGMENTS):
        codes, scores = popular.get(name, NO_ITEMS)
        positions = np.flatnonzero(codes == code)
        if len(positions):
            return float(scores[positions[0]])
    return 0.0
