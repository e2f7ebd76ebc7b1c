"""The folder of snapshots: what CURRENT and PREVIOUS name, whoever changes them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from recsys_batch.errors import UsageError
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.repository import Pointers, PointerUnreadable


def folder_of(folder: Path, *names: str) -> Path:
    """A folder of snapshots, oldest first, that have a manifest and nothing else."""
    import os

    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{}")
        os.utime(folder / name / "manifest.json", (1000 + number, 1000 + number))
    return folder


def write_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe"), id="not UTF-8"),
        pytest.param(lambda path: path.write_text("\n"), id="empty"),
        pytest.param(lambda path: path.write_text("../elsewhere/a\n"), id="with slashes"),
        pytest.param(write_folder, id="a folder"),
    ],
)
def test_a_pointer_that_names_nothing_is_told_by_its_path(damage: Callable[[Path], object], tmp_path: Path) -> None:
    for name, read in (("CURRENT", repository.read_current), ("PREVIOUS", repository.read_previous)):
        damage(tmp_path / name)
        with pytest.raises(PointerUnreadable, match=f"{name}.*activate"):
            read(tmp_path)
    assert repository.read_pointers(tmp_path) == Pointers(None, None)


def test_going_over_to_a_snapshot_heals_a_pointer_that_cannot_be_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a", "b")
    (folder / "CURRENT").write_bytes(b"\xff")
    assert repository.set_current(folder, "b") == Pointers(None, None)
    assert repository.read_current(folder) == "b"
    (folder / "CURRENT").unlink()
    (folder / "CURRENT").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        repository.set_current(folder, "b")


def test_the_one_before_is_kept_for_a_roll_back_by_whoever_goes_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a", "b", "c", "d")
    for name in ("a", "c", "c"):
        repository.set_current(folder, name)
    assert repository.read_pointers(folder) == Pointers("c", "a")
    assert repository.delete_old(folder, 1) == ["b"]


def test_what_was_set_is_undone_only_while_it_is_current(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a", "b", "c")
    repository.set_current(folder, "a")
    repository.set_current(folder, "b")
    before = repository.set_current(folder, "c")
    assert repository.undo_set_current(folder, "c", before)
    assert repository.read_pointers(folder) == Pointers("b", "a")
    before = repository.set_current(folder, "a")
    repository.set_current(folder, "c")  # a night's export
    assert not repository.undo_set_current(folder, "a", before)
    assert repository.read_pointers(folder) == Pointers("c", "a")


def test_the_first_one_ever_is_undone_to_none(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a")
    assert repository.undo_set_current(folder, "a", repository.set_current(folder, "a"))
    assert repository.read_current(folder) is None and not (folder / "CURRENT").exists()


def test_fallbacks_are_the_one_before_then_older_ones_then_those_that_nobody_may_have_activated(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a", "b", "c", "d", "e")
    repository.set_current(folder, "a")
    repository.set_current(folder, "d")
    assert repository.list_fallbacks(folder) == ["a", "c", "b", "e"]
    (folder / "PREVIOUS").write_bytes(b"\xff")
    assert repository.list_fallbacks(folder) == ["c", "b", "a", "e"]
    (folder / "CURRENT").write_text("gone\n")
    assert repository.list_fallbacks(folder) == ["e", "d", "c", "b", "a"]
