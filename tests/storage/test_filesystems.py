"""The same few functions do the same on a path, in a store, and in S3; what is no such place is refused by name."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_batch.errors import EXIT_USAGE, UsageError
from recsys_batch.storage.filesystems import (
    absolute,
    basename,
    download,
    exists,
    file_sizes,
    is_remote,
    join,
    list_entries,
    parquet_file,
    read_bytes,
    read_parquet,
    remove,
    storage_options,
    upload,
    write_bytes,
)


@pytest.fixture(params=["path", "store", "bucket", pytest.param("hdfs_folder", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of each kind."""
    if request.param == "path":
        return str(tmp_path / "place")
    return join(request.getfixturevalue(request.param), "place")


@pytest.mark.parametrize("location", ["gs://bucket/recs", "abfss://c@account.dfs.core.windows.net/recs", "dbfs:/recs"])
def test_a_store_that_is_not_supported_is_refused_with_what_is(location: str) -> None:
    scheme = location.partition(":")[0]
    with pytest.raises(UsageError, match=rf"{scheme}:// is not supported; supported are a mounted path .* and hdfs://, s3a://") as refused:
        is_remote(location)
    assert refused.value.exit_code == EXIT_USAGE


def test_s3_is_told_what_it_is_called_here_and_a_bucket_has_a_name() -> None:
    with pytest.raises(UsageError, match="write s3a:// for S3"):
        absolute("s3://bucket/recs")
    with pytest.raises(UsageError, match="names no bucket or name node"):
        absolute("s3a:///recs")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("file:///mnt/a%20b/", "/mnt/a b"),
        ("file:/mnt/recs", "/mnt/recs"),
        ("/mnt/recs/", "/mnt/recs"),
        ("s3a://bucket/recs/", "s3a://bucket/recs"),
        ("s3a://bucket", "s3a://bucket"),
    ],
)
def test_a_place_has_one_name(location: str, expected: str) -> None:
    assert absolute(location) == expected
    assert absolute(expected) == expected


def test_a_relative_path_is_one_of_this_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("data/warehouse") == str(tmp_path / "data" / "warehouse")
    assert not is_remote("data/warehouse")


def test_files_are_written_read_listed_and_removed(place: str, tmp_path: Path) -> None:
    assert not exists(place)
    assert list_entries(place) == []
    write_bytes(join(place, "a", "one.gz"), b"not compressed")
    write_bytes(join(place, "a", "two"), b"22")
    write_bytes(join(place, "b.json"), b"{}")
    assert exists(join(place, "a")) and exists(join(place, "a", "two")) and not exists(join(place, "a", "tw"))
    assert [(entry.name, entry.is_folder, entry.n_bytes) for entry in list_entries(place)] == [("a", True, 0), ("b.json", False, 2)]
    everything = {entry.location: entry for entry in list_entries(place, recursive=True)}
    assert set(everything) == {join(place, *names) for names in (("a",), ("a", "one.gz"), ("a", "two"), ("b.json",))}
    written = everything[join(place, "a", "two")].modified
    assert written is not None and abs(written.timestamp() - dt.datetime.now(dt.UTC).timestamp()) < 60
    assert read_bytes(join(place, "a", "one.gz")) == b"not compressed"
    assert file_sizes(place, ["a/two", "a/none", "b.json"]) == {"a/two": 2, "b.json": 2}
    write_bytes(join(place, "b.json"), b"[1]")
    assert read_bytes(join(place, "b.json")) == b"[1]"
    for gone in (join(place, "a"), join(place, "b.json"), join(place, "never was")):
        remove(gone)
        assert not exists(gone)
    with pytest.raises(FileNotFoundError):
        read_bytes(join(place, "b.json"))
    assert basename(join(place, "a", "two")) == "two"


def test_a_copy_there_and_back_is_the_same_file(place: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000
    (tmp_path / "source").write_bytes(content)
    upload(tmp_path / "source", join(place, "deep", "copy"))
    assert len(download(join(place, "deep", "copy"), tmp_path / "back")) == 64
    assert (tmp_path / "back").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        download(join(place, "nothing"), tmp_path / "nothing")


def test_parquet_is_read_whole_or_by_row_groups(place: str, tmp_path: Path) -> None:
    table = pa.table({"user_id": pa.array(range(1_000)), "score": pa.array([0.5] * 1_000, pa.float32())})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=300)
    # A folder's name is no column.
    location = join(place, "run_id=r1", "rows.parquet")
    upload(tmp_path / "rows.parquet", location)
    assert read_parquet(location, ["user_id"]) == table.select(["user_id"])
    assert read_parquet(join(place, "run_id=r1")) == table
    with parquet_file(location) as file:
        assert file.read_row_group(1)["user_id"].to_pylist() == list(range(300, 600))


def test_deltalake_is_told_the_endpoint_and_nothing_of_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert storage_options("s3a://bucket/recs") == {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_ALLOW_HTTP": "true"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://store.internal")
    assert storage_options("s3a://bucket/recs") == {"AWS_ENDPOINT_URL": "https://store.internal", "AWS_ALLOW_HTTP": "false"}
    assert storage_options("/mnt/recs") is None
