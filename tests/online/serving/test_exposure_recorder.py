"""What a server shows ends up in files that ingest reads, and so does what users did."""

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest


@pytest.fixture
def logging_server(make: Any, serve: Any, current: Any, tmp_path: Path) -> Any:
    folder = make()
    current(folder, "first")
    return serve(folder, "--exposures", str(tmp_path / "shown"))


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob(f"{kind}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_answer_is_logged_as_it_was_shown(logging_server: Any, tmp_path: Path) -> None:
    context = {"timestamp": 1_700_000_000, "device": "tv", "session_item_ids": [3], "mood": "good"}
    told = logging_server.rank(5, k=4, context=context, request_id="mine", explain=True)
    unknown = logging_server.rank(10**6, k=2)
    logging_server.process.terminate()
    logging_server.process.wait(20)
    logged = {row["request_id"]: row for row in rows(tmp_path / "shown", "exposures")}
    row = logged["mine"]
    assert (row["user_id"], row["snapshot_id"], row["source"], row["degraded"]) == (5, "first", "ranker", None)
    shown = [(item["item_id"], item["position"], item["candidate_rank"]) for item in row["items"]]
    assert shown == [(item["item_id"], item["rank"], item["candidate_rank"]) for item in told["items"]]
    assert [item["score"] for item in row["items"]] == pytest.approx([item["score"] for item in told["items"]])
    published = in_batch(told)
    assert [item["batch_score"] is not None for item in row["items"]] == published
    assert row["device"] == "tv" and row["session_item_ids"] == [3] and dict(row["attributes"])["mood"] == "good"
    assert logged[unknown["request_id"]]["source"] == "popular" and logged[unknown["request_id"]]["user_id"] == 10**6


def in_batch(told: Any) -> list[bool]:
    return [item["batch_rank"] is not None for item in told["items"]]


def test_feedback_is_taken_checked_and_counted(logging_server: Any, tmp_path: Path, wait_for: Any) -> None:
    events = [{"user_id": 5, "item_id": 7, "event_type": "click", "request_id": "r"}, {"user_id": 5, "item_id": 8, "event_type": "buy"}]
    status, told, _ = logging_server.call("POST", "/v1/feedback", {"events": events})
    assert (status, told) == (202, {"taken": 2})
    wrong = ({"events": []}, {"events": [{"user_id": 5}]}, {"events": [{**events[0], "event_type": ""}]}, {"events": 3}, [])
    for body in (*wrong, {"events": [{**events[0], "timestamp": "never"}]}, {"events": [{**events[0], "weight": 1e40}]}):
        assert logging_server.call("POST", "/v1/feedback", body)[0] == 400
    logging_server.rank(5)

    def recorded() -> bool:
        page = logging_server.call("GET", "/metrics")[1].decode()
        found = dict(re.findall(r'recsys_log_rows_total\{log="(\w+)",outcome="recorded"\} (\S+)', page))
        return found == {"feedback": "2.0", "exposures": "1.0"}

    assert wait_for(recorded)
    logging_server.process.terminate()
    logging_server.process.wait(20)
    logged = rows(tmp_path / "shown", "feedback")
    assert [(row["user_id"], row["item_id"], row["event_type"], row["request_id"]) for row in logged] == [
        (5, 7, "click", "r"),
        (5, 8, "buy", None),
    ]


def test_without_a_folder_nothing_is_taken(shared_server: Any) -> None:
    body = {"events": [{"user_id": 5, "item_id": 7, "event_type": "click"}]}
    status, told, _ = shared_server.call("POST", "/v1/feedback", body)
    assert status == 404 and "--exposures" in told["error"]


def test_swapped_places_are_logged_with_their_propensity(make: Any, serve: Any, current: Any, tmp_path: Path) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder, "--exposures", str(tmp_path / "shown"), "--set", "online.explore=0.5")
    told = {answer["request_id"]: answer for answer in (server.rank(user, k=6, request_id=f"r{user}") for user in range(40))}
    plain = server.rank(3, k=6, explain=True, request_id="explained")
    unknown = server.rank(10**6, k=2, request_id="unknown")
    listed = server.call("GET", "/v1/users/3/topk?k=60")[1]
    server.process.terminate()
    server.process.wait(20)
    logged = {row["request_id"]: row for row in rows(tmp_path / "shown", "exposures")}
    for request_id, answer in told.items():
        items = logged[request_id]["items"]
        assert [item["item_id"] for item in items] == [item["item_id"] for item in answer["items"]]
        assert answer.get("explored", 0) == sum(item["ranker_position"] != item["position"] for item in items)
        assert all(0 < item["propensity"] < 1 for item in items)
        assert logged[request_id]["lists"] == "night"
    assert any("explored" in answer for answer in told.values())
    published = {item["item_id"]: item["rank"] for item in listed["items"]}
    assert [item["batch_position"] for item in logged["r3"]["items"]] == [published.get(item["item_id"]) for item in told["r3"]["items"]]
    for answer in (plain, unknown):
        shown = logged[answer["request_id"]]["items"]
        assert "explored" not in answer
        assert all(item["propensity"] is None and item["ranker_position"] is None for item in shown)
