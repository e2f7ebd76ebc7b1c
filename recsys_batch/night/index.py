"""Build and tune the night's index on the driver."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys_batch.ann.index import IndexInfo, build_index
from recsys_batch.ann.search import open_retriever
from recsys_batch.ann.tuning import Tuning, tune
from recsys_batch.config import Retrieval

logger = logging.getLogger("recsys_batch.night")


@dataclass(frozen=True)
class BuiltIndex:
    """The index of a run and how it is searched."""

    info: IndexInfo
    tuning: Tuning

    def to_dict(self) -> dict[str, Any]:
        """For the run's pointer "index"."""
        return {"index": self.info.to_dict(), "tuning": self.tuning.to_dict()}


def build(directory: Path, embeddings: np.ndarray, queries: np.ndarray, settings: Retrieval) -> BuiltIndex:
    """Index the rows of ``embeddings`` (float32 [n, d]) and choose nprobe on ``queries`` (float32 [m, d]) of sampled users."""
    n_threads = os.cpu_count() or 1
    info = build_index(embeddings, settings, directory, n_threads)
    retriever = open_retriever(directory, info, n_threads=n_threads)
    exact = open_retriever(directory, info.exact(), n_threads=n_threads)
    tuning = tune(retriever, exact, queries, settings.n_candidates, settings.target_recall, settings)
    lists = f", {tuning.nprobe} of {info.nlist} lists searched" if info.nlist else ""
    logger.info("index: %s (%s), %d items%s, recall %.4f", info.mode, info.reason, info.n_items, lists, tuning.knn_recall_at_k)
    return BuiltIndex(info, tuning)
