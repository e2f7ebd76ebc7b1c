"""What a server shows ends up in files that ingest reads, and so does what users did."""

import asyncio
import json
import os
import re
import signal
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from recsys_batch.dataset.exposure_schema import FEEDBACK, exposure_schema, feedback_schema
from recsys_batch.dataset.log_columns import encode_exposures, encode_feedback
from recsys_batch.dataset.log_rows import decode_rows
from recsys_batch.dataset.log_segments import read_frames
from recsys_batch.online.api.messages import Bounds
from recsys_batch.online.http.endpoints import Endpoints
from recsys_batch.online.http.router import HttpError
from recsys_batch.online.serving.exposure_recorder import ExposureRecorder
from recsys_batch.schemas import IdTypes

NUMBERS = IdTypes("BIGINT", "BIGINT")


@pytest.fixture
def logging_server(make: Any, serve: Any, current: Any, tmp_path: Path) -> Any:
    folder = make()
    current(folder, "first")
    return serve(folder, "--exposures", str(tmp_path / "shown"))


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    arrays = [array for path in sorted(folder.glob(f"{kind}-*.segment")) for array in read_frames(path.read_bytes())[0]]
    logged = [row for array in arrays for row in decode_rows(array, kind)[0]]
    return as_columns(logged, kind) if logged else []


def as_columns(logged: list[Any], kind: str) -> list[dict[str, Any]]:
    if kind == FEEDBACK:
        return encode_feedback(logged, NUMBERS, feedback_schema(NUMBERS)).to_pylist()
    return encode_exposures(logged, NUMBERS, exposure_schema(NUMBERS)).to_pylist()


def log_metrics(server: Any) -> dict[tuple[str, str], float]:
    page = server.call("GET", "/metrics")[1].decode()
    counts = re.findall(r'recsys_log_rows_total\{log="(\w+)",outcome="(\w+)"\} (\S+)', page)
    waiting = re.findall(r'recsys_log_waiting_rows\{log="(\w+)"\} (\S+)', page)
    found = {(log, outcome): float(n) for log, outcome, n in [*counts, *((log, "waiting", n) for log, n in waiting)]}
    return defaultdict(float, found)  # a worker reports its counts within online.poll_ms


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
        found = log_metrics(logging_server)
        return (found["feedback", "recorded"], found["exposures", "recorded"]) == (2.0, 1.0)

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


def test_an_answer_of_which_no_row_can_be_made_is_counted_and_raises_nothing(tmp_path: Path) -> None:
    recorder, nothing = ExposureRecorder(tmp_path, max_mb=1), cast("Any", None)
    recorder.open()
    recorder.record(nothing, nothing, nothing)
    recorder.close()
    stats = recorder.stats()["exposures"]
    assert (stats.recorded, stats.invalid, stats.written) == (1, 1, 0)


@pytest.mark.parametrize(("n_taken", "status"), [(2, 202), (1, 202), (0, 400)], ids=["all", "some", "none"])
def test_feedback_says_how_many_events_were_taken_and_why_not_all(n_taken: int, status: int) -> None:
    recorder = SimpleNamespace(is_enabled=True, record_feedback=lambda _: n_taken)
    endpoints = Endpoints(cast("Any", SimpleNamespace(exposures=recorder)), Bounds(), Path(), Path())
    body = {"events": [{"user_id": 1, "item_id": item, "event_type": "click"} for item in (1, 2)]}
    request = cast("Any", SimpleNamespace(body=json.dumps(body).encode()))
    if status == 400:
        with pytest.raises(HttpError, match="none of 2 events was taken: their values cannot be written to a log"):
            asyncio.run(endpoints.feedback(request))
        return
    answer = asyncio.run(endpoints.feedback(request))
    why = {} if n_taken == 2 else {"refused": 1, "why": "their values cannot be written to a log"}
    assert (answer.status, json.loads(answer.body)) == (202, {"taken": n_taken} | why)


def test_guests_are_logged_as_they_were_named_and_so_is_what_they_did(logging_server: Any, tmp_path: Path, wait_for: Any) -> None:
    logging_server.rank("guest-1", k=3, request_id="r", context={"session_item_ids": ["no item", 3]})
    event = {"user_id": "guest-1", "item_id": 7, "event_type": "click", "request_id": "r"}
    assert logging_server.call("POST", "/v1/feedback", {"events": [event]})[:2] == (202, {"taken": 1})

    def logged() -> list[Any]:
        files = [(path, path.name.partition("-")[0]) for path in sorted((tmp_path / "shown").glob("*.segment"))]
        return [row for path, kind in files for array in read_frames(path.read_bytes())[0] for row in decode_rows(array, kind)[0]]

    assert wait_for(lambda: len(logged()) == 2)
    shown, told = logged()
    assert (shown.user_id, shown.session_item_ids, len(shown.item_ids)) == ("guest-1", ["no item", 3], 3)
    assert (told.user_id, told.item_id) == ("guest-1", 7)


def test_while_the_disk_refuses_answers_go_on_and_feedback_is_refused_whole_once_too_much_waits(
    logging_server: Any, tmp_path: Path, wait_for: Any
) -> None:
    (tmp_path / "shown").rmdir()  # made at the start
    (tmp_path / "shown").write_text("in the way")
    events = [{"user_id": 5, "item_id": item, "event_type": "click", "timestamp": item} for item in range(900)]
    statuses = [logging_server.call("POST", "/v1/feedback", {"events": events})[0] for _ in range(12)]
    assert statuses == [202] * 11 + [503]
    status, told, _ = logging_server.call("POST", "/v1/feedback", {"events": events})
    assert (status, told["error"]) == (503, "none of 900 events was taken: too many wait to be written")
    assert len(logging_server.rank(5, k=2)["items"]) == 2

    def adds_up() -> bool:
        found = log_metrics(logging_server)
        kinds = {log: {outcome: n for (one, outcome), n in found.items() if one == log} for log in ("feedback", "exposures")}
        assert all(n["recorded"] == sum(n.values()) - n["recorded"] for n in kinds.values())
        return kinds["feedback"]["full"] == 1_800 and kinds["feedback"]["waiting"] == 9_900 and kinds["exposures"]["waiting"] == 1

    assert wait_for(adds_up)
    (tmp_path / "shown").unlink()
    assert wait_for(lambda: len(rows(tmp_path / "shown", "feedback")) == 9_900)
    assert wait_for(lambda: len(rows(tmp_path / "shown", "exposures")) == 1)


def test_rows_add_up_and_are_in_files_though_the_worker_is_killed(logging_server: Any, tmp_path: Path, wait_for: Any) -> None:
    for number in range(20):
        logging_server.rank(5, k=2, request_id=str(number))
    assert wait_for(lambda: log_metrics(logging_server)["exposures", "written"] == 20)
    (worker,) = {int(path.name.split("-")[-2]) for path in (tmp_path / "shown").iterdir()}
    os.kill(worker, signal.SIGKILL)

    def answers_again() -> bool:
        try:
            return bool(logging_server.rank(5, k=2, request_id="after")["items"])
        except OSError:
            return False

    assert wait_for(answers_again)
    assert wait_for(lambda: log_metrics(logging_server)["exposures", "written"] >= 21)
    found = log_metrics(logging_server)
    outcomes = ("written", "waiting", "full", "invalid", "lost")
    assert found["exposures", "recorded"] == sum(found["exposures", outcome] for outcome in outcomes)
    logged = [row["request_id"] for row in rows(tmp_path / "shown", "exposures")]
    assert logged[:20] == [str(number) for number in range(20)] and set(logged[20:]) == {"after"}


BIG = 2**70
BIG_NUMBERS: dict[str, dict[str, Any]] = {
    "user_id": {"user_id": BIG},
    "session": {"user_id": 5, "context": {"session_item_ids": [-BIG, 3]}},
    "context": {"user_id": 5, "context": {"n": {"m": BIG}}},
}


def test_numbers_beyond_64_bits_fail_no_answer_and_what_was_taken_is_logged(logging_server: Any, tmp_path: Path, wait_for: Any) -> None:
    bodies = [{**body, "k": 2} for body in BIG_NUMBERS.values()]
    ranked = [logging_server.call("POST", "/v1/rank", body)[0] for body in bodies]
    event = {"user_id": BIG, "item_id": -BIG, "event_type": "click"}
    told = logging_server.call("POST", "/v1/feedback", {"events": [event]})[0]
    assert {*ranked} <= {200, 400} and told in (202, 400)  # strangers, or refused with a sentence
    expected = {"exposures": ranked.count(200), "feedback": int(told == 202)}

    def as_expected() -> bool:
        found = log_metrics(logging_server)
        return {log: found[log, "written"] for log in expected} == expected and not any(found[log, "invalid"] for log in expected)

    assert wait_for(as_expected)
