"""The users of a published run and their slots, range by range of user_id, in memory that does not grow with their number."""

from __future__ import annotations

import datetime as dt
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.catalogue import Catalogue, mmap_catalogue
from recsys_batch.dataset.histories import build_histories
from recsys_batch.dataset.popularity import group_by_segment
from recsys_batch.digest.output import OutputBlock, OutputFormat
from recsys_batch.digest.range_events import EventsByRange
from recsys_batch.digest.reasons import REASON_LENGTH, find_reasons
from recsys_batch.digest.sent_log import SentLog
from recsys_batch.digest.slot_selection import ChosenSlots, PopularItems, choose_slots, fill_slots
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.read import list_run_files, read_batches, read_run_slice, read_table, read_user_segments
from recsys_batch.schemas import ALL_SEGMENTS
from recsys_batch.storage.artifacts import artifact_root, catalogue_folder
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.user_ranges import UserRange, UserSortedFiles, group_boundaries, ranges_of_files

_USERS = 8_192
_MIX = np.uint64(0x9E3779B97F4A7C15)

SlotProgress = Callable[[int, int], None]
"""Called with (ranges done, of how many)."""


@dataclass(frozen=True)
class DigestRequest:
    """What is asked for.

    Attributes:
        slots: items per user.
        segment: only its users; None for all.
        shard: (i, n): the i-th of n parts of the users, from 1, whatever order they come in.
        out: the file; form: jsonl or parquet.
        repeat_days: nothing that a digest of these days before sent comes again.
        max_age: of the run, since it began.
        digest_id: the same for the same call of the same date.
    """

    run_date: dt.date
    slots: int
    segment: str | None
    shard: tuple[int, int]
    out: Path
    form: OutputFormat
    repeat_days: int
    max_age: dt.timedelta
    digest_id: str


@dataclass(frozen=True)
class UserLists:
    """The users of a range, their published lists, and what they did. ``segments``: names, None without one."""

    bounds: UserRange
    users: pa.Array
    segments: list[str | None]
    lists: ChosenSlots
    events: pa.Table

    def keys(self, rows: pa.Table, catalogue: Catalogue) -> np.ndarray:
        """int64, owner * n_items + code of rows with user_id and item_id; those of others, or of no item, are left out."""
        if rows.num_rows == 0:
            return np.zeros(0, dtype=np.int64)
        owner = np.asarray(pc.fill_null(pc.index_in(rows["user_id"].combine_chunks(), value_set=self.users), -1), dtype=np.int64)
        codes = catalogue.codes(rows["item_id"].combine_chunks())
        known = (owner >= 0) & (codes >= 0)
        return np.asarray(owner[known] * len(catalogue) + codes[known])


class SlotChooser(Protocol):
    """Which items the users of a range get."""

    def __call__(self, listed: UserLists, run: DigestRun) -> ChosenSlots: ...


@dataclass(frozen=True)
class DigestRun:
    """What all ranges share.

    Attributes:
        sendable: bool [n_items], could be recommended by the night and is available now.
        titles: of each item, null where it has none.
    """

    catalogue: Catalogue
    popular: PopularItems
    sendable: np.ndarray
    titles: pa.Array


@dataclass(frozen=True)
class FreshChooser:
    """Chosen now: the top of the list, without what was sent lately, filled up by popular items."""

    log: SentLog
    order: DigestRequest

    def __call__(self, listed: UserLists, run: DigestRun) -> ChosenSlots:
        order = self.order
        since = order.run_date - dt.timedelta(days=order.repeat_days)
        sent = listed.keys(self.log.lately(since, order.digest_id, listed.bounds), run.catalogue) if order.repeat_days else _NO_KEYS
        chosen = choose_slots(listed.lists, len(listed.users), order.slots, run.sendable, sent)
        barred = np.concatenate([sent, listed.keys(listed.events, run.catalogue)])
        return fill_slots(chosen, listed.segments, order.slots, run.popular, run.sendable, barred)


@dataclass(frozen=True)
class LoggedChooser:
    """What the log says that the digest has."""

    log: SentLog
    digest_id: str

    def __call__(self, listed: UserLists, run: DigestRun) -> ChosenSlots:
        keys = listed.keys(self.log.of_digest(self.digest_id, listed.bounds), run.catalogue)
        n_items, lists = len(run.catalogue), listed.lists
        owner, codes = keys // n_items, keys % n_items
        known = lists.owner * n_items + lists.codes
        order = np.argsort(known)
        at = order[np.minimum(np.searchsorted(known, keys, sorter=order), max(len(known) - 1, 0))] if len(known) else np.zeros(0, np.int64)
        ours = known[at] == keys
        scores, popular = lists.scores[at].copy(), lists.popular[at] | ~ours
        for place in np.flatnonzero(~ours).tolist():
            scores[place] = _popular_score(run.popular, listed.segments[int(owner[place])], int(codes[place]))
        return ChosenSlots(owner, codes, scores, popular)


def _popular_score(popular: PopularItems, segment: str | None, code: int) -> float:
    for name in (segment or ALL_SEGMENTS, ALL_SEGMENTS):
        codes, scores = popular.get(name, (_NO_KEYS, np.zeros(0, np.float32)))
        found = np.flatnonzero(codes == code)
        if len(found):
            return float(scores[found[0]])
    return 0.0


@dataclass(frozen=True)
class SlotBlock:
    """Slots of a range's users, with the words that go with them.

    Attributes:
        because: int64 [slots], code of the item of the history that explains the slot, -1 for none.
        wanted: slots asked for.
    """

    users: pa.Array
    segments: list[str | None]
    chosen: ChosenSlots
    because: np.ndarray
    run: DigestRun
    wanted: int

    def pieces(self) -> Iterator[SlotBlock]:
        """The same, some users at a time: words take many times the memory of numbers."""
        for first in range(0, len(self.users), _USERS):
            last = min(first + _USERS, len(self.users))
            part = slice(*np.searchsorted(self.chosen.owner, [first, last]))
            chosen = self.chosen
            some = ChosenSlots(chosen.owner[part] - first, chosen.codes[part], chosen.scores[part], chosen.popular[part])
            yield SlotBlock(self.users[first:last], self.segments[first:last], some, self.because[part], self.run, self.wanted)

    def user_of_each(self) -> pa.Array:
        """user_id of every slot."""
        return self.users.take(pa.array(self.chosen.owner))

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """Of the slots, as ``writing.schema`` names them."""
        chosen, run = self.chosen, self.run
        first = np.searchsorted(chosen.owner, chosen.owner)
        titles = run.titles.take(pa.array(chosen.codes)).to_pylist()
        because = run.catalogue.item_ids.take(pa.array(self.because, mask=self.because < 0))
        return {
            "slot": (np.arange(len(chosen)) - first + 1).tolist(),
            "item_id": run.catalogue.ids(chosen.codes).to_pylist(),
            "title": titles,
            "score": np.round(chosen.scores.astype(np.float64), 6).tolist(),
            "source": ["popular" if one else "model" for one in chosen.popular.tolist()],
            "reason": self._reasons(),
            "because_item_id": because.to_pylist(),
        }

    def block(self) -> OutputBlock:
        """Of the users who get something."""
        counts = np.bincount(self.chosen.owner, minlength=len(self.users))
        users = self.users.filter(pa.array(counts > 0)).to_pylist()
        return OutputBlock(users, [0, *np.cumsum(counts[counts > 0]).tolist()], self.columns)

    def _reasons(self) -> list[str]:
        titles = self.run.titles.take(pa.array(np.maximum(self.because, 0))).to_pylist() if len(self.because) else []
        ids = self.run.catalogue.ids(np.maximum(self.because, 0)).to_pylist() if len(self.because) else []
        in_segment = {name: set(codes.tolist()) for name, (codes, _) in self.run.popular.items() if name != ALL_SEGMENTS}
        said = []
        for place, (owner, code, popular) in enumerate(
            zip(self.chosen.owner.tolist(), self.chosen.codes.tolist(), self.chosen.popular.tolist(), strict=True)
        ):
            segment = self.segments[owner]
            if popular:
                said.append(f"popular in {segment}" if segment and code in in_segment.get(segment, ()) else "popular now")
            elif self.because[place] >= 0:
                said.append(f"because you liked {titles[place] or ids[place]}")
            else:
                said.append("picked for you")
        return said


@dataclass(frozen=True)
class DigestUsers:
    """Reads a run range by range."""

    run: DigestRun
    order: DigestRequest
    topk: UserSortedFiles
    bounds: list[UserRange]
    events: EventsByRange
    segments: pa.Table | None
    names: tuple[str, ...]
    min_weight: float

    def slots(self, chooser: SlotChooser, progress: SlotProgress) -> Iterator[SlotBlock]:
        """Of every range that has users of the order."""
        for number, bounds in enumerate(self.bounds):
            listed = self._listed(number, bounds)
            if len(listed.users):
                chosen = chooser(listed, self.run)
                because = find_reasons(chosen, len(listed.users), self._liked(listed), self.run.catalogue.embeddings)
                yield from SlotBlock(listed.users, listed.segments, chosen, because, self.run, self.order.slots).pieces()
            progress(number + 1, len(self.bounds))

    def _listed(self, number: int, bounds: UserRange) -> UserLists:
        rows = self.topk.between(bounds, ["user_id", "item_id", "score", "source"])
        users, starts = group_boundaries(
            rows["user_id"].combine_chunks() if rows.num_rows else pa.array([], rows.schema.field("user_id").type)
        )
        segments = self._segments_of(users)
        mine = is_in_shard(users, self.order.shard)
        if self.order.segment is not None:
            mine &= np.array([segment == self.order.segment for segment in segments], dtype=bool)
        owner = np.repeat(np.arange(len(users)), np.diff(starts))
        codes = self.run.catalogue.codes(rows["item_id"].combine_chunks()) if rows.num_rows else _NO_KEYS
        keep = mine[owner] & (codes >= 0)
        popular = np.asarray(pc.equal(rows["source"].cast(pa.string()), "popular").combine_chunks(), dtype=bool)
        scores = np.asarray(rows["score"], dtype=np.float32)
        lists = ChosenSlots((np.cumsum(mine) - 1)[owner[keep]], codes[keep], scores[keep], popular[keep])
        kept = users.filter(pa.array(mine))
        events = self.events.of(number)
        events = events.filter(pc.is_in(events["user_id"], value_set=kept)).combine_chunks()
        return UserLists(bounds, kept, [segment for segment, one in zip(segments, mine.tolist(), strict=True) if one], lists, events)

    def _segments_of(self, users: pa.Array) -> list[str | None]:
        if self.segments is None:
            return [None] * len(users)
        place = pc.index_in(users, value_set=self.segments["user_id"].combine_chunks())
        places = self.segments["place"].combine_chunks().take(place).to_pylist()
        return [None if one is None else self.names[one] for one in places]

    def _liked(self, listed: UserLists) -> np.ndarray:
        """int64 [users, LENGTH] codes, newest first, -1 behind the end."""
        positives = listed.events.filter(pc.greater(listed.events["weight"], self.min_weight)).combine_chunks()
        found = np.full((len(listed.users), REASON_LENGTH), -1, dtype=np.int64)
        if positives.num_rows == 0:
            return found
        of = build_histories(positives, self.run.catalogue, REASON_LENGTH)
        row = np.asarray(pc.index_in(of.user_ids, value_set=listed.users), dtype=np.int64)
        owner = np.repeat(row, np.diff(of.offsets))
        column = np.arange(len(of.codes)) - np.repeat(of.offsets[:-1], np.diff(of.offsets))
        found[owner, column] = of.codes
        return found


@contextmanager
def open_digest_users(warehouse: str, cache: NodeCache, run: Run, order: DigestRequest, min_weight: float) -> Iterator[DigestUsers]:
    """Open a run for an order; events lie in temporary files meanwhile.

    Raises:
        InputMissing: the run's rows were removed.
        UsageError: no such segment.
    """
    topk = list_run_files(warehouse, "topk", run)
    if not topk.parts:
        raise InputMissing(f"run {run.run_id} has no rows in topk any more: `recsys-batch maintain` keeps tables.keep_runs of them")
    catalogue = mmap_catalogue(str(cache.local_copy(catalogue_folder(artifact_root(warehouse), run.run_id))))
    segments, names = read_user_segments(warehouse, run.input_versions.get("users"))
    if order.segment is not None and order.segment not in names:
        there = ", ".join(sorted(names)) or "none: there is no users table"
        raise UsageError(f"there is no segment {order.segment!r}; there are: {there}")
    titles, available = _described(warehouse, catalogue)
    popular = group_by_segment(read_run_slice(warehouse, "popular", run), catalogue)
    bounds = ranges_of_files(topk.parts)
    with tempfile.TemporaryDirectory(prefix="recsys-batch-digest-") as folder:
        version = run.input_versions["interactions"]
        kinds = [("user_id", topk.where.ids.user_arrow), ("item_id", topk.where.ids.item_arrow), ("event_us", pa.int64())]
        events = EventsByRange(Path(folder), bounds, pa.schema([*kinds, ("weight", pa.float32())]))
        events.add(_events(warehouse, version))
        shared = DigestRun(catalogue, popular, np.asarray(catalogue.retrievable) & available, titles)
        yield DigestUsers(shared, order, topk, bounds, events, segments, names, min_weight)


def _events(warehouse: str, version: int) -> Iterator[pa.RecordBatch]:
    """user_id, item_id, event_us, weight."""
    for batch in read_batches(warehouse, "interactions", ["user_id", "item_id", "event_ts", "weight"], version):
        moments = batch["event_ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        columns = [batch["user_id"], batch["item_id"], moments, batch["weight"].cast(pa.float32())]
        yield pa.RecordBatch.from_arrays(columns, names=["user_id", "item_id", "event_us", "weight"])


def _described(warehouse: str, catalogue: Catalogue) -> tuple[pa.Array, np.ndarray]:
    """(titles, whether it is available) of each item of the catalogue as the items table has it now; what left it is not available."""
    rows = read_table(warehouse, "items", columns=["item_id", "title", "is_available"]).combine_chunks()
    place = pc.index_in(catalogue.item_ids, value_set=rows["item_id"].combine_chunks())
    available = pc.fill_null(rows["is_available"].combine_chunks().take(place), False)
    return rows["title"].combine_chunks().take(place), np.asarray(available.to_numpy(zero_copy_only=False), dtype=bool)


def is_in_shard(users: pa.Array, shard: tuple[int, int]) -> np.ndarray:
    """bool [n]: users whose hash falls to the i-th of n shards; the same for a user in every run."""
    number, of = shard
    if of == 1:
        return np.ones(len(users), dtype=bool)
    if pa.types.is_integer(users.type):
        mixed = users.to_numpy().astype(np.uint64) * _MIX
        hashed = (mixed ^ (mixed >> np.uint64(32))) % np.uint64(of)
    else:
        hashed = np.array([zlib.crc32(user.encode()) % of for user in users.to_pylist()], dtype=np.uint64)
    return np.asarray(hashed == number - 1)


_NO_KEYS = np.zeros(0, dtype=np.int64)
