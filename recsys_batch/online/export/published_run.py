"""A published run as the contents of a snapshot: read by deltalake and Arrow from the warehouse, no JVM."""

import contextlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from safetensors.numpy import load_file

from recsys_batch import __version__
from recsys_batch.ann.index_files import IndexFile, Verifier
from recsys_batch.config import SeenSetting
from recsys_batch.dataset.catalogue import Catalogue, mmap_catalogue
from recsys_batch.dataset.histories import build_histories
from recsys_batch.dataset.popularity import group_by_segment
from recsys_batch.errors import InputMissing
from recsys_batch.online.export.record_builder import RecordBuilder
from recsys_batch.online.snapshot.contents import PopularLists, SnapshotContents, SnapshotInfo
from recsys_batch.online.snapshot.item_table import ItemMetadata
from recsys_batch.online.snapshot.vector_search import EXACT_ITEMS, IvfLists
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.ranking.vector_lengths import row_lengths
from recsys_batch.read import id_types, published_run, read_table, run_files, run_slice, table_dataset, user_segments
from recsys_batch.registry.bundle import Bundle, load_bundle
from recsys_batch.schemas import IdTypes
from recsys_batch.storage.artifacts import artifact_root, bundle_folder, catalogue_folder, get_pointer
from recsys_batch.storage.filesystems import join
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.list_columns import column_matrix
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.user_ranges import LIST_ROWS, UserSortedFiles

N_HISTORY_ITEMS = 20
"""Newest items that are kept of each user that a snapshot keeps to be looked at."""


@dataclass(frozen=True)
class PublishedRun:
    """A published run opened for export."""

    warehouse: str
    run: Run
    ids: IdTypes
    catalogue_dir: str
    cache: NodeCache
    bundle: Bundle
    record_builder: RecordBuilder
    segments: tuple[str, ...]
    metric: Literal["ip", "cosine"]
    seen: SeenSetting

    @property
    def run_id(self) -> str:
        """Id of the run, and of its snapshot."""
        return self.run.run_id

    def contents(self, *, with_records: bool, n_samples: int = 0) -> SnapshotContents:
        """Gather what the run's snapshot is made of; without records they go to a store of their own.

        Args:
            n_samples: users whose newest items it keeps to be looked at; the interactions are read through once for them.
        """
        catalogue = mmap_catalogue(str(self.cache.local_copy(self.catalogue_dir)))
        popular = group_by_segment(run_slice(self.warehouse, "popular", self.run), catalogue)
        ranker, builder = self.bundle.ranker_path, self.record_builder
        records = (pair for user_range in builder.user_ranges for pair in builder.records(catalogue, user_range)) if with_records else None
        return SnapshotContents(
            facts=self._snapshot_info(),
            # What user towers pool is of no use to a request, and as large as the embeddings.
            catalogue=replace(catalogue, history=np.zeros((len(catalogue), 0), np.float32)),
            item_metadata=_read_item_metadata(self.warehouse, self.run.input_versions["items"], catalogue),
            popular=PopularLists({segment: (codes.astype(np.int32), scores) for segment, (codes, scores) in popular.items()}),
            features=FeatureSpec.from_dict(self.bundle.manifest["features"]),
            ranker=None if ranker is None else ranker.read_bytes(),
            records=records,
            user_keys=None if with_records else builder.keys(),
            samples=self._samples(catalogue, n_samples),
            ranker_weights=self.bundle.ranker_weights,
            item_lists=self._item_lists(catalogue),
        )

    def _item_lists(self, catalogue: Catalogue) -> IvfLists | None:
        """Read the inverted lists of the run's index; None where it has none, or where items are few enough to search all of them."""
        root, codes = artifact_root(self.warehouse), catalogue.retrievable_codes()
        lists = get_pointer(root, self.run_id, "index")["index"]["lists"]
        if lists is None or len(codes) <= EXACT_ITEMS:
            return None
        file = IndexFile(**lists)
        folder = self.cache.local_copy_of_files(join(root, "indexes"), {file.name: file.sha256})
        tensors = load_file(Verifier().check(folder, file)[0])
        # The index numbers the retrievable items, the snapshot all of them.
        return IvfLists(tensors["centroids"], codes[tensors["codes"]].astype(np.int32), np.concatenate([[0], tensors["ends"]]))

    def _samples(self, catalogue: Catalogue, n: int) -> dict[int | str, list[int]]:
        """Read some users' newest items; none where interactions are gone: only people miss them, so the run is served all the same."""
        version = self.run.input_versions.get("interactions")
        if n == 0 or version is None:
            return {}
        with contextlib.suppress(InputMissing, FileNotFoundError):
            interactions = table_dataset(self.warehouse, "interactions", version)
            return latest_events(interactions, select_sample_users(self.record_builder, n), catalogue)
        return {}

    def _snapshot_info(self) -> SnapshotInfo:
        return SnapshotInfo(
            snapshot_id=self.run_id,
            run_id=self.run_id,
            run_date=self.run.run_date,
            model_version=self.run.model_version,
            generated_at=self.run.started_at,
            ids=self.ids,
            metric=self.metric,
            user_norm=_user_norm(self.record_builder.embeddings),
            segments=self.segments,
            code_version=__version__,
            seen=self.seen,
        )


def open_published_run(
    warehouse: str,
    cache: NodeCache,
    run_id: str | None = None,
    metric: Literal["ip", "cosine"] = "ip",
    seen: SeenSetting = "exclude",
) -> PublishedRun:
    """Open the newest published run, or the published run of that id, for export.

    Args:
        cache: of this machine, for what lies in a store.
        metric, seen: ``retrieval.metric`` and ``retrieval.seen`` of its config.

    Raises:
        InputMissing: nothing (or not that run) is published, or what it wrote was removed since.
    """
    run = published_run(warehouse, run_id)
    root = artifact_root(warehouse)
    ids = id_types(warehouse)
    candidates, topk, embeddings = (run_files(warehouse, name, run) for name in ("candidates", "topk", "user_embeddings"))
    segments, names = user_segments(warehouse, run.input_versions.get("users"))
    return PublishedRun(
        warehouse=warehouse,
        run=run,
        ids=ids,
        catalogue_dir=catalogue_folder(root, run.run_id),
        cache=cache,
        bundle=load_bundle(cache.local_copy(bundle_folder(root, run.run_id))),
        record_builder=RecordBuilder(candidates, topk, embeddings, segments),
        segments=names,
        metric=metric,
        seen=seen,
    )


def _user_norm(embeddings: UserSortedFiles) -> float:
    """Take the median length of the first few thousand users' embeddings; 1 where nobody has one."""
    for batch in embeddings.batches(columns=["embedding"], n_rows=4096):
        return float(np.median(row_lengths(column_matrix(batch["embedding"]))))
    return 1.0


def _read_item_metadata(warehouse: str, version: int, catalogue: Catalogue) -> ItemMetadata:
    rows = read_table(warehouse, "items", columns=["item_id", "title", "categories"], version=version).combine_chunks()
    row_of_item = pc.index_in(catalogue.item_ids, value_set=rows["item_id"].combine_chunks())
    return ItemMetadata.from_columns(*(rows[name].combine_chunks().take(row_of_item) for name in ("title", "categories")))


def select_sample_users(builder: RecordBuilder, n: int) -> pa.Array:
    """Select about n users of a run from its candidates, some of each range, without reading more than its first rows."""
    candidates, bounds = builder.candidates, builder.user_ranges
    share = -(-n // max(len(bounds), 1))
    sampled = []
    for user_range in bounds:
        first = next(candidates.batches(user_range, ["user_id"], max(LIST_ROWS, share)), None)
        if first is not None:
            rows = np.unique(np.linspace(0, first.num_rows - 1, min(share, first.num_rows)).astype(np.int64))
            sampled.append(first["user_id"].take(pa.array(rows)))
    return pa.chunked_array(sampled, candidates.where.file_schema.field("user_id").type).combine_chunks()[:n]


def latest_events(interactions: ds.Dataset, users: pa.Array, catalogue: Catalogue) -> dict[int | str, list[int]]:
    """Read the samples: each of these users' newest items; nobody is left out.

    Args:
        interactions: user_id, item_id, event_ts, weight in any order; read once, of which only these users' rows are held.
    """
    rows = interactions.to_table(columns=["user_id", "item_id", "event_ts", "weight"], filter=ds.field("user_id").isin(users))
    rows = rows.sort_by("user_id").combine_chunks()
    times = rows["event_ts"].cast(pa.timestamp("us", rows.schema.field("event_ts").type.tz)).cast(pa.int64())
    known = build_histories(rows.append_column("event_us", times), catalogue, N_HISTORY_ITEMS)
    newest_codes: dict[int | str, list[int]] = {user: [] for user in users.to_pylist()}
    for row, user in enumerate(known.user_ids.to_pylist()):
        newest_codes[user] = known.codes[known.offsets[row] : known.offsets[row + 1]].tolist()
    return newest_codes
