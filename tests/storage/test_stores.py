"""Kinds of stores: which there are, what their refusals are called, and that in HDFS a file is whole or not there."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from recsys_batch import cli
from recsys_batch.errors import UsageError
from recsys_batch.storage import filesystems
from recsys_batch.storage.filesystems import join, list_entries, read_bytes, storage_options, write_bytes
from recsys_batch.storage.stores import STORES, explain_refusal, find_store

slow = pytest.mark.slow


def test_a_location_tells_its_kind_of_store_and_a_path_has_none() -> None:
    assert find_store("HDFS://node:8020/recs") is find_store("hdfs://node/recs") is STORES["hdfs"]
    assert find_store("/mnt/recs") is find_store("file:///mnt/recs") is None
    with pytest.raises(UsageError, match=r"expected hdfs://NAMENODE:PORT/FOLDER"):
        find_store("hdfs:///recs")
    for location in ("gs://bucket/recs", "abfss://container@account.dfs.core.windows.net/recs"):
        with pytest.raises(UsageError, match=r":// is not supported; .* hdfs://, s3a:// \(.* untested: mount it"):
            find_store(location)


def test_deltalake_finds_hdfs_by_itself() -> None:
    assert storage_options("hdfs://node:8020/recs") == {}


def test_without_the_client_hdfs_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdfs_native.fsspec", None)
    with pytest.raises(UsageError, match=r"hdfs://node:1 needs hdfs_native.*pip install 'recsys-batch\[hdfs\]'"):
        read_bytes("hdfs://node:1/recs/file")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("When reading: AWS Error NO_SUCH_BUCKET during HeadObject", "the bucket does not exist"),
        ("<Code>AccessDenied</Code>", "refused this process's credentials or rights: see AWS_ACCESS_KEY_ID"),
        ("division by zero", None),
    ],
)
def test_a_refusal_is_explained_and_nothing_else_is(text: str, said: str | None) -> None:
    explained = explain_refusal(text)
    assert explained is None if said is None else said in (explained or "")


def test_the_command_line_explains_a_refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(**options: Any) -> None:
        raise OSError("AWS Error NO_SUCH_BUCKET during HeadObject operation: no message")

    monkeypatch.setattr(cli.group, "main", refuse)
    assert cli.run(["status"]) == 1
    assert "error: the bucket does not exist: make it first" in capsys.readouterr().err


@slow
def test_in_hdfs_a_file_that_is_being_written_is_not_seen_under_its_name(hdfs_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    location = join(hdfs_folder, "pointer.json")
    write_bytes(location, b"old")
    with filesystems._open_whole(location) as stream:
        stream.write(b"half")
        assert read_bytes(location) == b"old"
    assert read_bytes(location) == b"half"

    with pytest.raises(ZeroDivisionError), filesystems._open_whole(location) as stream:
        stream.write(b"never")
        _ = 1 / 0
    assert read_bytes(location) == b"half"
    assert [entry.name for entry in list_entries(hdfs_folder)] == ["pointer.json"]


@contextmanager
def _quota(hdfs: Any, folder: str) -> Iterator[None]:
    hdfs.administer("-setSpaceQuota", "1m", folder)
    yield
    hdfs.administer("-clrSpaceQuota", folder)


@contextmanager
def _read_only(hdfs: Any, folder: str) -> Iterator[None]:
    hdfs.administer("-safemode", "enter")
    yield
    hdfs.administer("-safemode", "leave")


@contextmanager
def _as_another_user(hdfs: Any, folder: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HADOOP_USER_NAME", "another")
        yield


@slow
@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (_quota, "quota of {folder} in HDFS is used up"),
        (_read_only, "HDFS is read-only now (safe mode), at {folder}"),
        (_as_another_user, "HDFS allows another no WRITE on {folder}"),
    ],
)
def test_in_hdfs_what_is_refused_is_explained_and_afterwards_all_is_as_before(hdfs: Any, hdfs_folder: str, happens: Any, said: str) -> None:
    table, file = join(hdfs_folder, "table"), join(hdfs_folder, "file")
    rows = pa.table({"x": range(1_000)})
    write_deltalake(table, rows, storage_options={})
    write_bytes(file, b"old")
    inside = hdfs_folder.removeprefix(hdfs.location)
    with happens(hdfs, inside):
        for write in (lambda: write_deltalake(table, rows, mode="append"), lambda: write_bytes(file, b"new")):
            with pytest.raises(Exception) as refused:
                write()
            assert said.format(folder=inside) in str(explain_refusal(str(refused.value)))
    assert [entry.name for entry in list_entries(hdfs_folder)] == ["file", "table"]
    assert read_bytes(file) == b"old" and DeltaTable(table).version() == 0
    write_bytes(file, b"new")
    assert read_bytes(file) == b"new"


@slow
def test_in_hdfs_a_read_waits_for_a_name_node_that_is_being_started_again(hdfs: Any, hdfs_folder: str) -> None:
    write_bytes(join(hdfs_folder, "file"), b"content")
    hdfs.stop()
    hdfs.start()
    assert read_bytes(join(hdfs_folder, "file")) == b"content"
    write_bytes(join(hdfs_folder, "other"), b"content")
