"""Artefacts are whole or absent, and the same content is stored once: on a mounted path and in a store."""

from collections.abc import Callable
from pathlib import Path

import pytest

from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.storage import artifacts
from recsys_batch.storage.artifacts import (
    LISTING,
    artifact_root,
    clear_pointer,
    get_pointer,
    has_pointer,
    list_pointers,
    put_folder,
    remove_folder,
    set_pointer,
    stage_files,
)
from recsys_batch.storage.filesystems import basename, exists, join, list_entries, read_bytes, remove, write_bytes


@pytest.fixture(params=["path", "store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An artefact root of each kind."""
    return str(tmp_path / "root") if request.param == "path" else join(request.getfixturevalue("store"), "root")


def test_the_same_content_is_stored_once_and_other_content_elsewhere(root: str) -> None:
    first = put_folder(root, "kind", lambda folder: _write(folder, "x"))
    again = put_folder(root, "kind", lambda folder: _write(folder, "x"))
    other = put_folder(root, "kind", lambda folder: _write(folder, "y"))
    assert first == again != other
    assert read_bytes(join(first, "a.txt")) == b"x"
    assert {entry.name for entry in list_entries(join(root, "kind"))} == {basename(first), basename(other)}


def test_content_has_the_same_name_on_a_path_and_in_a_store(tmp_path: Path, store: str) -> None:
    names = [basename(put_folder(place, "kind", lambda folder: _write(folder, "x"))) for place in (str(tmp_path / "root"), store)]
    assert names[0] == names[1]


def test_a_failed_write_leaves_nothing(root: str, tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        _write(folder, "half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        put_folder(root, "kind", fails, str(tmp_path / "scratch"))
    assert list_entries(join(root, "kind")) == []
    assert list_entries(str(tmp_path / "scratch")) == []


def test_an_upload_that_was_cut_short_is_no_folder_and_is_done_again(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(folder: Path) -> None:
        _write(folder, "x")
        (folder / "b.txt").write_text("more")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="connection reset"):
        patch.setattr(artifacts, "upload", _second_fails(artifacts.upload))
        put_folder(store, "kind", both)
    (left,) = list_entries(join(store, "kind"))
    assert [entry.name for entry in list_entries(left.location)] == ["a.txt"]
    assert put_folder(store, "kind", both) == left.location
    assert [entry.name for entry in list_entries(left.location)] == [LISTING, "a.txt", "b.txt"]


def test_a_removal_that_was_cut_short_leaves_no_folder(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put_folder(store, "kind", lambda folder: _write(folder, "x"))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="connection reset"):
        patch.setattr(artifacts, "remove", _second_fails(artifacts.remove))
        remove_folder(folder)
    remove(join(folder, "a.txt"))  # as far as it had come
    assert put_folder(store, "kind", lambda folder: _write(folder, "x")) == folder
    assert read_bytes(join(folder, "a.txt")) == b"x"
    remove_folder(folder)
    assert not exists(folder)


def test_what_is_whole_in_a_store_is_not_uploaded_again_but_marked_as_in_use(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put_folder(store, "kind", lambda folder: _write(folder, "x"))
    before = {entry.name: entry.modified for entry in list_entries(folder)}
    monkeypatch.setattr(artifacts, "upload", _never)
    assert put_folder(store, "kind", lambda folder: _write(folder, "x")) == folder
    after = {entry.name: entry.modified for entry in list_entries(folder)}
    assert after["a.txt"] == before["a.txt"]
    assert str(after[LISTING]) > str(before[LISTING])


def test_files_named_by_their_content_are_there_when_the_block_ends(root: str, tmp_path: Path) -> None:
    with stage_files(root, "indexes", str(tmp_path / "scratch")) as folder:
        (folder / "vectors-1").write_text("v")
    assert read_bytes(join(root, "indexes", "vectors-1")) == b"v"
    with stage_files(root, "indexes", str(tmp_path / "scratch")) as folder:
        (folder / "vectors-2").write_text("w")
    assert [entry.name for entry in list_entries(join(root, "indexes"))] == ["vectors-1", "vectors-2"]
    assert list_entries(str(tmp_path / "scratch")) == []


def test_a_pointer_is_replaced_whole(root: str) -> None:
    set_pointer(root, "r1", "index", {"a": 1})
    set_pointer(root, "r1", "index", {"b": 2})
    set_pointer(root, "r1", "bundle", {"folder": "x"})
    assert get_pointer(root, "r1", "index") == {"b": 2}
    assert [entry.name for entry in list_entries(join(root, "runs", "r1"))] == ["bundle.json", "index.json"]
    assert list_pointers(root, "r1") == {"index": {"b": 2}, "bundle": {"folder": "x"}}
    assert list_pointers(root, "r2") == {}


def test_a_pointer_is_forgotten(root: str) -> None:
    set_pointer(root, "r1", "base", {"a": 1})
    assert has_pointer(root, "r1", "base")
    for _ in range(2):
        clear_pointer(root, "r1", "base")
        assert not has_pointer(root, "r1", "base")


def test_a_missing_pointer_names_the_step_to_run(root: str) -> None:
    with pytest.raises(InputMissing, match="run r1 has no index"):
        get_pointer(root, "r1", "index")


def test_a_root_is_a_path_or_in_a_store_that_is_supported() -> None:
    assert artifact_root("file:///mnt/recs") == "/mnt/recs/_artifacts"
    assert artifact_root("s3a://bucket/recs/") == "s3a://bucket/recs/_artifacts"
    with pytest.raises(UsageError, match="mounted path"):
        artifact_root("gs://name/recs")


def test_all_of_it_works_in_s3(bucket: str) -> None:
    folder = put_folder(bucket, "kind", lambda folder: _write(folder, "x"))
    assert put_folder(bucket, "kind", lambda folder: _write(folder, "x")) == folder
    assert [entry.name for entry in list_entries(folder)] == [LISTING, "a.txt"]
    set_pointer(bucket, "r1", "index", {"a": 1})
    write_bytes(join(bucket, "runs", "r1", "other"), b"no pointer")
    assert list_pointers(bucket, "r1") == {"index": {"a": 1}}
    remove(join(bucket, "runs", "r1"))
    assert not has_pointer(bucket, "r1", "index")
    assert exists(folder)


def _write(folder: Path, text: str) -> None:
    (folder / "a.txt").write_text(text)


def _never(source: Path, location: str) -> None:
    raise AssertionError(f"{location} was uploaded again")


def _second_fails(function: Callable[..., None]) -> Callable[..., None]:
    done: list[object] = []

    def run(*given: object) -> None:
        if done:
            raise OSError("connection reset")
        done.append(given)
        function(*given)

    return run
