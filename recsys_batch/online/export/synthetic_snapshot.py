"""A snapshot of made-up data of any size, without a night: to measure a server with, and to try one."""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys_batch import __version__
from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.online.snapshot.contents import PopularLists, SnapshotContents, SnapshotInfo
from recsys_batch.online.snapshot.item_table import ItemMetadata
from recsys_batch.online.snapshot.manifest import SnapshotManifest
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import UserRecord, encode_record
from recsys_batch.online.snapshot.writer import write_snapshot
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.schemas import ALL_SEGMENTS, IdTypes

_TOP_K = 100
_CATEGORIES = 20


def make_snapshot(
    folder: Path,
    *,
    snapshot_id: str = "made-up",
    users: int,
    items: int,
    dim: int = 64,
    candidates: int = 200,
    seed: int = 17,
    ranker: bytes | None = None,
    ranker_weights: Mapping[str, np.ndarray] | None = None,
    model_version: str = "made-up",
    put_records: Callable[[Iterator[tuple[bytes, bytes]]], int] | None = None,
) -> SnapshotManifest:
    """Write a snapshot into the folder of snapshots.

    BIGINT users 0 to users - 1 and items 0 to items - 1, random embeddings, random candidates of every user in the order of their
    products, of which the best ``_TOP_K`` are the published list; item n is called "Item n" and has category "category n % 20".

    Args:
        ranker: an ONNX model for ``dim`` and FeatureSpec.default(). ranker_weights: as in ``SnapshotContents``.
        put_records: puts users' records into a store beside the snapshot, and returns how many; None for the snapshot's own.
    """
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((items, dim), dtype=np.float32) / np.float32(np.sqrt(dim))
    popularity = rng.exponential(2.0, items).astype(np.float32)
    catalogue = Catalogue(pa.array(np.arange(items)), embeddings, np.zeros((items, 0), np.float32), popularity, np.ones(items, bool))
    titles = pa.array([f"Item {n}" for n in range(items)])
    described = ItemMetadata(
        titles,
        [f"category {n}" for n in range(_CATEGORIES)],
        (np.arange(items) % _CATEGORIES).astype(np.int32),
        np.arange(items + 1, dtype=np.int64),
    )
    order = np.argsort(-popularity)[:1000].astype(np.int32)
    facts = SnapshotInfo(
        snapshot_id=snapshot_id,
        run_id=snapshot_id,
        run_date=dt.datetime.now(dt.UTC).date(),
        model_version=model_version,
        generated_at=dt.datetime.now(dt.UTC),
        ids=IdTypes("BIGINT", "BIGINT"),
        metric="ip",
        user_norm=1.0,
        segments=(),
        code_version=__version__,
    )
    popular = PopularLists({ALL_SEGMENTS: (order, popularity[order])})
    records = _records(rng, users, embeddings, candidates)
    samples: dict[int | str, list[int]] = {
        user: ((user * 7 + 13 * np.arange(8)) % items).tolist() for user in range(0, users, max(1, users // 100))
    }
    contents = SnapshotContents(
        facts, catalogue, described, popular, FeatureSpec.default(), ranker, records, samples=samples, ranker_weights=ranker_weights
    )
    if put_records is None:
        return write_snapshot(folder, contents)
    keys = filter(None, (user_key(user, "BIGINT") for user in range(users)))
    return write_snapshot(folder, replace(contents, records=None, user_keys=keys), lambda: put_records(records))


def _records(rng: np.random.Generator, users: int, embeddings: np.ndarray, candidates: int) -> Iterator[tuple[bytes, bytes]]:
    items, dim = embeddings.shape
    k = min(candidates, items)
    for user in range(users):
        vector: np.ndarray = rng.standard_normal((dim,), dtype=np.float32)
        # Evenly spread from a random start: distinct items, which a permutation per user would take seconds for.
        codes = np.sort((int(rng.integers(items)) + np.arange(k) * (items // k)) % items)
        scores = embeddings[codes] @ vector
        best = np.argsort(-scores)
        codes, scores = codes[best], scores[best]
        top = np.arange(min(_TOP_K, len(codes)))
        key = user_key(user, "BIGINT")
        assert key is not None
        yield key, encode_record(UserRecord(vector, 10 + user % 90, None, codes, scores, top, scores[top]))
