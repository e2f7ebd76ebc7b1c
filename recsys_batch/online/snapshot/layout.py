"""Names of a snapshot's files, and which of them a manifest has to list."""

from collections.abc import Collection
from typing import Literal

from recsys_batch.dataset.catalogue import CATALOGUE_FILES

StoreKind = Literal["lmdb", "redis"]

LMDB_FILE = "users.lmdb"
FINGERPRINTS_FILE = "user_fingerprints.npy"
ITEMS, POPULAR, POPULAR_SEGMENTS = "items", "popular.safetensors", "popular.json"
RANKER, RANKER_WEIGHTS = "ranker.onnx", "ranker.safetensors"
SAMPLES_FILE = "samples.json"
LIST_FILES = ("nearest_centroids.npy", "nearest_codes.npy", "nearest_offsets.npy")
TITLES_FILE, CATEGORIES_FILE = "titles.arrow", "categories.json"
CATEGORY_CODES_FILE, CATEGORY_OFFSETS_FILE, NORMS_FILE = "category_codes.npy", "category_offsets.npy", "norms.npy"

_ITEM_FILES = (*CATALOGUE_FILES, TITLES_FILE, CATEGORIES_FILE, CATEGORY_CODES_FILE, CATEGORY_OFFSETS_FILE, NORMS_FILE)
OPTIONAL_FILES = frozenset({RANKER, RANKER_WEIGHTS, SAMPLES_FILE, FINGERPRINTS_FILE, LMDB_FILE, *LIST_FILES})
"""Files that a snapshot may have: one that is there and not listed is of a manifest that lost something."""


def required_files(store: StoreKind, listed: Collection[str]) -> set[str]:
    """Name the files that a snapshot with users' lists in that store needs, where its manifest lists these."""
    required = {POPULAR, POPULAR_SEGMENTS, *(f"{ITEMS}/{name}" for name in _ITEM_FILES)}
    if store == "lmdb":
        required.add(LMDB_FILE)
    if any(name in listed for name in LIST_FILES):
        required.update(LIST_FILES)
    return required
