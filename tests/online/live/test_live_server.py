"""A real server prefers live lists, and goes on answering whatever happens to them."""

import datetime as dt
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.cli import run
from recsys_batch.online.snapshot.live_overlay import overlays_folder

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
NEWCOMER = 4_000_000
STREAM_LISTS = {5: [40, 30, 20, 10], NEWCOMER: [11, 12, 13]}


def children_of(pid: int, module: str) -> list[int]:
    """Processes of that module that a process has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\s+(\d+)", (entry / "status").read_text(), re.MULTILINE)
            command = (entry / "cmdline").read_text()
        except OSError:
            continue
        if parent is not None and int(parent[1]) == pid and module in command:
            found.append(int(entry.name))
    return found


@pytest.fixture
def live_server(live_warehouse: Any, snapshots: Path, serve: Any, current: Callable[[Path, str], None]) -> Any:
    """Answers from the snapshot "first", and follows the warehouse."""
    current(snapshots, "first")
    options = ("--set", "online.live=table", "--set", f"paths.warehouse={live_warehouse.folder}")
    return serve(snapshots, *options, "--set", "online.live_max_lag_seconds=2")


def items_of(server: Any, user: int) -> list[int]:
    return [item["item_id"] for item in server.call("GET", f"/v1/users/{user}/topk")[1]["items"]]


def metric(server: Any, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.call("GET", "/metrics")[1].decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_live_lists_are_preferred_as_they_come_and_say_what_they_know(live_server: Any, live_warehouse: Any, wait_for: Any) -> None:
    night = live_server.rank(5, k=10)
    assert (night["lists"], "events_through" in night) == ("night", False)
    assert live_server.rank(NEWCOMER)["degraded"] == "unknown_user" and live_server.call("GET", f"/v1/users/{NEWCOMER}")[0] == 404
    live_warehouse.refresh(1, STREAM_LISTS, through=NOON)
    wait_for(lambda: live_server.rank(5)["lists"] == "live")
    answer = live_server.rank(5, k=10)
    assert {item["item_id"] for item in answer["items"]} == {10, 20, 30, 40} and answer["source"] == "ranker"
    assert (answer["events_through"], answer["degraded"], answer["snapshot_id"]) == ("2026-03-01T12:00:00Z", None, "first")
    assert items_of(live_server, 5) == [40, 30, 20] and items_of(live_server, NEWCOMER) == [11, 12, 13]
    assert live_server.rank(NEWCOMER)["source"] == "ranker"
    detail = live_server.call("GET", f"/v1/users/{NEWCOMER}")[1]
    assert (detail["lists"], detail["events_through"], detail["modelled"]) == ("live", "2026-03-01T12:00:00Z", True)
    live_warehouse.refresh(2, {5: [1, 2]})
    wait_for(lambda: items_of(live_server, 5) == [1, 2])
    assert live_server.rank(5)["events_through"] is None
    assert (live_server.rank(6)["lists"], len(items_of(live_server, 6))) == ("night", 60)
    assert live_server.call("GET", "/v1/users")[1]["live"] is True
    assert live_server.call("GET", "/readyz")[1]["live"] == "following"
    wait_for(lambda: metric(live_server, 'recsys_rank_lists_total{lists="live"}') >= 3)
    assert metric(live_server, "recsys_live_users") == 2 and metric(live_server, "recsys_live_batches_total") == 2
    assert metric(live_server, "recsys_live_lag_seconds") < 2


def test_other_protocols_rank_the_same_live_list(live_server: Any, live_warehouse: Any, wait_for: Any) -> None:
    live_warehouse.refresh(1, STREAM_LISTS)
    wait_for(lambda: live_server.rank(5)["lists"] == "live")
    body = {"inputs": [{"name": "user_id", "shape": [1], "datatype": "INT64", "data": [5]}]}
    status, told, _ = live_server.call("POST", "/v2/models/recommend/infer", body)
    assert status == 200
    found = next(output["data"] for output in told["outputs"] if output["name"] == "item_id")
    assert found[:4] == [str(item["item_id"]) for item in live_server.rank(5, k=4)["items"]] and not any(found[4:])


def test_a_swap_drops_the_live_lists_of_the_run_before(
    live_server: Any, live_warehouse: Any, snapshots: Path, current: Any, wait_for: Any
) -> None:
    live_warehouse.refresh(1, {5: [40, 30]})
    wait_for(lambda: items_of(live_server, 5) == [40, 30])
    current(snapshots, "second")
    wait_for(lambda: live_server.rank(5)["snapshot_id"] == "second")
    answer = live_server.rank(5)
    assert answer["lists"] == "night" and len(answer["items"]) == 10
    wait_for(lambda: [path.name for path in overlays_folder(snapshots).iterdir()] == ["second"])
    live_warehouse.refresh(2, {5: [7]}, run_id="first")
    live_warehouse.refresh(3, {6: [8]}, run_id="second")
    wait_for(lambda: items_of(live_server, 6) == [8])
    assert live_server.rank(5)["lists"] == "night"


def test_an_overlay_that_is_deleted_or_damaged_costs_freshness_only(
    live_server: Any, live_warehouse: Any, snapshots: Path, wait_for: Any
) -> None:
    overlay = overlays_folder(snapshots) / "first"
    live_warehouse.refresh(1, {5: [40]})
    wait_for(lambda: items_of(live_server, 5) == [40])
    shutil.rmtree(overlay)
    assert live_server.rank(5)["items"]
    live_warehouse.refresh(2, {5: [41]})
    wait_for(lambda: items_of(live_server, 5) == [41])
    worker = live_server.workers()
    follower = children_of(live_server.process.pid, "live.follower")
    os.kill(follower[0], signal.SIGSTOP)
    (overlay / "data.mdb").rename(overlay / "aside")
    (overlay / "data.mdb").write_bytes(b"\xff" * 40_000)
    for _ in range(50):
        assert live_server.rank(5)["items"]
    os.kill(follower[0], signal.SIGCONT)
    live_warehouse.refresh(3, {5: [42]})
    wait_for(lambda: items_of(live_server, 5) == [42])
    assert live_server.workers() == worker


def test_a_follower_that_is_killed_is_started_again_and_misses_nothing(live_server: Any, live_warehouse: Any, wait_for: Any) -> None:
    live_warehouse.refresh(1, {5: [40]})
    wait_for(lambda: items_of(live_server, 5) == [40])
    (before,) = children_of(live_server.process.pid, "live.follower")
    os.kill(before, signal.SIGKILL)
    live_warehouse.refresh(2, {5: [41]})
    assert live_server.rank(5)["lists"] == "live"
    wait_for(lambda: items_of(live_server, 5) == [41])
    (after,) = children_of(live_server.process.pid, "live.follower")
    assert after != before
    live_server.process.send_signal(signal.SIGTERM)
    live_server.process.wait(20)
    wait_for(lambda: not Path(f"/proc/{after}").exists())


def test_a_follower_ends_with_a_server_that_is_killed(live_server: Any, wait_for: Any) -> None:
    (follower,) = wait_for(lambda: children_of(live_server.process.pid, "live.follower"))
    wait_for(lambda: metric(live_server, "recsys_live_lag_seconds") < 0.5 and live_server.rank(5))
    os.kill(live_server.process.pid, signal.SIGKILL)
    live_server.process.wait(20)
    wait_for(lambda: not Path(f"/proc/{follower}").exists())


def test_a_follower_that_cannot_follow_is_told_and_the_nights_lists_are_answered(
    snapshots: Path, serve: Any, current: Any, tmp_path: Path, wait_for: Any
) -> None:
    current(snapshots, "first")
    options = ("online.live=table", f"paths.warehouse={tmp_path / 'another'}", "online.live_max_lag_seconds=0.5")
    server = serve(snapshots, *(part for option in options for part in ("--set", option)))
    wait_for(lambda: server.call("GET", "/readyz")[1]["live"] == "behind")
    answer = server.rank(5)
    assert (answer["lists"], answer["degraded"], server.call("GET", "/readyz")[0]) == ("night", None, 200)
    wait_for(lambda: metric(server, "recsys_live_lag_seconds") > 0.5)
    log = next(tmp_path.glob("serve-*.log"))
    wait_for(lambda: "following live lists failed" in log.read_text() and "has no run first" in log.read_text())


def test_a_live_list_is_stale_by_its_own_age_and_not_by_the_nights(
    live_warehouse: Any, snapshots: Path, serve: Any, current: Any, wait_for: Any
) -> None:
    current(snapshots, "first")
    server = serve(
        snapshots,
        *("--set", "online.live=table", "--set", f"paths.warehouse={live_warehouse.folder}"),
        *("--set", "online.max_age_hours=0.0006"),  # two seconds
    )
    wait_for(lambda: server.rank(5)["degraded"] == "stale_snapshot")
    live_warehouse.refresh(1, {5: [40]})
    fresh = wait_for(lambda: (answer := server.rank(5))["lists"] == "live" and answer)
    assert fresh["degraded"] is None and server.rank(6)["degraded"] == "stale_snapshot"
    wait_for(lambda: server.rank(5)["degraded"] == "stale_snapshot")


def test_without_what_reads_tables_serve_ends_with_2_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["serve", "--snapshots", str(tmp_path), "--set", "online.live=table"]) == 2
    assert "pip install 'recsys-batch[online,read]'" in capsys.readouterr().err
