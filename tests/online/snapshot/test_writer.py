import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.manifest import SnapshotRefused, file_checksums, read_manifest
from recsys_batch.online.snapshot.reader import open_snapshot


def test_a_written_snapshot_opens_with_what_it_says_of_itself(make: Callable[..., Path]) -> None:
    folder = make("first", users=10, items=30)
    found = open_snapshot(folder / "first")
    assert (found.manifest.n_users, found.manifest.n_items, found.manifest.embedding_dim) == (10, 30, 16)
    assert set(found.manifest.files) == {str(p.relative_to(folder / "first")) for p in (folder / "first").rglob("*") if p.is_file()} - {
        "manifest.json",
        ".verified",
    }
    found.close()
    assert [path.name for path in folder.iterdir()] == ["first"]


def test_lists_of_a_snapshot_of_the_release_before_are_read(make: Callable[..., Path]) -> None:
    folder = make("first", users=10, items=30) / "first"
    written = {"centroids": np.eye(2, 16, dtype=np.float32), "codes": np.arange(30, dtype=np.int32), "offsets": np.array([0, 20, 30])}
    for name, array in written.items():
        np.save(folder / f"nearest_{name}.npy", array)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": file_checksums(folder)}))
    found = open_snapshot(folder)
    assert found.item_lists is not None
    for name, array in written.items():
        np.testing.assert_array_equal(getattr(found.item_lists, name), array)
    found.close()


def test_a_snapshot_is_never_written_again(make: Callable[..., Path]) -> None:
    make("first", users=10, items=30)
    with pytest.raises(UsageError, match="never written again"):
        make("first", users=10, items=30)


@pytest.mark.parametrize("name", ["../out", "", "a/b", ".hidden", "-x", "a" * 101])
def test_a_name_that_leaves_the_folder_is_refused(name: str, make: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="cannot name a snapshot"):
        make(name, users=10, items=30)


@pytest.mark.parametrize("file", ["users.lmdb", "items/embeddings.npy", "ranker.onnx", "popular.json", "items/titles.arrow"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_file_is_refused_by_name(file: str, damage: str, make: Callable[..., Path]) -> None:
    path = make("first", users=10, items=30) / "first" / file
    open_snapshot(path.parents[len(Path(file).parts) - 1]).close()
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(SnapshotRefused, match=Path(file).name):
        open_snapshot(path.parents[len(Path(file).parts) - 1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 99}, "format version 99"),
        ({"format": "something"}, "not the manifest"),
        ({"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "leaves the snapshot's folder"),
        ({"embedding_dim": 5}, "5 dimensions"),
        ({"n_users": 11}, "has 10 users"),
        ({"features": {"names": ["a"], "mean": [0], "scale": [1]}}, "1 features"),
        ({"user_id": None}, None),
        ({"snapshot_id": "other"}, "not renamed"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change: dict[str, Any], reason: str | None, make: Callable[..., Path]) -> None:
    folder = make("first", users=10, items=30) / "first"
    values = json.loads((folder / "manifest.json").read_text())
    for key, value in change.items():
        if value is None:
            del values[key]
        else:
            values[key] = value
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(SnapshotRefused, match=reason or "lacks something"):
        open_snapshot(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x00"])
def test_a_manifest_that_is_none_is_refused(text: str, make: Callable[..., Path]) -> None:
    folder = make("first", users=10, items=30) / "first"
    (folder / "manifest.json").write_text(text)
    with pytest.raises(SnapshotRefused):
        open_snapshot(folder)


def test_files_are_read_once_per_node_and_again_when_they_change(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys_batch.online.snapshot import manifest

    folder, read = make("first", users=10, items=30) / "first", []
    true = manifest.sha256_file
    monkeypatch.setattr(manifest, "sha256_file", lambda path: read.append(path.name) or true(path))
    found = read_manifest(folder)
    open_snapshot(folder).close()
    assert read == []  # who wrote them has just computed their checksums
    (folder / ".verified").unlink()
    open_snapshot(folder).close()
    assert sorted(read) == sorted(Path(name).name for name in found.files)
    read.clear()
    open_snapshot(folder).close()
    assert read == []
    os.utime(folder / "users.lmdb")
    open_snapshot(folder).close()
    assert "users.lmdb" in read


def test_current_names_only_what_is_there_and_pruning_spares_it(make: Callable[..., Path]) -> None:
    for name in ("a", "b", "c", "d"):
        folder = make(name, users=5, items=20)
        time.sleep(0.01)
    with pytest.raises(InputMissing, match="it has a, b, c, d"):
        repository.set_current(folder, "e")
    repository.set_current(folder, "a")
    stale, young = folder / ".writing-old", folder / ".writing-new"
    for draft in (stale, young):
        draft.mkdir()
    os.utime(stale, (0, 0))
    assert repository.delete_old(folder, 1, frozenset({"b"})) == ["c"]
    assert repository.list_snapshots(folder) == ["a", "b", "d"] and young.exists() and not stale.exists()


_KILLED = """
import sys, os
from pathlib import Path
from recsys_batch.online.snapshot import writer
from recsys_batch.online.export.synthetic_snapshot import make_snapshot
point = sys.argv[2]
def die(*_, **__):
    os.kill(os.getpid(), 9)
if point == "users":
    true = writer.write_lmdb
    writer.write_lmdb = lambda path, records: (true(path, records), die())
elif point == "rename":
    writer.publish = die
else:
    writer.file_checksums = die
make_snapshot(Path(sys.argv[1]), snapshot_id="second", users=50, items=40, dim=16, candidates=10)
"""


@pytest.mark.parametrize("point", ["users", "manifest", "rename"])
def test_an_exporter_that_is_killed_leaves_no_snapshot_and_the_next_one_writes_it(point: str, make: Callable[..., Path]) -> None:
    folder = make("first", users=10, items=30)
    repository.set_current(folder, "first")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(folder), point], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert repository.list_snapshots(folder) == ["first"] and repository.read_current(folder) == "first"
    make("second", users=10, items=30)
    assert repository.list_snapshots(folder) == ["first", "second"]
    shutil.rmtree(folder)
