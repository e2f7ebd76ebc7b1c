"""Items that came, went or changed since the run's index was made: the catalogue as it is now, and what is searched beside the index."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.spark import item_catalogue
from recsys_batch.spark.executors.refresh import CatalogueChange
from recsys_batch.spark.run_artifacts import RunArtifacts
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import put_folder
from recsys_batch.tables.list_columns import flat_positions

logger = logging.getLogger("recsys_batch.stream")

_MAX_BESIDE = 20_000
"""Items that are searched one by one for every user; more are the next night's."""


@dataclass(frozen=True)
class CurrentItems:
    """The items table at a version.

    Attributes:
        available: item_ids that may be recommended. catalogue: of all items, with codes of its own.
        change: None where the run's catalogue still says everything.
    """

    available: pa.Array
    catalogue: Catalogue
    change: CatalogueChange | None


def read_current_items(artifacts: RunArtifacts, tables: WarehouseTables, version: int) -> CurrentItems:
    """Read the items table at a version, and compare it with the run's catalogue."""
    config, run, before = artifacts.config, artifacts.run, artifacts.open_catalogue()
    items = item_catalogue.read_item_table(tables.read("items", version), config, run.run_date)
    available = items["item_id"].filter(items["is_available"]).combine_chunks()
    if version == run.input_versions["items"]:
        return CurrentItems(available, before, None)
    now = item_catalogue.build_catalogue(artifacts.bundle, artifacts.root, items, config)
    codes_before = flat_positions(now.item_ids, before.item_ids)
    if artifacts.bundle.kind == "embeddings":  # popularity is the night's
        now = replace(now, log_popularity=np.where(codes_before < 0, 0.0, before.log_popularity[codes_before]).astype(np.float32))
    is_same = codes_before >= 0
    is_same[is_same] = (now.embeddings[is_same] == before.embeddings[codes_before[is_same]]).all(axis=1)
    in_index = is_same & before.retrievable[codes_before]
    codes = np.flatnonzero(now.retrievable & ~in_index)
    n_withdrawn = int(np.count_nonzero(before.retrievable)) - int(np.count_nonzero(now.retrievable & in_index))
    if len(codes) + n_withdrawn > _MAX_BESIDE:
        logger.warning("%d items came or changed and %d went since the night: they wait for the next one", len(codes), n_withdrawn)
        return CurrentItems(available, before, None)
    folder = put_folder(artifacts.root, f"live/{run.run_id}/catalogues", lambda target: write_catalogue(target, now), config.paths.state)
    change = CatalogueChange(folder, codes, n_withdrawn, artifacts.count_candidates(now), config.retrieval.metric == "cosine")
    logger.info("items: %d came or changed, %d went since the night", len(codes), n_withdrawn)
    return CurrentItems(available, now, change)
