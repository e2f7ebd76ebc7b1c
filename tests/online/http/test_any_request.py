"""Whatever is asked, and however it is spelled: an answer, or a sentence that says what was wrong; never a fault of the server's."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.snapshot.repository import set_current
from tests.online.http.test_openapi import ADMIN, Server

Ask = Callable[[str, str, bytes], tuple[int, Any]]
MAX_ERROR_BYTES = 7_000
"""A thousand characters, escaped."""


@pytest.fixture(scope="module", params=[True, False], ids=["with a log", "without"])
def ask(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ranker: bytes) -> Iterator[Ask]:
    """Asks one application around a real snapshot."""
    folder: Path = tmp_path_factory.mktemp("any")
    make_snapshot(folder / "snapshots", snapshot_id="first", users=20, items=60, dim=16, candidates=30, ranker=ranker)
    set_current(folder / "snapshots", "first")
    loop = asyncio.new_event_loop()
    server = Server(folder / "snapshots", folder, log=request.param, max_body_bytes=10_000_000)
    loop.run_until_complete(server.live.poll())
    assert server.live.current is not None
    server.recorder.open()
    yield lambda method, path, body: loop.run_until_complete(server.answer(method, path, body, ADMIN))
    server.recorder.close()
    loop.close()


def check(answer: tuple[int, Any]) -> None:
    status, told = answer
    assert status in (200, 202, 400, 404, 405, 413), told
    if status >= 400:
        assert told["error"] and len(json.dumps(told)) < MAX_ERROR_BYTES


LARGE = st.sampled_from([str(2**63), str(-(2**63) - 1), str(2**64), "1" + "0" * 30, "1" + "0" * 400, "9" * 4300, "9" * 4301])
NUMBERS = (
    st.integers().map(str)
    | LARGE
    | st.floats().map(json.dumps)
    | st.sampled_from(["1e400", "-1e400", "1e-400", "-0", "0.1e1", "1E999999999", "01", "1.", ".5"])
)
ODD_TEXTS = [r'"\ud800"', r'"\udfff\ud800"', r'"\u0000"', '"5"', '"-0"', '"' + "x" * 70_000 + '"']
TEXTS = st.text(max_size=8).map(json.dumps) | st.sampled_from(ODD_TEXTS)
SCALARS = st.sampled_from(["null", "true", "false"]) | NUMBERS | TEXTS
DEEP = st.sampled_from([1, 2, 50, 500, *range(900, 1000, 7), 5000]).flatmap(
    lambda depth: st.sampled_from(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
)
JSON = st.recursive(
    SCALARS | DEEP,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
        | st.lists(st.tuples(TEXTS, inner), max_size=3).map(lambda pairs: "{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}")
    ),
    max_leaves=5,
)
"""Text of JSON, right or almost."""
LISTS = st.lists(SCALARS, max_size=4).map(lambda ids: f"[{','.join(ids)}]") | JSON


def objects(**fields: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields).map(lambda made: "{" + ",".join(f'"{name}":{made[name]}' for name in made) + "}")


CONTEXT = objects(timestamp=JSON, session_item_ids=LISTS, device=JSON, segment=JSON, mood=JSON)
RANK = objects(
    k=st.just("3") | NUMBERS, context=CONTEXT | JSON, exclude_item_ids=LISTS, filters=objects(categories=LISTS) | JSON, deadline_ms=NUMBERS,
    explain=st.sampled_from(["true", "false"]), request_id=TEXTS, candidate_item_ids=LISTS, candidate_scores=LISTS,
)  # fmt: skip
EVENT = objects(event_type=TEXTS, request_id=TEXTS, timestamp=JSON, weight=NUMBERS)


@settings(max_examples=120, deadline=None)
@given(SCALARS, RANK)
@example("1" + "0" * 4299, '{"context":{"mood":[' + "1" + "0" * 4299 + "]}}")
@example("5", '{"context":{"mood":' + "[" * 970 + "]" * 970 + "}}")
@example("5", '{"' + "x" * 5_000_000 + '":1}')
def test_no_body_of_rank_is_a_fault_of_the_servers(ask: Ask, user_id: str, rest: str) -> None:
    check(ask("POST", "/v1/rank", ('{"user_id":' + user_id + "," + rest[1:]).replace(",}", "}").encode(errors="replace")))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(SCALARS, RANK).map(lambda each: '{"user_id":' + each[0] + "," + each[1][1:]) | JSON, max_size=4))
def test_no_body_of_a_batch_is_a_fault_of_the_servers(ask: Ask, requests: list[str]) -> None:
    body = '{"requests":[' + ",".join(requests).replace(",}", "}") + "]}"
    check(answer := ask("POST", "/v1/rank:batch", body.encode(errors="replace")))
    for each in answer[1].get("answers", ()):
        assert "items" in each or (each["status"] == 400 and each["error"]), each


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(SCALARS, SCALARS, EVENT), min_size=1, max_size=3))
def test_no_body_of_feedback_is_a_fault_of_the_servers(ask: Ask, events: list[tuple[str, str, str]]) -> None:
    fields = '"user_id":{},"item_id":{},"event_type":"x",{}'
    made = [("{" + fields.format(user, item, rest[1:])).replace(",}", "}") for user, item, rest in events]
    check(ask("POST", "/v1/feedback", ('{"events":[' + ",".join(made) + "]}").encode(errors="replace")))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["/v1/rank", "/v1/rank:batch", "/v1/feedback"]), JSON.map(lambda text: text.encode(errors="replace")) | st.binary())
def test_no_bytes_are_a_fault_of_the_servers(ask: Ask, path: str, body: bytes) -> None:
    check(ask("POST", path, body))


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["user?user_id=", "user/topk?user_id=", "user/topk?k=3&user_id=", "item?item_id=", "users?limit=", "users/", "items/"]),
    st.text(max_size=20) | st.integers().map(str) | LARGE,
)
def test_no_id_in_an_address_is_a_fault_of_the_servers(ask: Ask, path: str, name: str) -> None:
    check(ask("GET", f"/v1/{path}" + (quote(name, safe="", errors="replace") if "?" in path else name.partition("?")[0]), b""))
