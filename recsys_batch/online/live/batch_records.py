"""Files of the stream's micro-batches as records of an overlay: those that a snapshot has, with where they are from."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.catalogue import Catalogue, mmap_catalogue
from recsys_batch.errors import InputMissing
from recsys_batch.online.export.record_builder import RecordBuilder
from recsys_batch.online.snapshot.layout import ITEMS
from recsys_batch.online.snapshot.live_overlay import encode_live_record
from recsys_batch.online.snapshot.manifest import read_manifest
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import LiveOrigin
from recsys_batch.read import run_rows, user_segments
from recsys_batch.schemas import TABLES
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.storage.filesystems import join
from recsys_batch.tables.list_columns import flat_positions, flatten_lists, list_column, mask_ragged
from recsys_batch.tables.live_records import LiveBatch, live_record_slices
from recsys_batch.tables.run_manifest import latest_state_by_run
from recsys_batch.tables.slice_writer import TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles, group_boundaries, ranges_of_files
from recsys_batch.tables.user_rows import UserSortedRows


@dataclass(frozen=True)
class LiveRun:
    """A run whose snapshot is served, to make records of its live lists.

    Attributes:
        generated_at: when its night began, UTC.
        catalogue: the snapshot's own, so that codes of items are the same.
        slices: its part of topk_live, and of what is beside it, by table.
        segments: as ``RecordBuilder``'s, of all users.
    """

    run_id: str
    generated_at: dt.datetime
    catalogue: Catalogue
    slices: dict[str, TableSlice]
    segments: pa.Table | None

    def records(self, batch: LiveBatch, written_at: dt.datetime) -> Iterator[tuple[bytes, bytes]]:
        """Build (key, value of an overlay) of a batch's users. Raises as ``RecordBuilder.records``, and FileNotFoundError."""
        files = {name: UserSortedFiles(where, batch.files.get(name, ())) for name, where in self.slices.items()}
        segments = self._segments_of(files["candidates"])
        for user_range in ranges_of_files(files["candidates"].parts):
            lists = (
                files["candidates"].between(user_range, ["user_id", "items"]),
                files["topk_live"].between(user_range, ["user_id", "rank", "score", "candidate_rank", "events_through"]),
            )
            through = self._events_through(lists[1])
            candidates, topk = restrict_to_catalogue(*lists, self.catalogue)
            sources = UserSortedRows(self.slices["candidates"], candidates), UserSortedRows(self.slices["topk_live"], topk)
            builder = RecordBuilder(*sources, files["user_embeddings"], segments)
            for key, record in builder.records(self.catalogue, user_range):
                yield key, encode_live_record(LiveOrigin(batch.version, written_at, through.get(key)), record)

    def _events_through(self, topk: pa.Table) -> dict[bytes | None, dt.datetime | None]:
        """Map the keys of users to the newest event that each list knows."""
        users, starts = group_boundaries(topk["user_id"].combine_chunks())
        times = topk["events_through"].take(pa.array(starts[:-1])).to_pylist()
        kind = self.slices["topk_live"].ids.user
        return {user_key(user, kind): time for user, time in zip(users.to_pylist(), times, strict=True)}

    def _segments_of(self, candidates: UserSortedFiles) -> pa.Table | None:
        """Take the segments of a batch's users: the builder looks users up in all that it is given."""
        if self.segments is None:
            return None
        users = candidates.between(columns=["user_id"])["user_id"]
        return self.segments.filter(pc.is_in(self.segments["user_id"], value_set=users.combine_chunks()))


def restrict_to_catalogue(candidates: pa.Table, topk: pa.Table, catalogue: Catalogue) -> tuple[pa.Table, pa.Table]:
    """Drop the items of lists that a catalogue lacks, as the stream lists items that came after the night; ranks close up.

    Args:
        candidates: user_id, items. topk: user_id, rank, score, candidate_rank; both by user, topk by rank.
    """
    pairs, offsets = flatten_lists(candidates["items"].combine_chunks())
    is_known = catalogue.codes(pairs.field("item_id")) >= 0
    if is_known.all():
        return candidates, topk
    known_offsets = mask_ragged(offsets, is_known)
    items = list_column(pairs.filter(pa.array(is_known)), known_offsets).cast(candidates.schema.field("items").type)
    ranks = np.cumsum(is_known) - np.repeat(known_offsets[:-1], np.diff(offsets))
    places = offsets[flat_positions(topk["user_id"], candidates["user_id"].combine_chunks())] + np.asarray(topk["candidate_rank"]) - 1
    topk, places = topk.filter(pa.array(is_known[places])), places[is_known[places]]
    starts = group_boundaries(topk["user_id"].combine_chunks())[1]
    rank = np.arange(len(topk)) - np.repeat(starts[:-1], np.diff(starts)) + 1
    for name, values in (("rank", rank), ("candidate_rank", ranks[places])):
        topk = topk.set_column(topk.schema.get_field_index(name), topk.schema.field(name), pa.array(values.astype(np.int32)))
    return candidates.set_column(1, candidates.schema.field("items"), items), topk


def open_live_run(warehouse: str, snapshot: Path) -> LiveRun:
    """Open the run of a snapshot.

    Raises:
        InputMissing: the warehouse has no such run: it is another one than the snapshot's.
    """
    facts = read_manifest(snapshot).facts
    run = latest_state_by_run(run_rows(warehouse)).get(facts.run_id)
    if run is None:
        raise InputMissing(
            f"{warehouse} has no run {facts.run_id}, which snapshot {snapshot} is of: set paths.warehouse to where it was made"
        )
    live = TableSlice(join(warehouse, "topk_live"), TABLES["topk_live"], facts.ids, {"run_id": facts.run_id}, 2**26)
    slices = {where.spec.name: where for where in (live, *live_record_slices(artifact_root(warehouse), facts.run_id, live))}
    segments, names = user_segments(warehouse, run.input_versions.get("users"))
    if segments is not None:  # numbered as the snapshot does
        places = pc.index_in(pa.array(names), value_set=pa.array(facts.segments, pa.string()))
        segments = segments.set_column(1, "place", places.take(segments["place"]))
    return LiveRun(facts.run_id, facts.generated_at, mmap_catalogue(str(snapshot / ITEMS)), slices, segments)
