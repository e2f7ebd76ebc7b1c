"""The document has every endpoint, and an endpoint gives the statuses that it declares, each of them and no other."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.errors import InputMissing
from recsys_batch.online.api.decode import decode_feedback, decode_rank_batch, decode_rank_request
from recsys_batch.online.api.messages import BadRequest, Bounds
from recsys_batch.online.http.app import App
from recsys_batch.online.http.connection_bounds import ConnectionBounds
from recsys_batch.online.http.endpoints import Endpoints
from recsys_batch.online.http.openapi import build_openapi
from recsys_batch.online.http.router import Route, Router
from recsys_batch.online.serving import activation
from recsys_batch.online.serving.admission import Admission
from recsys_batch.online.serving.exposure_recorder import ExposureRecorder
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.ranking_service import RankingService
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from tests.online.http.fakes import Client, ask

ADMIN, CLIENT = {"authorization": "Bearer admins"}, {"authorization": "Bearer clients"}
EVENT = {"user_id": 5, "item_id": 7, "event_type": "click"}


class Server:
    """One worker's application without a wire, around a real snapshot."""

    def __init__(
        self,
        snapshots: Path,
        folder: Path,
        *,
        max_waiting: int = 8,
        admin: str | None = "admins",
        log: bool = True,
        max_body_bytes: int = 1_000,
        max_batch_bytes: int | None = None,
    ) -> None:
        self.live = SnapshotManager(snapshots, lambda _: pytest.fail("no remote store"), folder / "lock")
        admission = Admission(max_waiting)
        self.recorder = ExposureRecorder(folder / "exposures" if log else None, max_mb=1)
        service = RankingService(self.live, FreshnessPolicy(1e9, None), admission, self.recorder)
        self.routes = Endpoints(service, Bounds(), snapshots, folder, max_batch_bytes=max_batch_bytes or max_body_bytes).routes()
        self.app = App(
            Router(self.routes),
            admission,
            max_body_bytes=max_body_bytes,
            large_bodies=Admission(1),
            admin_token=admin,
            client_token="clients",
        )

    async def answer(self, method: str, path: str, body: Any = None, headers: dict[str, str] = CLIENT) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        response = await ask(self.app, method, path, raw, headers)
        is_json = "json" in dict(response.headers).get("content-type", "")
        return response.status, json.loads(response.body) if is_json else response.body

    async def status(self, method: str, path: str, body: Any = None, headers: dict[str, str] = CLIENT) -> int:
        return (await self.answer(method, path, body, headers))[0]


async def no_switch(*_: Any) -> list[Any]:
    return []


async def refused_switch(*_: Any) -> list[Any]:
    raise activation.ActivationFailed("a worker refused it")


async def unknown_snapshot(*_: Any) -> list[Any]:
    raise InputMissing("there is no such snapshot")


CALLS: dict[tuple[str, str], tuple[str, Any]] = {
    ("POST", "/v1/rank"): ("/v1/rank", {"user_id": 5}),
    ("POST", "/v1/rank:batch"): ("/v1/rank:batch", {"requests": [{"user_id": 5}]}),
    ("POST", "/v1/feedback"): ("/v1/feedback", {"events": [EVENT]}),
    ("GET", "/v1/users"): ("/v1/users", None),
    ("GET", "/v1/users/{user_id}"): ("/v1/users/5", None),
    ("GET", "/v1/user"): ("/v1/user?user_id=5", None),
    ("GET", "/v1/users/{user_id}/topk"): ("/v1/users/5/topk", None),
    ("GET", "/v1/user/topk"): ("/v1/user/topk?user_id=5&k=7", None),
    ("GET", "/v1/items/{item_id}"): ("/v1/items/5", None),
    ("GET", "/v1/item"): ("/v1/item?item_id=5", None),
    ("GET", "/v1/snapshots"): ("/v1/snapshots", None),
    ("POST", "/v1/snapshots/rollback"): ("/v1/snapshots/rollback", {}),
    ("POST", "/v1/snapshots/{snapshot_id}/activate"): ("/v1/snapshots/first/activate", {}),
    ("PUT", "/v1/routes"): ("/v1/routes", {}),
    ("GET", "/healthz"): ("/healthz", None),
    ("GET", "/readyz"): ("/readyz", None),
    ("GET", "/metrics"): ("/metrics", None),
    ("GET", "/openapi.json"): ("/openapi.json", None),
}
"""A good request to every endpoint."""
BAD_CALLS: list[tuple[str, str, str, Any]] = [
    ("POST", "/v1/rank", "/v1/rank", {"k": 3}),
    ("POST", "/v1/rank:batch", "/v1/rank:batch", {"requests": []}),
    ("POST", "/v1/feedback", "/v1/feedback", {"events": []}),
    ("GET", "/v1/users", "/v1/users?limit=1001", None),
    ("GET", "/v1/users/{user_id}", "/v1/users/5?k=1", None),
    ("GET", "/v1/users/{user_id}", "/v1/users/99999", None),
    ("GET", "/v1/users/{user_id}/topk", "/v1/users/5/topk?k=0", None),
    ("GET", "/v1/users/{user_id}/topk", "/v1/users/99999/topk", None),
    ("GET", "/v1/user", "/v1/user", None),
    ("GET", "/v1/user", "/v1/user?user_id=99999", None),
    ("GET", "/v1/user/topk", "/v1/user/topk?k=7", None),
    ("GET", "/v1/user/topk", "/v1/user/topk?user_id=99999", None),
    ("GET", "/v1/item", "/v1/item?user_id=5", None),
    ("GET", "/v1/item", "/v1/item?item_id=99999", None),
    ("GET", "/v1/items/{item_id}", "/v1/items/5?k=1", None),
    ("GET", "/v1/items/{item_id}", "/v1/items/99999", None),
    ("PUT", "/v1/routes", "/v1/routes", {"weight": 2}),
]
"""(method, the route's path, path, body)."""


async def _observe(make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], set[int]]:
    observed: dict[tuple[str, str], set[int]] = defaultdict(set)

    async def call(server: Server, key: tuple[str, str], *arguments: Any) -> None:
        observed[key].add(await server.status(key[0], *arguments))

    def replace_switches(switch: Any) -> None:
        for name in ("activate", "roll_back", "set_traffic_split"):
            monkeypatch.setattr(activation, name, switch)

    good, busy, nobodys, mute, empty = (
        make_server(),
        make_server(max_waiting=0),
        make_server(admin=None),
        make_server(log=False),
        make_server(),
    )
    await good.live.poll()
    await mute.live.poll()
    good.recorder.open()
    replace_switches(no_switch)
    for key, (path, body) in CALLS.items():
        await call(good, key, path, body, ADMIN)
        await call(good, key, path, body, {})
        await call(busy, key, path, body)
        await call(nobodys, key, path, body)
        await call(empty, key, path, body, ADMIN)
        if key[0] in ("POST", "PUT"):
            await call(good, key, path, "x" * 2_000, ADMIN)
            slow = Client(good.app, ConnectionBounds(0.04, 10))
            slow.send(
                b"%s %s HTTP/1.1\r\nhost: x\r\nauthorization: %s\r\ncontent-length: 9\r\n\r\n"
                % tuple(part.encode() for part in (key[0], path, ADMIN["authorization"]))
            )
            await asyncio.sleep(0.1)
            observed[key] |= set(slow.statuses)
    for method, route, path, body in BAD_CALLS:
        await call(good, (method, route), path, body, ADMIN)
    await call(mute, ("POST", "/v1/feedback"), "/v1/feedback", {"events": [EVENT]})
    for switch in (refused_switch, unknown_snapshot):
        replace_switches(switch)
        for key in (("POST", "/v1/snapshots/rollback"), ("POST", "/v1/snapshots/{snapshot_id}/activate"), ("PUT", "/v1/routes")):
            await call(good, key, *CALLS[key], ADMIN)
    good.recorder.close()
    return observed


def test_every_endpoint_gives_the_statuses_that_it_declares_and_no_other(
    make: Any, current: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current(folder := make(), "first")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    servers: list[Server] = []

    def make_server(**options: Any) -> Server:
        servers.append(Server(folder, tmp_path, **options))
        return servers[-1]

    observed = asyncio.run(_observe(make_server, monkeypatch))
    declared = {(route.method, route.path): {route.status, *route.error_statuses} for route in servers[0].routes}
    assert observed == declared


def test_the_document_is_the_declared_routes_with_statuses_parameters_and_access(tmp_path: Path) -> None:
    routes: list[Route] = Endpoints(None, Bounds(max_k=50), tmp_path, tmp_path).routes()  # type: ignore[arg-type]
    document = build_openapi(routes, Bounds(max_k=50))
    described = {(method.upper(), path): each for path, methods in document["paths"].items() for method, each in methods.items()}
    assert list(described) == [(route.method, route.path) for route in routes] and len(routes) == len(CALLS)
    for route in routes:
        operation = described[route.method, route.path]
        assert set(operation["responses"]) == {str(status) for status in (route.status, *route.error_statuses)}
        assert ("security" in operation) == (route.access == "admin") and ("requestBody" in operation) == (route.request is not None)
        for parameter in operation.get("parameters", []):
            assert (f"{{{parameter['name']}}}" in route.path) == (parameter["in"] == "path")
            assert parameter["required"] == parameter["name"].endswith("_id")
    k = described["GET", "/v1/users/{user_id}/topk"]["parameters"][1]
    assert (k["name"], k["schema"]) == ("k", {"type": "integer", "minimum": 1, "maximum": 50, "default": 50})
    references = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert {reference.partition('"')[0] for reference in references} <= set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("schema", "name", "value", "sentence"),
    [
        ("RankRequest", "deadline_ms", 60_001, "deadline_ms is 60001.0: expected more than 0 and at most 60000"),
        ("RankRequest", "deadline_ms", 0, "deadline_ms is 0.0: expected more than 0 and at most 60000"),
        ("RankRequest", "request_id", "x" * 201, "request_id has 201 characters, at most 200 are allowed"),
        ("RankRequest", "k", 0, "k is 0: expected 1 to 200"),
        ("RankBatch", "requests", [{}] * 65, "requests has 65 entries: expected 1 to 64"),
        ("RankBatch", "requests", [], "requests has 0 entries: expected 1 to 64"),
        ("FeedbackBody", "event_type", "x" * 101, "event_type has 101 characters: expected 1 to 100"),
        ("FeedbackBody", "event_type", "", "event_type has 0 characters: expected 1 to 100"),
        ("FeedbackBody", "weight", -1e30, "weight is -1e+30: expected a number below 1e30"),
    ],
)
def test_a_bound_of_the_schema_is_refused_with_a_sentence_that_says_what_was_found(
    tmp_path: Path, schema: str, name: str, value: Any, sentence: str
) -> None:
    routes = Endpoints(None, Bounds(), tmp_path, tmp_path).routes()  # type: ignore[arg-type]
    field = build_openapi(routes, Bounds())["components"]["schemas"][schema]["properties"][name]
    bounds = next(each for each in (field, *field.get("anyOf", [])) if each.get("type") not in (None, "null"))
    if isinstance(value, list):
        assert not bounds["minItems"] <= len(value) <= bounds["maxItems"]
    elif isinstance(value, str):
        assert not bounds.get("minLength", 0) <= len(value) <= bounds["maxLength"]
    else:
        within = bounds.get("minimum", value) <= value <= bounds.get("maximum", value)
        assert not (within and bounds.get("exclusiveMinimum", value - 1) < value < bounds.get("exclusiveMaximum", value + 1))
    with pytest.raises(BadRequest) as refused:
        if schema == "RankRequest":
            decode_rank_request(json.dumps({"user_id": 5, name: value}).encode(), Bounds(), 0.0)
        elif schema == "RankBatch":
            decode_rank_batch(json.dumps({name: value}).encode(), Bounds(), 0.0)
        else:
            decode_feedback(json.dumps({"events": [{**EVENT, name: value}]}).encode(), Bounds())
    assert str(refused.value) == sentence


def test_the_document_states_every_bound_of_this_server_and_which_further_keys_are_taken(tmp_path: Path) -> None:
    bounds = Bounds(max_k=50, max_ids=7, max_categories=3, max_candidates=9)
    schemas = build_openapi(Endpoints(None, bounds, tmp_path, tmp_path).routes(), bounds)["components"]["schemas"]  # type: ignore[arg-type]
    rank = schemas["RankRequest"]["properties"]
    assert (rank["k"]["minimum"], rank["k"]["maximum"]) == (1, 50)
    assert rank["exclude_item_ids"]["maxItems"] == rank["context"]["properties"]["session_item_ids"]["maxItems"] == 7
    for name in ("candidate_item_ids", "candidate_scores"):
        assert next(each for each in rank[name]["anyOf"] if each["type"] == "array")["maxItems"] == 9
    assert schemas["Filters"]["properties"]["categories"]["maxItems"] == 3
    events = schemas["Feedback"]["properties"]["events"]
    assert (events["minItems"], events["maxItems"]) == (1, 7)
    assert rank["context"]["additionalProperties"] is True
    assert all(
        schemas[name]["additionalProperties"] is False for name in ("RankRequest", "RankBatch", "Filters", "Feedback", "FeedbackBody")
    )
    assert '"maximum": "' not in (text := json.dumps(schemas)) and '"maxItems": "' not in text


@pytest.mark.parametrize("log", [True, False], ids=["with a log", "without"])
def test_ids_beyond_64_bits_are_strangers_and_answers_repeat_them_as_they_were_sent(
    make: Any, current: Any, tmp_path: Path, log: bool
) -> None:
    current(folder := make(), "first")
    server = Server(folder, tmp_path, log=log, max_body_bytes=100_000)

    async def ask_with(number: int) -> None:
        status, answer = await server.answer("POST", "/v1/rank", {"user_id": number, "k": 3})
        assert status == 200 and answer["user_id"] == number and answer["degraded"] == "unknown_user"
        known: dict[str, Any] = {"user_id": 5, "k": 3, "exclude_item_ids": [number], "request_id": "x"}
        context = {"session_item_ids": [number], "a": number, "b": [number], "device": number, "segment": number}
        assert await server.status("POST", "/v1/rank", {**known, "context": context}) == 200
        for refused in ({"k": number}, {"deadline_ms": number}, {"context": {"timestamp": number}}):
            assert await server.status("POST", "/v1/rank", {**known, **refused}) == 400
        events = [{**EVENT, "item_id": number}, {**EVENT, "user_id": number}]
        assert await server.status("POST", "/v1/feedback", {"events": events}) == (202 if log else 404)
        assert await server.status("GET", f"/v1/user/topk?user_id={number}") == 404

    async def ask_all() -> None:
        await server.live.poll()
        assert server.live.current is not None
        server.recorder.open()
        for number in (2**63, -(2**63) - 1, 2**70, 10**400, 10**4299):
            await ask_with(number)
        server.recorder.close()

    asyncio.run(ask_all())
