"""Executor code of ingest: numbers of task groups in, surveys, typed rows or rows as JSON out."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from recsys_batch.errors import SourceError
from recsys_batch.schemas import IdTypes
from recsys_batch.sources.file_tasks import FileTask, plain_location
from recsys_batch.sources.parquet_rows import check_text, nested_columns, plain
from recsys_batch.sources.raw_rows import RawRows
from recsys_batch.sources.reading import keep_columns, read_rows, survey_task
from recsys_batch.sources.source_format import COLUMNS_OF_KIND, SourceFormat
from recsys_batch.sources.survey import Survey, survey_rows
from recsys_batch.sources.typed_rows import FILE, POSITION, ROW, ParseSettings, parse_rows, typed_schema
from recsys_batch.spark.executors.functions import BatchFunction

TEXT_SCHEMA = pa.schema([pa.field(FILE, pa.int32()), pa.field(POSITION, pa.int64()), pa.field(ROW, pa.string())])
SURVEY_SCHEMA = pa.schema([pa.field("survey", pa.string()), pa.field("error", pa.string()), pa.field(FILE, pa.int32())])


@dataclass(frozen=True)
class TaskGroups:
    """Tasks of a source by the number of their group, or, where Spark reads the files, by location."""

    groups: Sequence[Sequence[FileTask]]
    by_location: Mapping[str, Sequence[FileTask]] = field(default_factory=dict)

    def iterate(self, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[FileTask, bytes | None]]:
        """Yield the tasks that batches of (id) or of (path, content) name."""
        for batch in batches:
            if "content" in batch.schema.names:
                for path, content in zip(batch["path"].to_pylist(), batch["content"].to_pylist(), strict=True):
                    yield from ((task, content) for task in self.by_location[plain_location(path)])
            else:
                yield from ((task, None) for number in batch.column(0).to_pylist() for task in self.groups[number])


def make_surveyor(tasks: TaskGroups, kind: str, how: SourceFormat) -> BatchFunction:
    """Make a function for mapInArrow: tasks -> one survey of all of them as JSON, or the first file's error."""

    def survey(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        whole = Survey()
        for task, content in tasks.iterate(batches):
            try:
                whole.add(survey_task(task, kind, how, content))
            except SourceError as error:
                yield pa.RecordBatch.from_pylist([{"error": str(error), FILE: task.file_number}], schema=SURVEY_SCHEMA)
                return
        yield pa.RecordBatch.from_pylist([{"survey": json.dumps(whole.to_json())}], schema=SURVEY_SCHEMA)

    return survey


def make_frame_surveyor(kind: str, how: SourceFormat) -> BatchFunction:
    """Make a function for mapInArrow: rows of a table that Spark reads -> their survey as JSON."""

    def survey(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        whole = Survey()
        for batch in batches:
            try:
                raw = _frame_rows(batch, kind, how, check_text)
                part = survey_rows(raw, kind, how)
            except SourceError as error:
                yield pa.RecordBatch.from_pylist([{"error": str(error)}], schema=SURVEY_SCHEMA)
                return
            part.files = {(tuple(raw.columns), ()): [0]}
            whole.add(part)
        yield pa.RecordBatch.from_pylist([{"survey": json.dumps(whole.to_json())}], schema=SURVEY_SCHEMA)

    return survey


def make_parser(tasks: TaskGroups, settings: ParseSettings, present: Sequence[str] | None) -> BatchFunction:
    """Make a function for mapInArrow: tasks -> typed rows of their files, without the rows' JSON."""

    def parse(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for task, content in tasks.iterate(batches):
            for raw in read_rows(task, settings.kind, settings.how, content):
                rows = parse_rows(keep_columns(raw, present), settings)
                yield from _located(rows, task.file_number, raw.positions, None)

    return parse


def make_frame_parser(settings: ParseSettings, file_number: int) -> BatchFunction:
    """Make a function for mapInArrow: rows of a table that Spark reads, with ``_row``, -> typed rows."""

    def parse(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                raw = _frame_rows(batch, settings.kind, settings.how, lambda _, column: plain(column))
                yield from _located(parse_rows(raw, settings), file_number, raw.positions, batch[ROW])

    return parse


def make_text_reader(tasks: TaskGroups, kind: str, how: SourceFormat, wanted: Mapping[int, np.ndarray] | None) -> BatchFunction:
    """Make a function for mapInArrow: tasks -> rows of their files as JSON.

    Args:
        wanted: number of a file -> positions int64, ascending, of the rows to spell; None: all of them.
    """

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for task, content in tasks.iterate(batches):
            for raw in read_rows(task, kind, how, content, whole=True):
                rows = raw
                if wanted is not None:
                    rows = raw.take(np.flatnonzero(np.isin(raw.positions, wanted.get(task.file_number, np.empty(0, dtype=np.int64)))))
                if len(rows):
                    numbers = pa.repeat(pa.scalar(task.file_number, pa.int32()), len(rows))
                    yield pa.RecordBatch.from_arrays([numbers, pa.array(rows.positions), rows.to_json()], schema=TEXT_SCHEMA)

    return read


def located_schema(kind: str, ids: IdTypes) -> pa.Schema:
    """Make the schema of typed rows with their file, position and JSON."""
    schema = typed_schema(kind, ids)
    for column in TEXT_SCHEMA:
        schema = schema.append(column)
    return schema


def _located(rows: pa.Table, file_number: int, positions: np.ndarray, texts: pa.Array | None) -> Iterator[pa.RecordBatch]:
    numbers = pa.repeat(pa.scalar(file_number, pa.int32()), len(rows))
    texts = pa.nulls(len(rows), pa.string()) if texts is None else texts
    for name, column in ((FILE, numbers), (POSITION, pa.array(positions)), (ROW, texts)):
        rows = rows.append_column(name, column)
    yield from rows.to_batches()


def _frame_rows(batch: pa.RecordBatch, kind: str, how: SourceFormat, prepare: Callable[[str, pa.Array], pa.Array]) -> RawRows:
    named = zip(batch.schema.names, batch.columns, strict=True)
    columns = {name: prepare(name, column) for name, column in named if name not in (ROW, POSITION)}
    columns |= nested_columns(columns, [how.columns.get(ours, ours) for ours in COLUMNS_OF_KIND[kind]])
    positions = np.asarray(batch[POSITION]) if POSITION in batch.schema.names else np.arange(batch.num_rows)
    return RawRows(positions, columns, pa.nulls(batch.num_rows, pa.string()))
