"""Executor code of the embed step: histories in, user embeddings out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa

from recsys_batch.bundle import load_bundle
from recsys_batch.catalogue import open_catalogue
from recsys_batch.errors import RecsysBatchError
from recsys_batch.model.data import NO_TIME
from recsys_batch.model.towers import Towers
from recsys_batch.ragged import mask_ragged, matrix_column, ragged
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.batches import BatchFunction


def user_encoder(bundle_dir: str, catalogue_dir: str, ids: IdTypes, run_id: str) -> BatchFunction:
    """A function for mapInArrow: rows of ``histories`` with segment and attributes -> rows of user_embeddings."""
    schema = TABLES["user_embeddings"].arrow_schema(ids)

    def encode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows == 0:
                continue
            embeddings = _encode(batch, _towers(bundle_dir), catalogue_dir)
            columns = [pa.array([run_id] * batch.num_rows), batch["user_id"], matrix_column(embeddings), batch["n_events"]]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return encode


def _encode(batch: pa.RecordBatch, towers: Towers, catalogue_dir: str) -> np.ndarray:
    catalogue = open_catalogue(catalogue_dir)
    item_ids, offsets = ragged(batch["item_ids"])
    codes = catalogue.codes(item_ids)
    weights = np.asarray(batch["weights"].flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    known = codes >= 0
    # Events without a time come last in their user's order, and stay there whatever else is in the batch.
    times = np.asarray(batch["event_us"].flatten().fill_null(NO_TIME).to_numpy(zero_copy_only=False), dtype=np.int64)[known]
    embeddings = towers.encode_users(
        codes[known],
        mask_ragged(offsets, known),
        times,
        weights[known],
        batch["segment"].to_pylist(),
        batch["attributes"].to_pylist(maps_as_pydicts="strict"),
        catalogue.history,
    )
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        user = batch["user_id"][int(np.flatnonzero(~finite)[0])].as_py()
        raise RecsysBatchError(f"the embedding of user {user!r} is not finite: the model is broken, or its input is")
    return embeddings


@lru_cache(maxsize=1)
def _towers(bundle_dir: str) -> Towers:
    """Built once per Python worker."""
    return Towers.from_bundle(load_bundle(bundle_dir))
