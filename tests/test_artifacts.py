"""Artefacts are whole or absent, and the same content is stored once."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys_batch.artifacts import artifact_root, point, pointed, put_folder
from recsys_batch.errors import InputMissing, UsageError


def test_the_same_content_is_stored_once_and_other_content_elsewhere(tmp_path: Path) -> None:
    first = put_folder(tmp_path, "kind", lambda folder: _write(folder, "x"))
    again = put_folder(tmp_path, "kind", lambda folder: _write(folder, "x"))
    other = put_folder(tmp_path, "kind", lambda folder: _write(folder, "y"))
    assert first == again != other
    assert (first / "a.txt").read_text() == "x"
    assert {path.name for path in (tmp_path / "kind").iterdir()} == {first.name, other.name}


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        _write(folder, "half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        put_folder(tmp_path, "kind", fails)
    assert list((tmp_path / "kind").iterdir()) == []


def test_a_pointer_is_replaced_whole(tmp_path: Path) -> None:
    point(tmp_path, "r1", "index", {"a": 1})
    point(tmp_path, "r1", "index", {"b": 2})
    assert pointed(tmp_path, "r1", "index") == {"b": 2}
    assert [path.name for path in (tmp_path / "runs" / "r1").iterdir()] == ["index.json"]


def test_a_missing_pointer_names_the_step_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="run r1 has no index"):
        pointed(tmp_path, "r1", "index")


def test_a_warehouse_that_is_not_mounted_is_refused() -> None:
    assert artifact_root("file:///mnt/recs") == Path("/mnt/recs/_artifacts")
    with pytest.raises(UsageError, match="mounted path"):
        artifact_root("s3a://bucket/recs")


def _write(folder: Path, text: str) -> None:
    (folder / "a.txt").write_text(text)
