"""A snapshot opened: lists, items, model and feature spec of one run together, verified."""

import datetime as dt
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from recsys_batch.dataset.catalogue import mmap_npy
from recsys_batch.dataset.seen_policy import SeenPolicy, make_seen_policy
from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.snapshot.checks import check_key, check_parts, check_record
from recsys_batch.online.snapshot.contents import PopularLists, SampleUsers, SnapshotInfo
from recsys_batch.online.snapshot.item_table import ItemTable, open_items
from recsys_batch.online.snapshot.layout import (
    FINGERPRINTS_FILE,
    ITEMS,
    LIST_FILES,
    LMDB_FILE,
    POPULAR,
    POPULAR_SEGMENTS,
    RANKER,
    RANKER_WEIGHTS,
    SAMPLES_FILE,
)
from recsys_batch.online.snapshot.lmdb_store import LmdbStore
from recsys_batch.online.snapshot.manifest import SnapshotManifest, SnapshotRefused, is_verified, mark_verified, read_manifest, verify_files
from recsys_batch.online.snapshot.user_fingerprints import UserFingerprints, open_fingerprints
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import UserRecord, decode_record
from recsys_batch.online.snapshot.vector_search import IvfLists
from recsys_batch.ranking.compiled_ranker import CompiledRanker, is_compiled
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.ranking.numpy_ranker import NumpyRanker
from recsys_batch.ranking.onnx_ranker import OnnxRanker
from recsys_batch.schemas import IdTypes

_CHECKED_RECORDS = 24


@dataclass
class Snapshot:
    """Shared by the requests of a worker; ``close`` once none has it any more.

    Attributes:
        store: None where users' lists are in Redis.
        item_lists: to find items near a vector; None where all are searched.
        samples: users to look at and what they did lately; empty where it keeps none.
        fingerprints: of its users, where their lists are in Redis; None for snapshots of before these.
    """

    manifest: SnapshotManifest
    items: ItemTable
    popular: PopularLists
    ranker: OnnxRanker | NumpyRanker | None
    store: LmdbStore | None
    item_lists: IvfLists | None
    folder: Path = field(repr=False)
    samples: SampleUsers = field(default_factory=dict, repr=False)
    fingerprints: UserFingerprints | None = field(default=None, repr=False)

    @property
    def facts(self) -> SnapshotInfo:
        return self.manifest.facts

    @property
    def snapshot_id(self) -> str:
        return self.facts.snapshot_id

    @property
    def model_version(self) -> str:
        return self.facts.model_version

    @property
    def generated_at(self) -> dt.datetime:
        """Time when the night began, UTC."""
        return self.facts.generated_at

    @property
    def ids(self) -> IdTypes:
        return self.facts.ids

    @property
    def features(self) -> FeatureSpec:
        return self.manifest.features

    def key(self, user_id: int | str) -> bytes | None:
        """The user's key; None where no user of the snapshot's type can be meant."""
        return user_key(user_id, self.ids.user)

    def lookup(self, user_id: int | str) -> UserRecord | None:
        """Read a user's record from the snapshot's own store; None where it has none. Raises RecsysBatchError: the record is damaged."""
        assert self.store is not None, "users' lists are in Redis: LoadedSnapshot.lookup reads them"
        key = self.key(user_id)
        record = self.store.get(key) if key is not None else None
        return decode_record(record) if record is not None else None

    def segment(self, number: int | None) -> str | None:
        return None if number is None else self.facts.segments[number]

    @cached_property
    def default_eligible(self) -> np.ndarray:
        """bool [n], items that somebody without a segment may be recommended."""
        catalogue = self.items.catalogue
        return catalogue.eligible_mask(catalogue.rule_of_segment(None))

    @cached_property
    def seen_policy(self) -> SeenPolicy:
        """Read the policy that says who may get again what they just had."""
        return make_seen_policy(self.facts.seen, self.facts.run_date)

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


def open_snapshot(folder: Path) -> Snapshot:
    """Open a snapshot; the first process of a node that does verifies and checks it, and leaves a mark for the others.

    Raises:
        SnapshotRefused: damaged, incomplete, or of parts that do not fit together.
    """
    manifest = read_manifest(folder)
    if is_verified(folder, manifest):
        return open_parts(folder, manifest, check=False)
    verify_files(folder, manifest)
    snapshot = open_parts(folder, manifest, check=True)
    mark_verified(folder, manifest)
    return snapshot


def open_parts(folder: Path, manifest: SnapshotManifest, *, check: bool) -> Snapshot:
    """Open the files of a snapshot that are as they were written, and check that a request can be answered from them.

    Raises:
        SnapshotRefused: it cannot.
    """
    try:
        snapshot = _open_files(folder, manifest, check=check)
        try:
            if check:
                check_parts(snapshot)
                _check_stored_records(snapshot)
        except BaseException:
            snapshot.close()
            raise
    except (RecsysBatchError, OSError, ValueError, LookupError, TypeError, OverflowError, SafetensorError) as error:
        raise SnapshotRefused(f"{folder} cannot be used: {error}") from None
    return snapshot


def _open_files(folder: Path, manifest: SnapshotManifest, *, check: bool) -> Snapshot:
    items = open_items(folder / ITEMS)
    ranker = _open_ranker(folder, manifest, check=check)
    lists = IvfLists(*(mmap_npy(folder / name) for name in LIST_FILES)) if LIST_FILES[0] in manifest.files else None
    segments = json.loads((folder / POPULAR_SEGMENTS).read_text(encoding="utf-8"))
    popular = PopularLists.from_arrays(segments, load_file(folder / POPULAR))
    store = LmdbStore(folder / LMDB_FILE) if manifest.store == "lmdb" else None
    if store is not None and len(store) != manifest.n_users:
        raise SnapshotRefused(f"{folder / LMDB_FILE} has {len(store)} users, the manifest says {manifest.n_users}: export it again")
    # Read now: a folder may be removed while the snapshot is in use.
    samples = read_samples(folder / SAMPLES_FILE) if SAMPLES_FILE in manifest.files else {}
    fingerprints = open_fingerprints(folder / FINGERPRINTS_FILE) if FINGERPRINTS_FILE in manifest.files else None
    return Snapshot(manifest, items, popular, ranker, store, lists, folder, samples, fingerprints)


def _check_stored_records(snapshot: Snapshot) -> None:
    """Check a few users' records in the snapshot's own store. Raises RecsysBatchError: one cannot be read, or does not fit."""
    if snapshot.store is None:
        return
    for key in snapshot.store.sample_keys(_CHECKED_RECORDS):
        check_key(key, snapshot.ids.user)
        record = snapshot.store.get(key)
        assert record is not None
        check_record(snapshot, decode_record(record))


def _open_ranker(folder: Path, manifest: SnapshotManifest, *, check: bool) -> OnnxRanker | NumpyRanker | None:
    """Open the ranker: from its weights where they are there, which takes half as long per request as its ONNX model.

    Raises:
        SnapshotRefused: it does not take what the manifest names, or with ``check``, weights and model are not of one ranker.
    """
    if RANKER not in manifest.files:
        return None
    if RANKER_WEIGHTS not in manifest.files:
        model = OnnxRanker(folder / RANKER)
        _score_example(model, manifest)
        return model
    ranker = (CompiledRanker if is_compiled() else NumpyRanker)(load_file(folder / RANKER_WEIGHTS), manifest.features)
    scores = _score_example(ranker, manifest)
    if check and not np.allclose(scores, _score_example(OnnxRanker(folder / RANKER), manifest), rtol=1e-3, atol=1e-3):
        raise SnapshotRefused(f"{RANKER_WEIGHTS} and {RANKER} give other scores: they are not of one ranker")
    return ranker


def _score_example(ranker: OnnxRanker | NumpyRanker, manifest: SnapshotManifest) -> np.ndarray:
    """Score a few made-up candidates of the manifest's shapes: float32 [1, 2]. Raises SnapshotRefused: that fails."""
    d, n_features = manifest.embedding_dim, len(manifest.features.names)
    rng = np.random.default_rng(1)
    shapes = ((1, d), (1, 2, d), (1, 2, n_features))
    try:
        scores = ranker.score(*(rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(d)) for shape in shapes))
    except Exception as error:
        what = f"{d} dimensions and {n_features} features, which the manifest names"
        raise SnapshotRefused(f"the ranker does not take {what}: {str(error).splitlines()[0]}") from None
    if scores.shape != (1, 2) or not np.isfinite(scores).all():
        raise SnapshotRefused(f"the ranker answers {scores.shape} with {scores}, expected two finite scores")
    return scores


def read_samples(path: Path) -> SampleUsers:
    """The inverse of ``write_samples``."""
    both = json.loads(path.read_text(encoding="utf-8"))
    return dict(zip(both["user_ids"], both["items"], strict=True))
