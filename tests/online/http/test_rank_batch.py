"""POST /v1/rank:batch gives each of its requests what it would get alone, from few runs of the model; and lists that callers bring."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_batch.dataset.log_rows import Exposure, decode_rows
from recsys_batch.dataset.log_segments import read_frames
from recsys_batch.online import metrics
from recsys_batch.online.serving.admission import Admission
from recsys_batch.online.snapshot.user_record import UserRecord
from tests.online.http.test_openapi import Server

GIVEN: dict[str, Any] = {"user_id": 5, "k": 3, "candidate_item_ids": [9, "x", 2, 9, "400"], "candidate_scores": [5, 4, 3, 2, 1]}
PLAIN_FIELDS = ["user_id", "items", "source", "degraded", "snapshot_id", "model_version", "request_id", "timings_ms", "lists"]
"""Of an answer whose candidates were retrieved."""


@pytest.fixture
def make_server(make: Any, current: Any, tmp_path: Path) -> Callable[..., Server]:
    current(folder := make(), "first")
    return lambda **options: Server(folder, tmp_path, **{"max_body_bytes": 100_000, **options})


def use(server: Server, body: Callable[[], Any]) -> Any:
    """Run a coroutine with a snapshot in use, and end the log."""

    async def run() -> Any:
        await server.live.poll()
        assert server.live.current is not None
        server.recorder.open()
        metrics.tally._counts = {}
        try:
            return await body()
        finally:
            server.recorder.close()

    return asyncio.run(run())


async def ask(server: Server, requests: list[Any]) -> list[Any]:
    status, told = await server.answer("POST", "/v1/rank:batch", {"requests": requests})
    assert status == 200, told
    answers: list[Any] = told["answers"]
    return answers


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("timings_ms", "request_id")}


def logged(folder: Path) -> list[Exposure]:
    files = sorted((folder / "exposures").glob("exposures-*.segment"))
    return [row for path in files for array in read_frames(path.read_bytes())[0] for row in decode_rows(array, "exposures")[0]]


def test_a_list_that_the_caller_brings_is_ranked_and_said_so_and_other_answers_have_the_fields_that_they_had(
    make_server: Any, tmp_path: Path
) -> None:
    server = make_server()

    async def both() -> Any:
        return [await server.answer("POST", "/v1/rank", body) for body in (GIVEN, {"user_id": 5, "k": 3})]

    (status, listed), (_, plain) = use(server, both)
    assert (status, listed["source"], listed["degraded"], listed["candidates"]) == (200, "ranker", None, "request")
    assert listed["unknown_item_ids"] == ["x"]
    assert {item["item_id"]: item["candidate_rank"] for item in listed["items"]} == {9: 1, 2: 3, 400: 5}
    assert list(plain) == PLAIN_FIELDS and list(listed) == [*PLAIN_FIELDS, "candidates", "unknown_item_ids"]
    rows = {row.candidates: row for row in logged(tmp_path)}
    assert set(rows) == {"request", "retrieved"} and rows["retrieved"].candidate_scores is None
    shown = dict(zip(rows["request"].item_ids, rows["request"].candidate_scores or (), strict=True))
    assert (shown, rows["request"].propensities) == ({9: 5.0, 2: 3.0, 400: 1.0}, None)
    counts = metrics.tally._counts
    assert counts["request_lists", "ranker"] == 1 and counts["answers", "ranker"] == 2


def test_each_request_of_a_batch_is_answered_logged_and_counted_as_if_it_were_alone(make_server: Any, tmp_path: Path) -> None:
    server = make_server()
    requests = [GIVEN, {"user_id": 10**6, "k": 2}, {"k": 3}, {"user_id": 5, "k": 3}, "x", {"user_id": 7, "explain": True}]

    async def together_and_alone() -> Any:
        answers = await ask(server, requests)
        n_counted = {key: n for key, n in metrics.tally._counts.items() if key[0] in ("answers", "request_lists", "requests")}
        return answers, [await server.answer("POST", "/v1/rank", request) for request in requests], n_counted

    answers, alone, counted = use(server, together_and_alone)
    for answer, (status, expected) in zip(answers, alone, strict=True):
        assert answer == {**expected, "status": 400} if status == 400 else without_times(answer) == without_times(expected)
    assert [answer.get("status") for answer in answers] == [None, None, 400, None, 400, None]
    assert len({answer["request_id"] for answer in answers if "items" in answer}) == 4
    assert counted == {
        ("answers", "ranker"): 3,
        ("answers", "popular"): 1,
        ("request_lists", "ranker"): 1,
        ("requests", "/v1/rank:batch", "200"): 1,
    }
    rows = logged(tmp_path)
    assert [row.user_id for row in rows[:4]] == [5, 10**6, 5, 7] and [row.candidates for row in rows[:4]] == ["request", *["retrieved"] * 3]


def test_the_model_runs_on_blocks_and_no_more_places_of_the_queue_are_taken_than_requests_are_ranked_at_a_time(make_server: Any) -> None:
    server = make_server(max_waiting=32)
    blocks: list[tuple[int, int]] = []

    async def run() -> Any:
        snapshot = server.live.current.snapshot
        ranker = snapshot.ranker

        class Spy:
            def score(self, users: np.ndarray, items: np.ndarray, features: np.ndarray) -> np.ndarray:
                blocks.append((len(users), server.app._admission.waiting))
                return np.asarray(ranker.score(users, items, features))

        snapshot.ranker = Spy()
        return await ask(server, [{"user_id": user} for user in range(40)])

    assert len(use(server, run)) == 40 and server.app._admission.waiting == 0
    assert blocks == [(16, 16), (16, 16), (8, 16)]


@pytest.mark.parametrize(("waiting", "status"), [(4, 200), (5, 503), (0, 200)])
def test_a_batch_that_finds_too_many_waiting_is_refused_as_a_whole(make_server: Any, waiting: int, status: int) -> None:
    server = make_server(max_waiting=8)

    async def run() -> Any:
        server.app._admission.waiting = waiting
        return await server.answer("POST", "/v1/rank:batch", {"requests": [{"user_id": 1}] * (4 if waiting else 64)})

    found, told = use(server, run)
    assert found == status and ("error" in told) == (status == 503)
    assert server.app._admission.waiting == waiting


def test_one_users_damaged_record_is_its_own(make_server: Any) -> None:
    server = make_server()

    async def run() -> Any:
        loaded = server.live.current
        lookup, get = loaded.lookup_here, loaded.snapshot.store.get
        torn, narrow = loaded.snapshot.key(1), 2

        def look_up(user_id: int) -> UserRecord:
            record = lookup(user_id)
            return replace(record, embedding=record.embedding[:3]) if user_id == narrow else record

        loaded.lookup_here = look_up
        loaded.snapshot.store.get = lambda key: get(key)[:20] if key == torn else get(key)
        return await ask(server, [{**GIVEN, "user_id": user} for user in (0, 1, narrow, 3)])

    answers = use(server, run)
    assert [answer.get("status") for answer in answers] == [None, 409, 500, None]
    assert "record" in answers[1]["error"] and len(answers[0]["items"]) == len(answers[3]["items"]) == 3


def test_a_batch_may_be_larger_than_a_request_up_to_its_own_bound(make_server: Any) -> None:
    server = make_server(max_body_bytes=500, max_batch_bytes=2_000)
    body = json.dumps({"requests": [{"user_id": 1}]}).encode()

    async def run() -> Any:
        server.app._large_bodies = Admission(2_000)
        return [await server.status("POST", "/v1/rank:batch", body + b" " * (n - len(body))) for n in (2_000, 2_001)]

    assert use(server, run) == [200, 413]
