"""A user goes from every version of a table and from its log; the other rows stay in every version, also while it is being done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

from recsys_batch.erasure import table_history
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.erasure.table_history import erase_from_table, find_in_table
from recsys_batch.storage import filesystems

GONE = "erase-me-4711"
USERS = ErasedUsers(frozenset([GONE]))
N_VERSIONS = 7


def rows(*users: Any, item: int = 1) -> pa.Table:
    names = ["user_id", "item_id", "row"]
    return pa.table([list(users), [item] * len(users), [json.dumps({"user_id": user}) for user in users]], names=names)


def make_table(folder: Path, name: Callable[[str], Any] = str, gone: Any = GONE) -> Path:
    """Seven versions: files with the user alone, at their edge and between; compactions, a deletion, a checkpoint, a log cut off."""
    path, note = str(folder), CommitProperties(custom_metadata={"userMetadata": "ours"})
    configuration = {"delta.checkpointPolicy": "classic"}
    write_deltalake(path, rows(name("1"), gone, name("9")), commit_properties=note, configuration=configuration)
    write_deltalake(path, rows(gone, item=2), mode="append")
    write_deltalake(path, rows(name("3"), gone, item=3), mode="append")
    DeltaTable(path).optimize.compact()
    write_deltalake(path, rows(gone, name("8"), item=4), mode="append")
    table = DeltaTable(path)
    table.create_checkpoint()
    for version in range(4):
        (folder / "_delta_log" / f"{version:020d}.json").unlink()
    write_deltalake(path, rows(name("4"), gone, item=5), mode="append")
    DeltaTable(path).optimize.compact()
    sums = {"allFiles": [{"path": "one", "stats": json.dumps({"minValues": {"user_id": gone}})}]}
    (folder / "_delta_log" / f"{6:020d}.crc").write_text(json.dumps(sums))
    (folder / "_delta_log" / f".{6:020d}.json.crc").write_bytes(b"sums of Hadoop")
    return folder


def versions_of(folder: Path, gone: Any = GONE) -> list[list[dict[str, Any]]]:
    """The other users' rows of every version that can be read."""
    read = []
    for version in range(4, N_VERSIONS):
        table = DeltaTable(str(folder), version=version).to_pyarrow_table()
        read.append(
            table.filter(pc.not_equal(table["user_id"], gone)).sort_by([("item_id", "ascending"), ("user_id", "ascending")]).to_pylist()
        )
    return read


def traces(folder: Path, gone: Any = GONE) -> list[str]:
    """Files in which the user's bytes are, and Parquet files with a value that has them."""
    text, found = str(gone).encode(), []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if isinstance(gone, str) and text in path.read_bytes():
            found.append(str(path))
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            found += [f"{path}: {column}" for column in table.schema.names if str(gone) in str(table[column].to_pylist())]
        elif isinstance(gone, int) and str(gone) in path.read_text():
            found.append(str(path))
    return found


@pytest.mark.parametrize(("name", "gone"), [(str, GONE), (int, 123_456_789_012)])
def test_a_user_goes_from_all_versions_and_the_log_and_others_stay_in_each(tmp_path: Path, name: Callable[[str], Any], gone: Any) -> None:
    folder, users = make_table(tmp_path / "table", name, gone), ErasedUsers(frozenset([str(gone)]))
    before, newest = versions_of(folder, gone), DeltaTable(str(folder)).version()
    assert len(traces(folder, gone)) > 5 and find_in_table(str(folder), users).rows > 5
    erase_from_table(str(folder), users)
    assert traces(folder, gone) == []
    assert find_in_table(str(folder), users) == table_history.ErasedTable(0, 0, 0)
    assert versions_of(folder, gone) == before
    assert DeltaTable(str(folder)).version() == newest
    assert [DeltaTable(str(folder), version=version).to_pyarrow_table()["user_id"].to_pylist().count(gone) for version in (4, 5, 6)] == [
        0
    ] * 3


def test_statistics_are_those_of_the_rows_that_stay(tmp_path: Path) -> None:
    folder = make_table(tmp_path / "table")
    erase_from_table(str(folder), USERS)
    for version in range(4, N_VERSIONS):
        for action in pa.table(DeltaTable(str(folder), version=version).get_add_actions(flatten=True)).to_pylist():
            read, path = pq.read_table(folder / action["path"]), folder / action["path"]
            assert action["num_records"] == read.num_rows and action["size_bytes"] == path.stat().st_size
            bounds = pc.min_max(read["user_id"]).as_py()
            assert (action["min.user_id"], action["max.user_id"]) == (bounds["min"], bounds["max"])
            assert action["null_count.user_id"] == 0


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    folder = make_table(tmp_path / "table")
    erase_from_table(str(folder), USERS)
    state = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    erase_from_table(str(folder), USERS)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()} == state


def test_killed_anywhere_every_version_has_the_others_rows_and_the_next_time_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_table(tmp_path / "original")
    before, n_calls = versions_of(original), 0

    def dying(function: Any, at: int) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal n_calls
            n_calls += 1
            if n_calls == at:
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    kills = 0
    for at in range(1, 100):
        folder = Path(shutil.copytree(original, tmp_path / str(at)))
        n_calls = 0
        with monkeypatch.context() as patch:
            for name in ("write_without", "remove", "replace_bytes"):
                patch.setattr(table_history, name, dying(getattr(table_history, name), at))
            try:
                erase_from_table(str(folder), USERS)
            except KeyboardInterrupt:
                kills += 1
            else:
                break
        assert versions_of(folder) == before, f"killed at {at}"
        erase_from_table(str(folder), USERS)
        assert traces(folder) == [] and versions_of(folder) == before
    assert kills > 15


def test_rows_that_a_later_user_is_erased_from_are_rewritten_again(tmp_path: Path) -> None:
    folder = make_table(tmp_path / "table")
    erase_from_table(str(folder), USERS)
    erase_from_table(str(folder), ErasedUsers(frozenset(["3", "9"])))
    left = {
        user
        for version in range(4, N_VERSIONS)
        for user in DeltaTable(str(folder), version=version).to_pyarrow_table()["user_id"].to_pylist()
    }
    assert left == {"1", "8", "4"}


def test_bounds_of_files_that_are_gone_say_nothing_any_more_and_others_keep_theirs(tmp_path: Path) -> None:
    folder = make_table(tmp_path / "table")
    newest = DeltaTable(str(folder))
    newest.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    erase_from_table(str(folder), USERS)
    assert traces(folder) == []
    assert sorted(DeltaTable(str(folder)).to_pyarrow_table()["user_id"].to_pylist()) == ["1", "3", "4", "8", "9"]


def test_an_item_with_the_number_of_the_user_is_left_alone(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path), pa.table({"user_id": [5, 6], "item_id": [7, 7]}))
    before = (tmp_path / "_delta_log" / f"{0:020d}.json").read_bytes()
    erase_from_table(str(tmp_path), ErasedUsers(frozenset(["7"])))
    assert (tmp_path / "_delta_log" / f"{0:020d}.json").read_bytes() == before
    assert DeltaTable(str(tmp_path)).to_pyarrow_table().num_rows == 2


def test_raw_rows_go_by_the_value_that_names_the_user(tmp_path: Path) -> None:
    texts = [
        '{"user_id":"7","rating":"x"}',
        '{"user_id":"8","rating":"7"}',
        '{"_line":"7,1,2,3"}',
        '{"_line":"77;1"}',
        '{"cust":7}',
        "7\t1",
    ]
    texts.append('{"topic":"t","value":"{\\"user_id\\": 7, \\"item_id\\": 1}"}')
    write_deltalake(str(tmp_path), pa.table({"row": texts}))
    erase_from_table(str(tmp_path), ErasedUsers(frozenset(["7"])))
    assert DeltaTable(str(tmp_path)).to_pyarrow_table()["row"].to_pylist() == [texts[1], texts[3]]


def test_a_table_in_a_store_is_erased_alike(tmp_path: Path, store: str) -> None:
    folder = make_table(tmp_path / "store" / "bucket" / "table")
    before = versions_of(folder)
    assert filesystems.is_remote(store)
    erase_from_table(f"{store}/table", USERS)
    assert traces(folder) == [] and versions_of(folder) == before
