"""A node has one copy of what a store holds, whole and verified, whoever asks for it at the same time, and not for ever."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys_batch.errors import EXIT_MISSING, InputMissing, RecsysBatchError, UsageError
from recsys_batch.storage import node_cache
from recsys_batch.storage.artifacts import LISTING, put_folder
from recsys_batch.storage.checksums import sha256_file
from recsys_batch.storage.filesystems import basename, download, join, read_bytes, remove, upload, write_bytes
from recsys_batch.storage.node_cache import NodeCache

HOUR = 3600

ASKING = """
import sys, time
from pathlib import Path
from recsys_batch.storage import node_cache
plain = node_cache.download
def logged(location, target):
    with open(sys.argv[3], "a") as log:
        log.write(location + "\\n")
    time.sleep(0.3)
    return plain(location, target)
node_cache.download = logged
print("ready", flush=True)
sys.stdin.readline()
folder = node_cache.NodeCache(sys.argv[1]).local_copy(sys.argv[2])
print((folder / "vectors.npy").read_text(), (folder / "vectors.npy").stat().st_ino)
"""


@pytest.fixture
def cache(tmp_path: Path) -> NodeCache:
    return NodeCache(str(tmp_path / "cache"), max_mb=1)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were downloaded."""
    names: list[str] = []

    def logged(location: str, target: Path) -> str:
        names.append(basename(location))
        return download(location, target)

    monkeypatch.setattr(node_cache, "download", logged)
    return names


def put(root: str, text: str = "some vectors") -> str:
    def write(folder: Path) -> None:
        (folder / "vectors.npy").write_text(text)
        (folder / "rules.json").write_text("{}")

    return put_folder(root, "catalogues", write)


def idle(cache: NodeCache, folder: Path, seconds: float) -> None:
    when = time.time() - seconds
    os.utime(folder, (when, when))


def test_a_path_of_this_machine_is_what_it_is(tmp_path: Path, cache: NodeCache) -> None:
    folder = put(str(tmp_path / "root"))
    assert str(cache.local_copy(folder)) == folder == str(cache.local_copy(f"file://{folder}"))
    assert str(cache.local_copy_of_files(str(tmp_path), {"a": "never looked at"})) == str(tmp_path)
    assert not Path(cache.folder).exists()


def test_a_folder_of_a_store_is_copied_once_and_keeps_its_files(store: str, cache: NodeCache, fetched: list[str]) -> None:
    location = put(store)
    first = cache.local_copy(location)
    assert {path.name: path.read_text() for path in first.iterdir()} == {"rules.json": "{}", "vectors.npy": "some vectors"}
    remove(location)
    assert cache.local_copy(location) == first
    idle(cache, first, HOUR)  # the mark of use is renewed, and nothing fetched
    assert cache.local_copy(location) == first
    assert time.time() - first.stat().st_mtime < 60
    assert fetched == ["rules.json", "vectors.npy"]


def test_named_files_of_a_folder_are_copied_and_no_others(store: str, cache: NodeCache, fetched: list[str], tmp_path: Path) -> None:
    checksums = {}
    for name in ("vectors-1.npy", "lists-2.safetensors", "another-nights.npy"):
        (tmp_path / name).write_text(name)
        checksums[name] = sha256_file(tmp_path / name)
        upload(tmp_path / name, join(store, "indexes", name))
    del checksums["another-nights.npy"]
    folder = cache.local_copy_of_files(join(store, "indexes"), checksums)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: name for name in checksums}
    assert cache.local_copy_of_files(join(store, "indexes"), dict(reversed(checksums.items()))) == folder
    assert sorted(fetched) == sorted(checksums)


def test_processes_that_ask_at_the_same_time_share_one_copy(bucket: str, cache: NodeCache, tmp_path: Path) -> None:
    location, log = put(bucket), tmp_path / "log"
    command = [sys.executable, "-c", ASKING, cache.folder, location, str(log)]
    asking = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in asking:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in asking:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60)[0] for process in asking]
    assert told[0].startswith("some vectors ")
    assert told == told[:1] * 3, "all have the same file, by its inode"
    assert log.read_text().splitlines() == [join(location, name) for name in ("rules.json", "vectors.npy")]


def test_what_a_killed_process_left_is_no_copy_and_goes(store: str, cache: NodeCache) -> None:
    location = put(store)
    left = Path(cache.folder) / f".draft-{basename(location)}-0123"
    left.mkdir(parents=True, mode=0o700)
    Path(cache.folder).chmod(0o700)
    (left / "vectors.npy").write_text("some v")
    assert (cache.local_copy(location) / "vectors.npy").read_text() == "some vectors"
    assert not left.exists()


def test_a_download_that_was_cut_short_is_refused_and_done_again(store: str, cache: NodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def cut_short_once(location: str, target: Path) -> str:
        calls.append(basename(location))
        download(location, target)
        if calls.count("vectors.npy") == 1 and calls[-1] == "vectors.npy":
            target.write_bytes(target.read_bytes()[:5])
        return sha256_file(target)

    monkeypatch.setattr(node_cache, "download", cut_short_once)
    assert (cache.local_copy(put(store)) / "vectors.npy").read_text() == "some vectors"
    assert calls == ["rules.json", "vectors.npy", "vectors.npy"]


def damaged(location: str) -> None:
    write_bytes(join(location, "vectors.npy"), b"other vectors")


def listed_otherwise(location: str) -> None:
    write_bytes(join(location, LISTING), read_bytes(join(location, LISTING)).replace(b"vectors.npy", b"../../vectors.npy"))


def cut_short(location: str) -> None:
    remove(join(location, LISTING))


def lacking(location: str) -> None:
    remove(join(location, "vectors.npy"))


@pytest.mark.parametrize(
    ("harm", "error", "sentence"),
    [
        (damaged, RecsysBatchError, r"vectors.npy \(13 bytes\) came 3 times with another checksum"),
        (listed_otherwise, RecsysBatchError, r"_listing is not the listing that the folder is named by"),
        (cut_short, InputMissing, "its writing was cut short"),
        (lacking, InputMissing, "vectors.npy is not there"),
    ],
)
def test_an_artefact_that_is_not_whole_is_refused_and_leaves_no_copy(
    store: str, cache: NodeCache, harm: Callable[[str], None], error: type[RecsysBatchError], sentence: str
) -> None:
    location = put(store)
    harm(location)
    with pytest.raises(error, match=sentence) as refused:
        cache.local_copy(location)
    assert "begin a new run (--force)" in str(refused.value)
    assert refused.value.exit_code == (EXIT_MISSING if error is InputMissing else 1)
    assert [path.name for path in Path(cache.folder).iterdir() if not path.name.startswith(".lock")] == []
    remove(location)
    assert (cache.local_copy(put(store)) / "vectors.npy").read_text() == "some vectors", "and what is put there again is found"


def test_a_full_disk_is_told_with_the_setting_to_change(store: str, cache: NodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(location: str, target: Path) -> str:
        target.write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node_cache, "download", full)
    with pytest.raises(RecsysBatchError, match=r"could not be copied to .*paths.node_cache.*No space left"):
        cache.local_copy(put(store))
    assert [path.name for path in Path(cache.folder).iterdir() if not path.name.startswith(".lock")] == []


def test_a_folder_that_others_can_write_is_not_trusted(store: str, cache: NodeCache, tmp_path: Path) -> None:
    Path(cache.folder).mkdir()
    Path(cache.folder).chmod(0o777)
    with pytest.raises(UsageError, match=r"not a folder of this user alone: set paths.node_cache"):
        cache.local_copy(put(store))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="not a folder of this user alone"):
        NodeCache(str(tmp_path / "link")).local_copy(put(store))


def test_what_nobody_used_for_a_week_goes_whatever_its_size(store: str, cache: NodeCache) -> None:
    old, recent = cache.local_copy(put(store, "old")), cache.local_copy(put(store, "recent"))
    idle(cache, old, 8 * 24 * HOUR)
    idle(cache, recent, 6 * 24 * HOUR)
    new = cache.local_copy(put(store, "new"))
    assert [path.exists() for path in (old, recent, new)] == [False, True, True]


def test_a_cache_that_is_too_large_loses_what_was_used_longest_ago_and_nothing_in_use(store: str, cache: NodeCache) -> None:
    half = "x" * 600_000
    copies = [cache.local_copy(put(store, f"{number}{half}")) for number in range(3)]
    assert all(path.exists() for path in copies), "more than it may be, but all in use"
    for path, hours in zip(copies, (6, 30, 5), strict=True):
        idle(cache, path, hours * HOUR)
    fourth = cache.local_copy(put(store, f"4{half}"))
    # Of 2.3 MiB, one MiB may stay: the two that were used longest ago go, and then one more.
    assert [path.exists() for path in (*copies, fourth)] == [False, False, False, True]
    again = cache.local_copy(put(store, f"0{half}"))
    assert again == copies[0] and fourth.exists()


def test_a_copy_that_somebody_took_up_again_is_not_removed(store: str, cache: NodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    old = cache.local_copy(put(store, "old"))
    idle(cache, old, 8 * 24 * HOUR)
    plain = node_cache._remove_idle

    def just_used(folder: Path, path: Path) -> None:
        os.utime(path)
        plain(folder, path)

    monkeypatch.setattr(node_cache, "_remove_idle", just_used)
    cache.local_copy(put(store, "new"))
    assert old.exists()
