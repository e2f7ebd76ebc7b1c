"""Files and folders appear whole, and what has to last is on the disk before its name is."""

import os
import stat
from pathlib import Path

import pytest

from recsys_batch.storage.atomic import make_draft_folder, publish, write_file


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Syncs of files and folders, and renames, in order."""
    seen: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        seen.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def replaced(path: Path, target: Path) -> Path:
        seen.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    return seen


def test_a_file_is_synced_then_renamed_then_its_folder_is_synced(tmp_path: Path, calls: list[str]) -> None:
    path = tmp_path / "CURRENT"
    path.write_text("old")
    write_file(path, "n\u00e9w")
    assert calls == ["file", "rename", "folder"]
    assert path.read_text(encoding="utf-8") == "n\u00e9w" and os.listdir(tmp_path) == ["CURRENT"]


def test_what_need_not_last_is_only_renamed(tmp_path: Path, calls: list[str]) -> None:
    write_file(tmp_path / "worker-1.json", "{}", durable=False)
    assert calls == ["rename"] and os.listdir(tmp_path) == ["worker-1.json"]


def test_a_folder_is_synced_with_all_that_is_below_it(tmp_path: Path, calls: list[str]) -> None:
    with make_draft_folder(tmp_path / "snapshots", ".writing-") as draft:
        (draft / "items").mkdir()
        (draft / "items" / "ids").write_text("1")
        assert draft.name.startswith(".writing-")
        publish(draft, tmp_path / "snapshots" / "first")
    assert calls == ["folder", "file", "folder", "rename", "folder"]
    assert (tmp_path / "snapshots" / "first" / "items" / "ids").read_text() == "1"


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), make_draft_folder(tmp_path, ".writing-") as draft:
        (draft / "half").write_text("1")
        raise RuntimeError
    with pytest.raises(UnicodeEncodeError):
        write_file(tmp_path / "CURRENT", "\ud800")
    assert os.listdir(tmp_path) == []
