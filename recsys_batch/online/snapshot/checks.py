"""Checks of an opened snapshot: its parts fit each other, and its codes name items that it has.

Checksums say that files are as they were written; these say that a request can be answered from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.ids import parse_id
from recsys_batch.online.snapshot.manifest import SnapshotRefused
from recsys_batch.online.snapshot.user_key import user_id_from_key, user_key
from recsys_batch.online.snapshot.user_record import UserRecord

if TYPE_CHECKING:
    from recsys_batch.online.snapshot.contents import PopularLists, SampleUsers
    from recsys_batch.online.snapshot.item_table import ItemTable
    from recsys_batch.online.snapshot.manifest import SnapshotManifest
    from recsys_batch.online.snapshot.reader import Snapshot
    from recsys_batch.online.snapshot.vector_search import IvfLists
    from recsys_batch.schemas import IdType


def check_parts(snapshot: Snapshot) -> None:
    """Check everything but users' records. Raises SnapshotRefused: says what does not fit."""
    _check_items(snapshot.items, snapshot.manifest)
    _check_popular(snapshot.popular, snapshot.manifest.n_items)
    _check_lists(snapshot.item_lists, snapshot.manifest)
    _check_samples(snapshot.samples, snapshot.manifest)
    fingerprints, n_users = snapshot.fingerprints, snapshot.manifest.n_users
    _require(fingerprints is None or len(fingerprints) == n_users, f"fingerprints of users are not {n_users}, as the manifest says")


def check_record(snapshot: Snapshot, record: UserRecord) -> None:
    """Check a user's record. Raises SnapshotRefused: it names what the snapshot does not have."""
    n, d, n_segments = snapshot.manifest.n_items, snapshot.manifest.embedding_dim, len(snapshot.facts.segments)
    _require(_are_codes(record.codes, n), f"a user's record has codes outside the {n} items")
    _require(_are_codes(record.top_places, len(record.codes)), "a user's published list has others than the user's candidates")
    numbers = (record.retrieval, record.top_scores) if record.embedding is None else (record.embedding, record.retrieval, record.top_scores)
    _require(all(np.isfinite(values).all() for values in numbers), "a user's record has numbers that are not finite")
    size = d if record.embedding is None else len(record.embedding)
    _require(size == d, f"a user's embedding has {size} dimensions, the manifest says {d}")
    _require(record.segment is None or record.segment < n_segments, f"a user is of segment {record.segment}, there are {n_segments}")


def check_key(key: bytes, kind: IdType) -> None:
    """Check that a key of a store is one of a user of that type. Raises SnapshotRefused: it is of the other type."""
    is_key = len(key) == 8 if kind == "BIGINT" else key.startswith(b"s")
    user_id = user_id_from_key(key, kind) if is_key else None
    is_key = is_key and (user_id is None or user_key(user_id, kind) == key)
    _require(is_key, f"the store's keys are not of {kind} users, as the manifest says")


def _check_items(items: ItemTable, manifest: SnapshotManifest) -> None:
    catalogue, metadata, n = items.catalogue, items.metadata, manifest.n_items
    shape, expected = catalogue.embeddings.shape, (n, manifest.embedding_dim)
    _require(shape == expected, f"item embeddings are {shape}, the manifest says {expected}")
    ids = catalogue.item_ids
    is_kind = pa.types.is_int64(ids.type) if manifest.facts.ids.item == "BIGINT" else pa.types.is_string(ids.type)
    _require(is_kind, f"item ids are {ids.type}, the manifest says {manifest.facts.ids.item}")
    ascending = n < 2 or pc.all(pc.less(ids[:-1], ids[1:])).as_py()
    _require(len(ids) == n and ids.null_count == 0 and ascending, f"item ids are not {n} different ones in ascending order")
    columns = {"log_popularity": catalogue.log_popularity, "norms": items.norms, "retrievable": catalogue.retrievable}
    columns |= {f"eligible {segment}": mask for segment, mask in catalogue.eligible.items()}
    for name, column in columns.items():
        _require(column.shape == (n,) and bool(np.isfinite(column).all()), f"{name} is not {n} finite numbers")
    _require(catalogue.item_rules.n_items in (None, n), f"rules are for {catalogue.item_rules.n_items} items, there are {n}")
    _require(len(metadata.titles) == n and pa.types.is_string(metadata.titles.type), f"titles are not {n} texts")
    _require(_are_offsets(metadata.category_offsets, n, len(metadata.category_codes)), "categories' offsets do not fit the items")
    are_names = isinstance(metadata.categories, list) and all(isinstance(name, str) for name in metadata.categories)
    _require(are_names and _are_codes(metadata.category_codes, len(metadata.categories)), "items have categories without a name")


def _check_popular(popular: PopularLists, n_items: int) -> None:
    for segment, (codes, scores) in popular.lists.items():
        fits = codes.shape == scores.shape and _are_codes(codes, n_items) and bool(np.isfinite(scores).all())
        _require(isinstance(segment, str) and fits, f"the popular list of {segment} has codes outside the {n_items} items, or odd scores")


def _check_lists(lists: IvfLists | None, manifest: SnapshotManifest) -> None:
    if lists is None:
        return
    n_lists = len(lists.offsets) - 1
    shape, expected = lists.centroids.shape, (n_lists, manifest.embedding_dim)
    fits = shape == expected and n_lists > 0 and _are_codes(lists.codes, manifest.n_items)
    _require(fits and _are_offsets(lists.offsets, n_lists, len(lists.codes)), "inverted lists do not fit the items")


def _check_samples(samples: SampleUsers, manifest: SnapshotManifest) -> None:
    kind, n = manifest.facts.ids.user, manifest.n_items
    for user_id, codes in samples.items():
        fits = parse_id(user_id, kind) == user_id and all(isinstance(code, int) and 0 <= code < n for code in codes)
        _require(fits, f"the sampled user {user_id!r} is no {kind}, or has codes outside the {n} items")


def _are_codes(codes: np.ndarray, n: int) -> bool:
    """Whether these are whole numbers from 0 to n - 1, in one dimension."""
    is_whole = codes.ndim == 1 and np.issubdtype(codes.dtype, np.integer)
    return bool(is_whole and (not len(codes) or (codes.min() >= 0 and codes.max() < n)))


def _are_offsets(offsets: np.ndarray, n: int, total: int) -> bool:
    """Whether these cut ``total`` values into n parts, one after the other."""
    is_whole = offsets.shape == (n + 1,) and np.issubdtype(offsets.dtype, np.integer)
    return bool(is_whole and offsets[0] == 0 and offsets[-1] == total and (np.diff(offsets) >= 0).all())


def _require(is_right: bool, what: str) -> None:
    if not is_right:
        raise SnapshotRefused(f"{what}: export it again")
