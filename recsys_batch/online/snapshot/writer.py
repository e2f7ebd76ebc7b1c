"""Write a snapshot: beside its name, synced to the disk, then renamed; only then may CURRENT name it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recsys_batch.errors import RecsysBatchError, UsageError
from recsys_batch.online.snapshot.contents import SampleUsers, SnapshotContents
from recsys_batch.online.snapshot.item_table import write_items
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
    StoreKind,
)
from recsys_batch.online.snapshot.lmdb_store import write_lmdb
from recsys_batch.online.snapshot.manifest import MANIFEST_FILE, SnapshotManifest, file_checksums, mark_verified, parse_manifest
from recsys_batch.online.snapshot.reader import open_parts
from recsys_batch.online.snapshot.repository import DRAFT_PREFIX, check_name
from recsys_batch.online.snapshot.user_fingerprints import make_fingerprints
from recsys_batch.storage.atomic import make_draft_folder, publish
from recsys_batch.storage.tensor_files import write_tensors


def write_snapshot(folder: Path, contents: SnapshotContents, fill: Callable[[], int] | None = None) -> SnapshotManifest:
    """Write a new snapshot into the folder of snapshots.

    Args:
        fill: where the contents have no records: puts them into a store beside the snapshot, and says how many there are.

    Raises:
        UsageError: there is a snapshot of that name.
        SnapshotRefused: no server would take it.
        RecsysBatchError: the store took other users than the run has.
    """
    target = folder / check_name(contents.facts.snapshot_id)
    if target.exists():
        raise UsageError(f"{target} is there already: a snapshot is never written again; remove it, or export another run")
    with make_draft_folder(folder, DRAFT_PREFIX) as draft:
        manifest = _write(draft, contents, fill)
        open_parts(draft, manifest, check=True).close()
        publish(draft, target)
    mark_verified(target, manifest)
    return manifest


def _write(draft: Path, contents: SnapshotContents, fill: Callable[[], int] | None) -> SnapshotManifest:
    write_items(draft / ITEMS, contents.catalogue, contents.item_metadata)
    write_tensors(draft / POPULAR, contents.popular.arrays())
    (draft / POPULAR_SEGMENTS).write_text(json.dumps(list(contents.popular.lists)), encoding="utf-8")
    if contents.samples:
        write_samples(draft / SAMPLES_FILE, contents.samples)
    if (lists := contents.item_lists) is not None:
        for name, array in zip(LIST_FILES, (lists.centroids, lists.codes, lists.offsets), strict=True):
            np.save(draft / name, array, allow_pickle=False)
    if contents.ranker is not None:
        (draft / RANKER).write_bytes(contents.ranker)
    if contents.ranker_weights is not None:
        write_tensors(draft / RANKER_WEIGHTS, contents.ranker_weights)
    store: StoreKind
    if contents.records is not None:
        store, n_users = "lmdb", write_lmdb(draft / LMDB_FILE, contents.records)
        (draft / f"{LMDB_FILE}-lock").unlink(missing_ok=True)
    else:
        assert fill is not None and contents.user_keys is not None
        store, n_users = "redis", fill()
        fingerprints = make_fingerprints(contents.user_keys)
        if len(fingerprints) != n_users:
            raise RecsysBatchError(f"the store took {n_users} records, the run has lists of {len(fingerprints)} users: export it again")
        fingerprints.write(draft / FINGERPRINTS_FILE)
    manifest = SnapshotManifest(
        facts=contents.facts,
        features=contents.features,
        embedding_dim=int(contents.catalogue.embeddings.shape[1]),
        n_items=len(contents.catalogue),
        n_users=n_users,
        store=store,
        files=file_checksums(draft),
    )
    values = manifest.to_dict()
    (draft / MANIFEST_FILE).write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
    return parse_manifest(values, draft)


def write_samples(path: Path, samples: SampleUsers) -> None:
    """Write sampled users as JSON: two lists, so that ids stay numbers or text."""
    both = {"user_ids": list(samples), "items": [list(codes) for codes in samples.values()]}
    path.write_text(json.dumps(both, ensure_ascii=False), encoding="utf-8")
