"""Rows of a file task in whichever format its source has, and what the file holds."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from zipfile import BadZipFile

from recsys_batch.errors import SourceError
from recsys_batch.sources import movielens
from recsys_batch.sources.csv_rows import read_csv_rows, read_header
from recsys_batch.sources.file_tasks import FileTask
from recsys_batch.sources.json_rows import read_first_paths, read_json_rows
from recsys_batch.sources.parquet_rows import find_column_type, read_parquet_rows, read_parquet_schema
from recsys_batch.sources.raw_rows import RawRows
from recsys_batch.sources.source_format import COLUMNS_OF_KIND, SourceFormat
from recsys_batch.sources.survey import Survey, column_types, merge_surveys, survey_rows

_DAMAGED = (OSError, EOFError, BadZipFile)


def read_rows(task: FileTask, kind: str, how: SourceFormat, content: bytes | None = None, *, whole: bool = False) -> Iterator[RawRows]:
    """Read the rows of a task.

    Args:
        kind: interactions, items or users. whole: read every column of Parquet, not only those of the kind.

    Raises SourceError where a file cannot be read as what it was said to be.
    """
    try:
        yield from _transformed(_read_format(task, kind, how, content, whole=whole), how)
    except _DAMAGED as error:
        raise SourceError(f"{task.file.name} cannot be read{_as_compressed(task)}: {' '.join(str(error).split())}") from None


def survey_task(task: FileTask, kind: str, how: SourceFormat, content: bytes | None = None) -> Survey:
    """Survey a task's rows and its file's columns. Raises SourceError as ``read_rows``."""
    parts: list[Survey] = []
    columns: dict[str, None] = {}
    for raw in read_rows(task, kind, how, content):
        if how.kind == "jsonl":
            raw = replace(raw, columns={name: column for name, column in raw.columns.items() if column.null_count < len(column)})
        columns.update(dict.fromkeys(raw.columns))
        try:
            parts.append(survey_rows(raw, kind, how))
        except SourceError as error:
            raise SourceError(f"{task.file.name}: {error}") from None
    survey = merge_surveys(parts)
    types: tuple[tuple[str, str], ...] = ()
    if how.kind == "parquet":
        schema = read_parquet_schema(task, content)
        paths = dict.fromkeys([*schema.names, *(how.columns.values())])
        found = {path: find_column_type(schema, path) for path in paths}
        kinds = {path: kind_of_path for path, kind_of_path in found.items() if kind_of_path is not None}
        columns, types = dict.fromkeys(kinds), column_types(kind, how, kinds)
    elif how.kind == "jsonl":
        columns.update(dict.fromkeys(read_first_paths(task, how, content)))
    elif not columns and not how.names:
        columns = dict.fromkeys(read_header(task, how, content))
    if columns:
        survey.files = {(tuple(columns), types): [task.file_number]}
    return survey


def keep_columns(raw: RawRows, present: Collection[str] | None) -> RawRows:
    """Leave out the columns that no file of a source has, which lines of JSON cannot tell one by one."""
    if present is None:
        return raw
    return replace(raw, columns={name: column for name, column in raw.columns.items() if name in present})


def _read_format(task: FileTask, kind: str, how: SourceFormat, content: bytes | None, *, whole: bool) -> Iterator[RawRows]:
    paths = [how.columns.get(ours, ours) for ours in COLUMNS_OF_KIND[kind]]
    if how.kind == "csv":
        return read_csv_rows(task, how, content)
    if how.kind == "jsonl":
        return read_json_rows(task, how, paths, explode=kind == "interactions", content=content)
    return read_parquet_rows(task, paths, content, whole=whole or kind != "interactions")


def _transformed(rows: Iterator[RawRows], how: SourceFormat) -> Iterator[RawRows]:
    transform = movielens.TRANSFORMS[how.transform] if how.transform else None
    for raw in rows:
        yield raw if transform is None else transform(raw)


def _as_compressed(task: FileTask) -> str:
    return f" as {task.file.compression}" if task.file.compression else ""
