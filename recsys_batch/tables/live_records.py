"""Candidates and user embeddings of refreshed users, beside topk_live: what a server needs to rank them again. No table has them.

The commit that adds a batch's rows to topk_live names their files, so that they are there together or not at all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from recsys_batch.schemas import TABLES
from recsys_batch.storage.filesystems import join
from recsys_batch.tables.slice_writer import DataFile, TableSlice

RECORD_TABLES = ("candidates", "user_embeddings")


def live_record_slices(root: str, run_id: str, topk_live: TableSlice) -> tuple[TableSlice, ...]:
    """Locate the files of ``RECORD_TABLES`` that a run's stream writes.

    Args:
        root: the warehouse's artefact folder.
        topk_live: the run's slice of the table.
    """
    folder = join(root, "live", run_id)
    return tuple(replace(topk_live, root=join(folder, name), spec=TABLES[name], partition={}) for name in RECORD_TABLES)


@dataclass(frozen=True)
class LiveBatch:
    """Files of a micro-batch.

    Attributes:
        version: of interactions, that its lists go up to: the batch_id of its rows.
        files: topk_live's, and where servers read live lists those of ``RECORD_TABLES``.
    """

    run_id: str
    version: int
    files: Mapping[str, Sequence[DataFile]]

    def to_metadata(self) -> dict[str, Any]:
        """Describe the batch as its commit's metadata."""
        files = {name: [asdict(file) for file in written] for name, written in self.files.items()}
        return {"run_id": self.run_id, "batch_id": self.version, "files": files}


def read_batches(history: Sequence[Mapping[str, Any]]) -> Iterator[LiveBatch]:
    """Read the micro-batches of commits of topk_live, oldest first; other commits are passed over.

    Args:
        history: commits as deltalake's ``history`` gives them, newest first.
    """
    for commit in reversed(history):
        metadata = json.loads(commit.get("userMetadata") or "{}")
        if "batch_id" in metadata:
            files = {name: [DataFile(**file) for file in written] for name, written in metadata["files"].items()}
            yield LiveBatch(metadata["run_id"], metadata["batch_id"], files)
