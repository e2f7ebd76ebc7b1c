"""Reads a published run's users range by range of user_id, in memory that does not grow with their number."""

import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.catalogue import Catalogue, mmap_catalogue
from recsys_batch.dataset.histories import build_histories
from recsys_batch.dataset.popularity import group_by_segment
from recsys_batch.digest.range_events import EventsByRange
from recsys_batch.digest.slot_blocks import REASON_LENGTH, SlotBlock, find_reasons
from recsys_batch.digest.slot_choosers import DigestRequest, DigestRun, SlotChooser, UserLists
from recsys_batch.digest.slot_selection import ChosenSlots
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.read import batches_of, read_table, run_files, run_slice, user_segments
from recsys_batch.storage.artifacts import artifact_root, catalogue_folder
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.user_ranges import UserRange, UserSortedFiles, group_boundaries, ranges_of_files

_MIX = np.uint64(0x9E3779B97F4A7C15)

SlotProgress = Callable[[int, int], None]
"""Called with (ranges done, of how many)."""


@dataclass(frozen=True)
class DigestUsers:
    """The users of a digest's run, and what is needed to choose and explain their slots.

    Attributes:
        segments: user_id, place (position in ``names``); None without a users table.
    """

    run: DigestRun
    request: DigestRequest
    topk: UserSortedFiles
    bounds: list[UserRange]
    events: EventsByRange
    segments: pa.Table | None
    names: tuple[str, ...]
    min_weight: float

    def slot_blocks(self, chooser: SlotChooser, progress: SlotProgress) -> Iterator[SlotBlock]:
        """Choose the slots of every range that has users of the request, some thousand users a block."""
        for number, bounds in enumerate(self.bounds):
            user_lists = self._read_user_lists(number, bounds)
            if len(user_lists.users):
                chosen = chooser(user_lists, self.run)
                because = find_reasons(chosen, len(user_lists.users), self._read_liked_items(user_lists), self.run.catalogue.embeddings)
                yield from SlotBlock(user_lists.users, user_lists.segments, chosen, because, self.run, self.request.slots).split()
            progress(number + 1, len(self.bounds))

    def _read_user_lists(self, number: int, bounds: UserRange) -> UserLists:
        rows = self.topk.between(bounds, ["user_id", "item_id", "score", "source"])
        users, starts = group_boundaries(rows["user_id"].combine_chunks())
        segments = self._segment_names(users)
        wanted = is_in_shard(users, self.request.shard)
        if self.request.segment is not None:
            wanted &= np.array([segment == self.request.segment for segment in segments], dtype=bool)
        owner = np.repeat(np.arange(len(users)), np.diff(starts))
        codes = self.run.catalogue.codes(rows["item_id"].combine_chunks()) if rows.num_rows else np.zeros(0, dtype=np.int64)
        keep = wanted[owner] & (codes >= 0)
        popular = np.asarray(pc.equal(rows["source"].cast(pa.string()), "popular").combine_chunks(), dtype=bool)
        scores = np.asarray(rows["score"], dtype=np.float32)
        lists = ChosenSlots((np.cumsum(wanted) - 1)[owner[keep]], codes[keep], scores[keep], popular[keep])
        wanted_users = users.filter(pa.array(wanted))
        events = self.events.read(number)
        events = events.filter(pc.is_in(events["user_id"], value_set=wanted_users)).combine_chunks()
        return UserLists(bounds, wanted_users, [segments[user] for user in np.flatnonzero(wanted)], lists, events)

    def _segment_names(self, users: pa.Array) -> list[str | None]:
        if self.segments is None:
            return [None] * len(users)
        rows = pc.index_in(users, value_set=self.segments["user_id"].combine_chunks())
        numbers = self.segments["place"].combine_chunks().take(rows).to_pylist()
        return [None if number is None else self.names[number] for number in numbers]

    def _read_liked_items(self, user_lists: UserLists) -> np.ndarray:
        """Read each user's newest positive items: int64 [users, REASON_LENGTH] codes, -1 behind the end."""
        positives = user_lists.events.filter(pc.greater(user_lists.events["weight"], self.min_weight)).combine_chunks()
        liked = np.full((len(user_lists.users), REASON_LENGTH), -1, dtype=np.int64)
        if positives.num_rows == 0:
            return liked
        histories = build_histories(positives, self.run.catalogue, REASON_LENGTH)
        row = np.asarray(pc.index_in(histories.user_ids, value_set=user_lists.users), dtype=np.int64)
        owner = np.repeat(row, np.diff(histories.offsets))
        column = np.arange(len(histories.codes)) - np.repeat(histories.offsets[:-1], np.diff(histories.offsets))
        liked[owner, column] = histories.codes
        return liked


@contextmanager
def open_digest_users(warehouse: str, cache: NodeCache, run: Run, request: DigestRequest, min_weight: float) -> Iterator[DigestUsers]:
    """Open a run's users for a digest request; their events lie in temporary files meanwhile.

    Raises:
        InputMissing: the run's rows were removed.
        UsageError: no such segment.
    """
    topk = run_files(warehouse, "topk", run)
    if not topk.parts:
        raise InputMissing(f"run {run.run_id} has no rows in topk any more: `recsys-batch maintain` keeps tables.keep_runs of them")
    catalogue = mmap_catalogue(str(cache.local_copy(catalogue_folder(artifact_root(warehouse), run.run_id))))
    segments, names = user_segments(warehouse, run.input_versions.get("users"))
    if request.segment is not None and request.segment not in names:
        known = ", ".join(sorted(names)) or "none: there is no users table"
        raise UsageError(f"there is no segment {request.segment!r}; there are: {known}")
    titles, available = _read_titles_and_availability(warehouse, catalogue)
    popular = group_by_segment(run_slice(warehouse, "popular", run), catalogue)
    bounds = ranges_of_files(topk.parts)
    with tempfile.TemporaryDirectory(prefix="recsys-batch-digest-") as folder:
        fields = [("user_id", topk.where.ids.user_arrow), ("item_id", topk.where.ids.item_arrow), ("event_us", pa.int64())]
        events = EventsByRange(Path(folder), bounds, pa.schema([*fields, ("weight", pa.float32())]))
        events.add(_read_events(warehouse, run.input_versions["interactions"]))
        shared = DigestRun(catalogue, popular, np.asarray(catalogue.retrievable) & available, titles)
        yield DigestUsers(shared, request, topk, bounds, events, segments, names, min_weight)


def _read_events(warehouse: str, version: int) -> Iterator[pa.RecordBatch]:
    """Read interactions as user_id, item_id, event_us, weight."""
    for batch in batches_of(warehouse, "interactions", ["user_id", "item_id", "event_ts", "weight"], version):
        moments = batch["event_ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        columns = [batch["user_id"], batch["item_id"], moments, batch["weight"].cast(pa.float32())]
        yield pa.RecordBatch.from_arrays(columns, names=["user_id", "item_id", "event_us", "weight"])


def _read_titles_and_availability(warehouse: str, catalogue: Catalogue) -> tuple[pa.Array, np.ndarray]:
    """Read each catalogue item's (title, availability) from the items table of now; an item that left it is not available."""
    items = read_table(warehouse, "items", columns=["item_id", "title", "is_available"]).combine_chunks()
    rows = pc.index_in(catalogue.item_ids, value_set=items["item_id"].combine_chunks())
    available = pc.fill_null(items["is_available"].combine_chunks().take(rows), False)
    return items["title"].combine_chunks().take(rows), np.asarray(available.to_numpy(zero_copy_only=False), dtype=bool)


def is_in_shard(users: pa.Array, shard: tuple[int, int]) -> np.ndarray:
    """Mark the users whose hash falls to the i-th of n shards: bool [users]; the same for a user in every run."""
    number, n_shards = shard
    if n_shards == 1:
        return np.ones(len(users), dtype=bool)
    if pa.types.is_integer(users.type):
        mixed = users.to_numpy().astype(np.uint64) * _MIX
        hashed = (mixed ^ (mixed >> np.uint64(32))) % np.uint64(n_shards)
    else:
        hashed = np.array([zlib.crc32(user.encode()) % n_shards for user in users.to_pylist()], dtype=np.uint64)
    return np.asarray(hashed == number - 1)
