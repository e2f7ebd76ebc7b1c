"""Writes one record per user to a file that appears when it is complete: Parquet, or JSON lines with their schema beside them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_batch.digest.record_schema import json_schema_path, json_schema_text, output_schema
from recsys_batch.errors import Busy, UsageError
from recsys_batch.schemas import IdTypes
from recsys_batch.storage.atomic import publish, write_file
from recsys_batch.storage.file_lock import acquire_flock

OutputFormat = Literal["jsonl", "parquet"]


@dataclass(frozen=True)
class OutputBlock:
    """Users and their slots, as columns.

    Attributes:
        users: n ids; offsets: n + 1 places into the columns of ``slots``.
        slots: columns of the slot struct, as lists.
    """

    users: list[Any]
    offsets: list[int]
    slots: dict[str, list[Any]]


class OutputSink(Protocol):
    """The file that blocks are written to."""

    def write(self, block: OutputBlock) -> None: ...


def draft_path(path: Path) -> Path:
    """Name the draft that a file is written as until it is complete."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def open_output_file(path: Path, form: OutputFormat, ids: IdTypes, run_id: str, model_version: str) -> Iterator[OutputSink]:
    """Writes the draft of a file; one process at a time.

    Raises:
        UsageError: it cannot be written.
        Busy: another process writes it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft_path(path).open("ab") as stream:
            if not acquire_flock(stream.fileno()):
                raise Busy(f"{path} is being written by another process already")
            stream.truncate(0)
            sink = _Json(stream, run_id, model_version) if form == "jsonl" else _Parquet(stream, output_schema(ids), run_id, model_version)
            yield sink
            sink.close()
    except OSError as error:
        raise UsageError(f"--out {path} cannot be written: {error.strerror or error}") from error


def publish_output(path: Path, form: OutputFormat, ids: IdTypes) -> None:
    """Make the draft the file, on the disk when this returns; JSON lines have their schema beside them before they appear."""
    if form == "jsonl":
        write_file(json_schema_path(path), json_schema_text(ids))
    publish(draft_path(path), path)


class _Json:
    def __init__(self, stream: Any, run_id: str, model_version: str) -> None:
        self._stream = stream
        self._tail = f', "run_id": {json.dumps(run_id)}, "model_version": {json.dumps(model_version)}}}\n'

    def write(self, block: OutputBlock) -> None:
        names = list(block.slots)
        encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
        slots = [dict(zip(names, values, strict=True)) for values in zip(*block.slots.values(), strict=True)]
        lines = [
            f'{{"user_id": {encode(user)}, "slots": {encode(slots[first:last])}{self._tail}'
            for user, first, last in zip(block.users, block.offsets[:-1], block.offsets[1:], strict=True)
        ]
        self._stream.write("".join(lines).encode())

    def close(self) -> None:
        self._stream.flush()


class _Parquet:
    def __init__(self, stream: Any, columns: pa.Schema, run_id: str, model_version: str) -> None:
        self._schema, self._constant = columns, (run_id, model_version)
        self._writer = pq.ParquetWriter(stream, columns, compression="zstd")

    def write(self, block: OutputBlock) -> None:
        kind = self._schema.field("slots").type.value_type
        values = pa.StructArray.from_arrays([pa.array(block.slots[field.name], field.type) for field in kind], fields=list(kind))
        lists = pa.ListArray.from_arrays(pa.array(block.offsets, pa.int32()), values)
        constant = [pa.repeat(text, len(block.users)) for text in self._constant]
        users = pa.array(block.users, self._schema.field("user_id").type)
        self._writer.write_batch(pa.RecordBatch.from_arrays([users, lists, *constant], schema=self._schema))

    def close(self) -> None:
        self._writer.close()
