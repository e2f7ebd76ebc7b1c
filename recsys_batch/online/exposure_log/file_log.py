"""A log of one kind of rows into whole Parquet files of a folder, for the id types of a warehouse."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Unpack

import pyarrow as pa

from recsys_batch.online.exposure_log.rotating_parquet import LimitOptions, RotatingParquet, RotationPolicy
from recsys_batch.online.exposure_log.row_log import Row, RowLog
from recsys_batch.schemas import IdType, IdTypes


class FileLog(RowLog[Row]):
    """What the logs of exposures and of feedback share.

    Args:
        folder: made when the first rows come; several processes may share it.
        user_type, item_type: of the warehouse.
        queue_rows: rows that may wait; beyond them they are dropped and counted.
        worker: this process, for the names of the files; its pid by default.
        limits: rotate_rows, rotate_seconds, group_rows, max_files, max_mb: see rotating.Limits.

    Attributes:
        kind: how the names of the files begin.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        folder: Path | str,
        *,
        user_type: IdType,
        item_type: IdType,
        queue_rows: int = 10_000,
        worker: int | None = None,
        **limits: Unpack[LimitOptions],
    ) -> None:
        ids = IdTypes(user_type, item_type)
        schema, worker = self.columns(ids), os.getpid() if worker is None else worker
        writer = RotatingParquet(Path(folder), self.kind, schema, worker, RotationPolicy(**limits))
        super().__init__(writer, lambda rows: self.encode(rows, ids, schema), queue_rows)

    @abstractmethod
    def columns(self, ids: IdTypes) -> pa.Schema:
        """Of the files."""

    @abstractmethod
    def encode(self, rows: Sequence[Row], ids: IdTypes, schema: pa.Schema) -> pa.RecordBatch:
        """The rows as Arrow; whatever it raises means that one of them is invalid."""
