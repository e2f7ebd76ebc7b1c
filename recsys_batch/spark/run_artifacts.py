"""Artefacts of a run, and the executor tasks that are made of them: the same for a night at work and for a stream on the published run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from recsys_batch.config import Config
from recsys_batch.dataset.catalogue import Catalogue, open_catalogue
from recsys_batch.dataset.popularity import group_by_segment
from recsys_batch.dataset.seen_policy import SeenPolicy, make_seen_policy
from recsys_batch.dataset.user_events import EVENTS, USERS, VECTORS, UserEvents
from recsys_batch.registry.bundle import Bundle, load_bundle
from recsys_batch.schemas import IdTypes, TableSpec
from recsys_batch.spark.executors.embed import EmbedTask
from recsys_batch.spark.executors.engines import ScoringEngine
from recsys_batch.spark.executors.retrieve import RetrieveTask
from recsys_batch.spark.executors.score import ScoreTask
from recsys_batch.storage.artifacts import base_chain, bundle_folder, catalogue_folder, get_pointer, has_pointer
from recsys_batch.storage.filesystems import join
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import DataFile, TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles, ranges_from_cuts


@dataclass(frozen=True)
class RunArtifacts:
    """Locates what a run computes its rows of beside its tables, and makes executor tasks of it.

    Attributes:
        root: the warehouse's artefact folder.
    """

    config: Config
    run: Run
    ids: IdTypes
    root: str

    @property
    def cache(self) -> NodeCache:
        """The node's copies of artefacts."""
        return NodeCache.from_paths(self.config.paths)

    @property
    def bundle_dir(self) -> str:
        return bundle_folder(self.root, self.run.run_id)

    @property
    def catalogue_dir(self) -> str:
        return catalogue_folder(self.root, self.run.run_id)

    @cached_property
    def bundle(self) -> Bundle:
        """The run's model, verified."""
        return load_bundle(self.cache.local_copy(self.bundle_dir))

    @property
    def scoring_engine(self) -> ScoringEngine:
        """Read what scores this run from its pointer "scoring"; torch for a run that began before there was a choice."""
        if not has_pointer(self.root, self.run.run_id, "scoring"):
            return "torch"
        engine: ScoringEngine = get_pointer(self.root, self.run.run_id, "scoring")["engine"]
        return engine

    @property
    def seen_policy(self) -> SeenPolicy:
        """Which events keep an item out of the run's lists."""
        return make_seen_policy(self.config.retrieval.seen, self.run.run_date)

    def open_catalogue(self) -> Catalogue:
        """Map the run's catalogue on the driver."""
        return open_catalogue(str(self.cache.local_copy(self.catalogue_dir)))

    def gathered_slice(self, spec: TableSpec) -> TableSlice:
        """Locate what the run gathered of users: rows that no table has."""
        return TableSlice(join(self.root, "gathered", self.run.run_id, spec.name), spec, self.ids, {}, self.file_bytes)

    @property
    def file_bytes(self) -> int:
        return self.config.tables.target_file_mb * 2**20

    def load_user_events(self) -> UserEvents:
        """Load what the run gathered of users, by its pointer "gathered"."""
        pointer = get_pointer(self.root, self.run.run_id, "gathered")

        def files(spec: TableSpec) -> UserSortedFiles | None:
            parts = pointer[spec.name]
            return None if parts is None else UserSortedFiles(self.gathered_slice(spec), [DataFile(**part) for part in parts])

        events = files(EVENTS)
        assert events is not None
        return UserEvents(ranges_from_cuts(pointer["cuts"]), events, files(USERS), files(VECTORS))

    def list_layers(self, states: Mapping[str, Run]) -> list["RunArtifacts"]:
        """List the runs whose gathered events together are this run's, newest first: a user's are in the first that has any.

        An incremental night gathers only users whom it computes again, all of their events; the run that it went on from has the others'.

        Args:
            states: newest manifest row by run_id.
        """
        chain = base_chain(self.root, self.run.run_id)
        return [self, *(RunArtifacts(self.config, states[run_id], self.ids, self.root) for run_id in chain[1:])]

    def make_embed_task(self, bundle: Bundle, user_events: UserEvents) -> EmbedTask:
        """Make the task that embeds users.

        Args:
            bundle: the run's, as ``load_bundle`` reads and verifies all of it each time.
        """
        is_imported = bundle.kind == "embeddings"
        return EmbedTask(
            run_id=self.run.run_id,
            user_events=user_events,
            min_weight=self.config.data.min_weight,
            bundle_dir=self.bundle_dir,
            catalogue_dir=self.catalogue_dir,
            history_length=0 if is_imported else int(bundle.manifest["model"]["history_length"]),
            cache=self.cache,
        )

    def make_retrieve_task(self, popular: pa.Table) -> RetrieveTask:
        """Make the task that retrieves candidates.

        Args:
            popular: segment, item_id, score, best first within each segment.
        """
        pointer: dict[str, Any] = get_pointer(self.root, self.run.run_id, "index")
        catalogue = self.open_catalogue()
        return RetrieveTask(
            run_id=self.run.run_id,
            ids=self.ids,
            catalogue_dir=self.catalogue_dir,
            index_dir=join(self.root, "indexes"),
            index=pointer["index"],
            nprobe=pointer["tuning"]["nprobe"],
            overfetch=pointer["tuning"]["overfetch"],
            n_candidates=self.count_candidates(catalogue),
            popular=group_by_segment(popular, catalogue),
            seen=self.seen_policy,
            cache=self.cache,
        )

    def count_candidates(self, catalogue: Catalogue) -> int:
        """Count the items of the longest list."""
        return len(catalogue.retrievable_codes()) if self.config.scoring.candidates == "all" else self.config.retrieval.n_candidates

    def make_score_task(self) -> ScoreTask:
        return ScoreTask(
            run_id=self.run.run_id,
            run_date=self.run.run_date,
            generated_at=self.run.started_at,
            model_version=self.run.model_version,
            ids=self.ids,
            bundle_dir=self.bundle_dir,
            catalogue_dir=self.catalogue_dir,
            n_candidates=self.config.retrieval.n_candidates,
            top_k=self.config.scoring.top_k,
            batch_users=self.config.scoring.batch_users,
            cache=self.cache,
            engine=self.scoring_engine,
        )
