"""Executor code of ingest: segment files of the online side's log in, their rows as Arrow, or what is torn of them, out."""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK, exposure_schema, feedback_schema
from recsys_batch.dataset.log_columns import encode_exposures, encode_feedback
from recsys_batch.dataset.log_rows import Exposure, FeedbackEvent, decode_rows
from recsys_batch.dataset.log_segments import read_frames
from recsys_batch.errors import SourceError
from recsys_batch.schemas import IdTypes
from recsys_batch.sources.file_tasks import FileTask, open_bytes
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.spark.executors.source_tasks import TaskGroups

AS_TEXT = IdTypes("STRING", "STRING")
"""A segment has ids as requests spelt them: what they name in the warehouse is decided where all formats are parsed."""

TORN_SCHEMA = pa.schema([pa.field("torn_bytes", pa.int64())])
_BATCH_ROWS = 500
_NO_TIME = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_SCHEMAS = {EXPOSURES: exposure_schema(AS_TEXT), FEEDBACK: feedback_schema(AS_TEXT)}
_ENCODERS: dict[str, Callable[[Any, IdTypes, pa.Schema], pa.RecordBatch]] = {
    EXPOSURES: encode_exposures,
    FEEDBACK: encode_feedback,
}


def segment_schema(kind: str) -> pa.Schema:
    """Get the schema of a kind's rows from segments."""
    return _SCHEMAS[kind]


def make_segment_reader(tasks: TaskGroups, kind: str) -> BatchFunction:
    """Make a function for mapInArrow: tasks -> rows of their segments. A row that is none of the kind has no ids but its text."""

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = list[Any]()
        for task, content in tasks.iterate(batches):
            for array in _read_segment(task, content)[0]:
                decoded, unreadable = decode_rows(array, kind)
                rows += decoded
                rows += [_spell_unreadable(kind, text) for text in unreadable]
                if len(rows) >= _BATCH_ROWS:
                    yield from _encode_valid(rows, kind)
                    rows = []
        if rows:
            yield from _encode_valid(rows, kind)

    return read


def make_torn_counter(tasks: TaskGroups) -> BatchFunction:
    """Make a function for mapInArrow: tasks -> a row per segment that ends in a torn frame, with the bytes of that."""

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        torn = [n for task, content in tasks.iterate(batches) if (n := _read_segment(task, content)[1])]
        yield pa.RecordBatch.from_arrays([pa.array(torn, pa.int64())], schema=TORN_SCHEMA)

    return count


def _read_segment(task: FileTask, content: bytes | None) -> tuple[list[bytes], int]:
    with open_bytes(task.file, content) as stream:
        try:
            return read_frames(stream.read())
        except ValueError as error:
            raise SourceError(f"{task.file.location} cannot be read: {error}") from None


def _encode_valid(rows: Sequence[Any], kind: str) -> Iterator[pa.RecordBatch]:
    """Encode rows; those that do not fit are found by halving, so that one of them does not cost its neighbours."""
    try:
        yield _ENCODERS[kind](rows, AS_TEXT, _SCHEMAS[kind])
    except Exception as error:
        if len(rows) == 1:
            yield _ENCODERS[kind]([_spell_unreadable(kind, f"{error}: {rows[0]}")], AS_TEXT, _SCHEMAS[kind])
            return
        half = len(rows) // 2
        yield from _encode_valid(rows[:half], kind)
        yield from _encode_valid(rows[half:], kind)


def _spell_unreadable(kind: str, text: str) -> Exposure | FeedbackEvent:
    """Make a row that ingest rejects, as it has no ids, and keeps with its text."""
    text = text.encode("utf-8", "replace").decode()
    if kind == EXPOSURES:
        return Exposure("", _NO_TIME, "", None, None, "", None, [""], [0.0], attributes={"unreadable": text})
    return FeedbackEvent(None, "", "", _NO_TIME, f"unreadable: {text}")
