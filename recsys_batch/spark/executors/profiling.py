"""Profile of every task's Python time, for ``tools/profile_night.py``."""

import cProfile
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from recsys_batch.spark.executors.functions import BatchFunction

PROFILE_FOLDER = "RECSYS_BATCH_PROFILE"
"""Environment variable of executors: the folder, on a path that every node mounts, that each task leaves its profile in."""


def profile_batches(function: BatchFunction, name: str) -> BatchFunction:
    """Wrap ``function`` so that its tasks write NAME-*.prof where ``PROFILE_FOLDER`` is set on their executor."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        folder = os.environ.get(PROFILE_FOLDER)
        if not folder:
            yield from function(batches)
            return
        profile = cProfile.Profile()
        results = function(batches)
        while True:
            profile.enable()
            try:
                batch = next(results, None)
            finally:
                profile.disable()
            if batch is None:
                break
            yield batch
        profile.dump_stats(Path(folder) / f"{name}-{uuid.uuid4().hex}.prof")

    return run
