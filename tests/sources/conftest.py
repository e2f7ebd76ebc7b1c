"""Files of a test as tasks, and their rows as a reader of a source gets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.sources.file_tasks import FileTask, SourceFile
from recsys_batch.sources.reading import read_rows
from recsys_batch.sources.source_format import SourceFormat


def file_task(path: Path, content: bytes | str, folder: Path | None = None, **place: Any) -> FileTask:
    """Write a file and make a task of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(data)
    return FileTask(0, SourceFile(str(path), len(data), str(folder or path.parent)), str(path), **place)


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., FileTask]:
    """A task of a file with the given content."""

    def make(content: bytes | str, name: str = "a.csv", **place: Any) -> FileTask:
        return file_task(tmp_path / name, content, tmp_path, **place)

    return make


@pytest.fixture
def rows() -> Callable[..., list[dict[str, Any]]]:
    """Rows of a task: the file's columns without nulls; a malformed line under "_line"."""

    def read(task: FileTask, how: SourceFormat | None = None, kind: str = "interactions") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for raw in read_rows(task, kind, how or SourceFormat()):
            columns: Mapping[str, list[Any]] = {name: column.to_pylist() for name, column in raw.columns.items()}
            for i, line in enumerate(raw.malformed.to_pylist()):
                values = {name: column[i] for name, column in columns.items() if column[i] is not None}
                found.append({"_line": line} if line is not None else values)
        return found

    return read
