"""The batch that an application appended last is found in the log, among commits of others."""

from pathlib import Path

import pyarrow as pa
from deltalake import CommitProperties, write_deltalake

from recsys_batch.tables.delta_log import batch_metadata, find_last_batch, iterate_commits


def append(folder: Path, metadata: str | None) -> None:
    properties = None if metadata is None else CommitProperties(custom_metadata={"userMetadata": metadata})
    write_deltalake(str(folder), pa.table({"n": [1]}), mode="append", commit_properties=properties)


def test_the_newest_batch_of_an_application_is_found_behind_others_commits(tmp_path: Path) -> None:
    append(tmp_path, None)
    assert find_last_batch(str(tmp_path), "ours") is None
    for number in (6, 7):
        append(tmp_path, batch_metadata("ours", number))
    append(tmp_path, batch_metadata("theirs", 9))
    append(tmp_path, "nightly of 2026-03-01")
    for _ in range(120):  # more than one look at the log
        append(tmp_path, None)
    assert find_last_batch(str(tmp_path), "ours") == 7
    assert find_last_batch(str(tmp_path), "theirs") == 9
    assert find_last_batch(str(tmp_path), "nobody's") is None


def test_commits_have_their_own_versions_though_others_came_since(tmp_path: Path) -> None:
    for number in range(6):
        append(tmp_path, batch_metadata("ours", number))
    told = [(commit["version"], commit["userMetadata"]) for commit in iterate_commits(str(tmp_path), 3)]
    assert told == [(version, batch_metadata("ours", version)) for version in (3, 2, 1, 0)]
    (tmp_path / "_delta_log" / f"{1:020d}.json").unlink()  # as a log is cleaned up
    assert [commit["version"] for commit in iterate_commits(str(tmp_path), 5)] == [5, 4, 3, 2]
