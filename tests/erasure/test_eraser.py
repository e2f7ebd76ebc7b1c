"""A user who is everywhere is nowhere after an erasure, killed in between or not; what others have stays."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys_batch.cli import run
from recsys_batch.config import Config
from recsys_batch.dataset.popularity import counts_path
from recsys_batch.digest.sent_log import SentLog
from recsys_batch.erasure import data_files, eraser, exposure_files, run_artefacts, run_counts, snapshots, stream_caches, table_history
from recsys_batch.erasure.eraser import Places, erase_users
from recsys_batch.errors import EXIT_MISSING, EXIT_OK, EXIT_USAGE, Busy
from recsys_batch.night.run_locks import erasure_lock, publish_lock, run_date_lock
from recsys_batch.online.snapshot.layout import LMDB_FILE
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.read import current_topk, latest_topk, published_run, read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.storage.artifacts import artifact_root, get_pointer
from recsys_batch.storage.filesystems import read_parquet
from recsys_batch.tables.tombstones import read_tombstones

GONE, RUN = "glutton", "2026-03-01-r1"
Copy = Callable[[Path], Config]
PlacesOf = Callable[[Config], Places]
Traces = Callable[[Path], list[str]]


def tables_of(config: Config) -> dict[str, list[str]]:
    """The others' rows of every table."""
    read = {}
    for name in (name for name in TABLES if (Path(config.paths.warehouse) / name).is_dir()):
        rows = read_table(config.paths.warehouse, name)
        if "user_id" in rows.schema.names:
            rows = rows.filter(pc.not_equal(rows["user_id"], GONE))
        if name == "rejected":
            rows = rows.filter(pc.invert(pc.match_substring(rows["row"], GONE)))
        read[name] = sorted(map(str, rows.to_pylist()))
    return read


def counts_of(config: Config) -> list[dict[str, Any]]:
    rows = read_parquet(counts_path(artifact_root(config.paths.warehouse), RUN))
    return rows.sort_by([("segment", "ascending"), ("item_id", "ascending")]).to_pylist()


def states_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks" and "-lock" not in path.name)
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_user_who_is_everywhere_is_nowhere_after_it(
    copy_everything: Copy, places: PlacesOf, traces: Traces, expected_places: set[str], tmp_path: Path
) -> None:
    config = copy_everything(tmp_path / "all")
    before, popularity = tables_of(config), counts_of(config)
    with_traces = " ".join(traces(tmp_path))
    for part in ("rejected", "_delta_log", "gathered", "changed", LMDB_FILE, "samples.json", "data.mdb", "log/exposures", "sqlite"):
        assert part in with_traces
    report = erase_users(places(config), [GONE])
    assert {place for place, n in report.found.items() if n and not place.startswith("log of")} == expected_places
    assert report.is_done and set(report.left) >= expected_places - {"live overlays"} and report.notes == []
    assert traces(tmp_path) == []
    assert tables_of(config) == before
    lost = sum(row["n"] for row in popularity) - sum(row["n"] for row in counts_of(config))
    assert lost == 87  # positive interactions, each with another item


def test_readers_go_on_with_the_published_run(copy_everything: Copy, places: PlacesOf, tmp_path: Path) -> None:
    config = copy_everything(tmp_path / "all")
    erase_users(places(config), [GONE])
    warehouse, published = config.paths.warehouse, published_run(config.paths.warehouse)
    assert latest_topk(warehouse, user_ids=[GONE]).num_rows == 0 < latest_topk(warehouse, user_ids=["u001"]).num_rows
    assert current_topk(warehouse, user_ids=["u001"])["item_id"].to_pylist() == [20]
    then = read_table(warehouse, "interactions", version=published.input_versions["interactions"])
    assert then.num_rows > 1000 and GONE not in then["user_id"].to_pylist()
    assert SentLog(warehouse, IdTypes("STRING", "BIGINT")).read_digest("d", (None, None))["user_id"].to_pylist() == ["u001"]
    snapshot = open_snapshot(Path(config.online.snapshots) / RUN)
    assert snapshot.lookup(GONE) is None and snapshot.lookup("u001") is not None
    assert len(snapshot.store or ()) == snapshot.manifest.n_users == 152
    assert GONE not in snapshot.samples and "u001" in snapshot.samples
    snapshot.close()


def test_a_dry_run_says_where_rows_are_and_changes_nothing(copy_everything: Copy, places: PlacesOf, tmp_path: Path) -> None:
    config = copy_everything(tmp_path / "all")
    before = states_of(tmp_path)
    report = erase_users(places(config), [GONE], dry_run=True)
    assert (report.found["table interactions"], report.found["table topk_live"], report.found["table rejected"]) == (87, 2, 2)
    assert states_of(tmp_path) == before and read_tombstones(config.paths.warehouse) is None


def test_a_second_time_finds_and_changes_nothing(copy_everything: Copy, places: PlacesOf, tmp_path: Path) -> None:
    config = copy_everything(tmp_path / "all")
    erase_users(places(config), [GONE])
    before = states_of(tmp_path)
    report = erase_users(places(config), [GONE])
    assert not any(report.found.values()) and report.tombstones == 1
    assert states_of(tmp_path) == before


def test_who_was_never_here_gets_a_tombstone(copy_everything: Copy, places: PlacesOf, tmp_path: Path) -> None:
    config = copy_everything(tmp_path / "all")
    report = erase_users(places(config), ["never seen", "nobody"])
    assert not any(report.found.values()) and report.tombstones == 2
    tombstones = read_tombstones(config.paths.warehouse)
    assert tombstones is not None
    assert tombstones.matches(pa.array(["nobody", "u001", None, "never seen"])).to_pylist() == [True, False, False, True]


DYING = [
    (table_history, ("write_without", "remove", "replace_bytes")),
    (run_artefacts, ("write_without", "remove", "set_pointer", "put_folder", "remove_folder", "replace_in_place")),
    (run_counts, ("set_pointer",)),
    (snapshots, ("publish", "write_file", "write_lmdb", "mark_verified", "remove_overlay")),
    (exposure_files, ("replace_in_place",)),
    (data_files, ("publish",)),
    (stream_caches, ("find_stream_caches",)),
    (eraser, ("add_tombstones", "remove", "erase_from_table")),
]


def kill_at(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Raise instead of the n-th of all calls that change a file."""
    calls = 0

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    for module, names in DYING:
        for name in names:
            monkeypatch.setattr(module, name, dying(getattr(module, name)))


@pytest.mark.parametrize("phase", [0, *(pytest.param(phase, marks=pytest.mark.slow) for phase in range(1, 12))])
def test_killed_anywhere_the_same_command_completes(
    copy_everything: Copy, places: PlacesOf, traces: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: int
) -> None:
    whole = copy_everything(tmp_path / "whole")
    before = tables_of(whole)
    erase_users(places(whole), [GONE])
    kills = 0
    for at in range(1 + phase, 1000, 12):
        config = copy_everything(tmp_path / str(at))
        with monkeypatch.context() as patch:
            kill_at(patch, at)
            try:
                erase_users(places(config), [GONE])
            except KeyboardInterrupt:
                kills += 1
            else:
                break
        assert tables_of(config) == before, f"killed at call {at}"
        report = erase_users(places(config), [GONE])
        assert report.is_done and traces(tmp_path / str(at)) == [], f"killed at call {at}"
        assert tables_of(config) == before and counts_of(config) == counts_of(whole), f"killed at call {at}"
        assert len(get_pointer(artifact_root(config.paths.warehouse), RUN, "erased")["users"]) == 1
        open_snapshot(Path(config.online.snapshots) / RUN).close()
    assert kills > 5


def test_it_is_refused_while_a_night_or_a_publish_is_at_work(
    copy_everything: Copy, places: PlacesOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy_everything(tmp_path / "all")
    with run_date_lock(config, dt.date(2026, 3, 9)), pytest.raises(Busy, match="being written by a night, an ingest, a stream"):
        erase_users(places(config), [GONE])
    monkeypatch.setattr("recsys_batch.night.run_locks._CHANGE_SECONDS", 0.1)
    with publish_lock(config), pytest.raises(Busy, match="what readers see is being changed"):
        erase_users(places(config), [GONE])
    with erasure_lock(config), pytest.raises(Busy, match="a user of this warehouse is being erased"), run_date_lock(config, dt.date.min):
        pass
    with run_date_lock(config, dt.date(2026, 3, 9)), run_date_lock(config, dt.date(2026, 3, 8)):
        pass  # nights of two dates go on beside each other


def test_lists_in_redis_need_the_server(copy_everything: Copy, places: PlacesOf, tmp_path: Path) -> None:
    config = copy_everything(tmp_path / "all")
    in_redis = config.model_copy(update={"online": config.online.model_copy(update={"store": "redis"})})
    with pytest.raises(Exception, match="RECSYS_BATCH_REDIS_URL"):
        erase_users(places(in_redis), [GONE])


def test_the_command_reports_in_words_and_json(
    copy_everything: Copy, options: Callable[[Config], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copy_everything(tmp_path / "all")
    online = ["--set", f"online.snapshots={config.online.snapshots}", "--set", f"online.exposures={config.online.exposures}"]
    for path in Path(str(config.online.exposures)).iterdir():
        os.utime(path, (0, 0))  # no server logs there any more, and nothing is waited for
    listed = tmp_path / "ids.txt"
    listed.write_text(f"{GONE}\n\nnobody\n")
    assert run(["erase", *options(config)]) == EXIT_USAGE
    assert "pass --user-id U, or --file" in capsys.readouterr().err
    assert run(["erase", "--file", str(listed), "--dry-run", *options(config), *online]) == EXIT_OK
    assert "would be erased" in capsys.readouterr().out
    assert run(["erase", "--file", str(listed), "--json", *options(config), *online]) == EXIT_OK
    result = json.loads(capsys.readouterr().out)
    assert (result["done"], result["n_users"], result["tombstones"], result["retention_hours"]) == (True, 2, 2, 0)
    assert result["found"]["table interactions"] == 87 and set(result["left"].values()) == {0}
    assert run(["erase", "--user-id", GONE, *options(config), *online]) == EXIT_OK
    told = capsys.readouterr().out
    assert "nothing was found of this user" in told and "at 0 hours" in told and "backups" in told
    with erasure_lock(config):
        assert run(["erase", "--user-id", GONE, *options(config), *online]) == EXIT_MISSING
