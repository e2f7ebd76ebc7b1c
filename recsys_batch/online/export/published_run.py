"""A published run as the contents of a snapshot: read by deltalake and Arrow from the warehouse, no JVM."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch import __version__
from recsys_batch.dataset.catalogue import Catalogue, mmap_catalogue
from recsys_batch.dataset.popularity import group_by_segment
from recsys_batch.errors import InputMissing
from recsys_batch.online.export.record_builder import RecordBuilder
from recsys_batch.online.export.sample_selection import latest_events, select_sample_users
from recsys_batch.online.snapshot.contents import SnapshotContents, SnapshotInfo
from recsys_batch.online.snapshot.item_table import ItemMetadata
from recsys_batch.online.snapshot.popular_lists import PopularLists
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.read import (
    id_types,
    published_run,
    read_table,
    run_files,
    run_slice,
    table_dataset,
    user_segments,
)
from recsys_batch.registry.bundle import Bundle, load_bundle
from recsys_batch.schemas import IdTypes
from recsys_batch.storage.artifacts import artifact_root, bundle_folder, catalogue_folder
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.list_columns import column_matrix
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.user_ranges import UserSortedFiles


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
        ranker = self.bundle.ranker_path
        return SnapshotContents(
            facts=self._snapshot_info(),
            catalogue=_drop_history(catalogue),
            item_metadata=_read_item_metadata(self.warehouse, self.run.input_versions["items"], catalogue),
            popular=_popular_lists(run_slice(self.warehouse, "popular", self.run), catalogue),
            features=FeatureSpec.from_dict(self.bundle.manifest["features"]),
            ranker=None if ranker is None else ranker.read_bytes(),
            records=self._records(catalogue) if with_records else None,
            samples=self._samples(catalogue, n_samples),
        )

    def _samples(self, catalogue: Catalogue, n: int) -> dict[int | str, list[int]]:
        """Read some users' newest items; none where interactions are gone: only people miss them, so the run is served all the same."""
        version = self.run.input_versions.get("interactions")
        if n == 0 or version is None:
            return {}
        with contextlib.suppress(InputMissing, FileNotFoundError):
            return latest_events(
                table_dataset(self.warehouse, "interactions", version),
                select_sample_users(self.record_builder.candidates, n),
                catalogue,
            )
        return {}

    def _records(self, catalogue: Catalogue) -> Iterator[tuple[bytes, bytes]]:
        for bounds in self.record_builder.user_ranges:
            yield from self.record_builder.records(catalogue, bounds)

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
        )


def open_published_run(warehouse: str, cache: NodeCache, run_id: str | None = None, metric: Literal["ip", "cosine"] = "ip") -> PublishedRun:
    """Open the newest published run, or the published run of that id, for export.

    Args:
        cache: of this machine, for what lies in a store.
        metric: ``retrieval.metric`` of its config.

    Raises:
        InputMissing: nothing (or not that run) is published, or what it wrote was removed since.
    """
    run = published_run(warehouse, run_id)
    root = artifact_root(warehouse)
    ids = id_types(warehouse)
    files = {name: run_files(warehouse, name, run) for name in ("candidates", "topk", "user_embeddings")}
    segments, names = user_segments(warehouse, run.input_versions.get("users"))
    return PublishedRun(
        warehouse=warehouse,
        run=run,
        ids=ids,
        catalogue_dir=catalogue_folder(root, run.run_id),
        cache=cache,
        bundle=load_bundle(cache.local_copy(bundle_folder(root, run.run_id))),
        record_builder=RecordBuilder(files["candidates"], files["topk"], files["user_embeddings"], segments),
        segments=names,
        metric=metric,
    )


def _user_norm(embeddings: UserSortedFiles) -> float:
    """Take the median length of the first few thousand users' embeddings; 1 where nobody has one."""
    for batch in embeddings.batches(columns=["embedding"], n_rows=4096):
        return float(np.median(np.linalg.norm(column_matrix(batch["embedding"]), axis=1)))
    return 1.0


def _drop_history(catalogue: Catalogue) -> Catalogue:
    """Drop what user towers pool: it is of no use to a request, and as large as the embeddings."""
    return Catalogue(
        item_ids=catalogue.item_ids,
        embeddings=catalogue.embeddings,
        history=np.zeros((len(catalogue), 0), np.float32),
        log_popularity=catalogue.log_popularity,
        retrievable=catalogue.retrievable,
        eligible=catalogue.eligible,
        item_rules=catalogue.item_rules,
    )


def _read_item_metadata(warehouse: str, version: int, catalogue: Catalogue) -> ItemMetadata:
    rows = read_table(warehouse, "items", columns=["item_id", "title", "categories"], version=version).combine_chunks()
    row_of_item = pc.index_in(catalogue.item_ids, value_set=rows["item_id"].combine_chunks())
    return ItemMetadata.from_columns(
        rows["title"].combine_chunks().take(row_of_item), rows["categories"].combine_chunks().take(row_of_item)
    )


def _popular_lists(rows: pa.Table, catalogue: Catalogue) -> PopularLists:
    return PopularLists(
        {segment: (codes.astype(np.int32), scores) for segment, (codes, scores) in group_by_segment(rows, catalogue).items()}
    )
