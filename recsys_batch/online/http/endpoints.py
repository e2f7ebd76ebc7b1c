"""The endpoints of /v1, and health."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online import metrics
from recsys_batch.online.api.decode import check_k, decode_feedback, decode_rank_request
from recsys_batch.online.api.encode import to_json
from recsys_batch.online.api.messages import BadRequest, Bounds
from recsys_batch.online.http.openapi import build_openapi
from recsys_batch.online.http.router import HttpError, Request, Response, Route
from recsys_batch.online.serving import activation
from recsys_batch.online.serving.ranking_service import RankingService
from recsys_batch.online.serving.traffic_split import parse_traffic_split
from recsys_batch.online.serving.worker_state import read_worker_states
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.manifest import read_manifest

_SWITCH_SECONDS = 120.0


MAX_SAMPLED_USERS = 1000


class Endpoints:
    """Of one worker. ``snapshots`` is the folder of snapshots, ``state`` that of the server."""

    def __init__(self, service: RankingService, bounds: Bounds, snapshots: Path, state: Path) -> None:
        self._service = service
        self._bounds = bounds
        self._snapshots = snapshots
        self._state = state
        self._document = b""

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("POST", "/v1/rank", self.rank),
            Route("POST", "/v1/feedback", self.feedback),
            Route("GET", "/v1/users", self.users),
            Route("GET", "/v1/users/{user_id}", self.user),
            Route("GET", "/v1/users/{user_id}/topk", self.topk),
            Route("GET", "/v1/items/{item_id}", self.item),
            Route("GET", "/v1/snapshots", self.snapshots, access="admin", admission_controlled=False),
            Route("POST", "/v1/snapshots/rollback", self.roll_back, access="admin", admission_controlled=False),
            Route("POST", "/v1/snapshots/{snapshot_id}/activate", self.activate, access="admin", admission_controlled=False),
            Route("PUT", "/v1/routes", self.put_routes, access="admin", admission_controlled=False),
            Route("GET", "/healthz", self.healthy, access="open", admission_controlled=False),
            Route("GET", "/readyz", self.ready, access="open", admission_controlled=False),
            Route("GET", "/metrics", self.metrics, access="open", admission_controlled=False),
            Route("GET", "/openapi.json", self.openapi, access="open", admission_controlled=False),
        ]

    async def rank(self, request: Request) -> Response:
        query, request_id = decode_rank_request(request.body, self._bounds, request.arrived)
        return Response(200, to_json(await self._service.rank(query, request_id, request.arrived)))

    async def feedback(self, request: Request) -> Response:
        """Events of users, on their way to the next ingest."""
        if not self._service.shown.on:
            raise HttpError(404, "this server keeps no log: start it with --exposures FOLDER")
        events = decode_feedback(request.body, self._bounds)
        taken = self._service.record_feedback(events)
        if taken < len(events):
            raise HttpError(
                503, f"{len(events) - taken} of {len(events)} events were not taken: too many wait to be written", ("retry-after", "1")
            )
        return Response(202, to_json({"taken": taken}))

    async def topk(self, request: Request) -> Response:
        k = _number(request.query, "k", min(100, self._bounds.max_k))
        check_k(k, self._bounds)
        return Response(200, to_json(await self._service.published_topk(request.parameters["user_id"], k)))

    async def users(self, request: Request) -> Response:
        """Some users to look at."""
        limit = _number(request.query, "limit", 20)
        if not 1 <= limit <= MAX_SAMPLED_USERS:
            raise BadRequest(f"limit is {limit}: expected 1 to {MAX_SAMPLED_USERS}")
        return Response(200, to_json(self._service.sample_users(limit, self._bounds)))

    async def user(self, request: Request) -> Response:
        """What there is of one."""
        _number(request.query, None, 0)
        return Response(200, to_json(await self._service.describe_user(request.parameters["user_id"])))

    async def item(self, request: Request) -> Response:
        _number(request.query, None, 0)
        return Response(200, to_json(self._service.describe_item(request.parameters["item_id"])))

    async def snapshots(self, request: Request) -> Response:
        return Response(200, to_json(self._status()))

    async def activate(self, request: Request) -> Response:
        name = request.parameters["snapshot_id"]
        await activation.activate(self._snapshots, self._state, name, _SWITCH_SECONDS)
        return Response(200, to_json(self._status()))

    async def roll_back(self, request: Request) -> Response:
        await activation.roll_back(self._snapshots, self._state, _SWITCH_SECONDS)
        return Response(200, to_json(self._status()))

    async def put_routes(self, request: Request) -> Response:
        try:
            values = msgspec.json.decode(request.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the body is not JSON: {error}") from None
        await activation.set_traffic_split(self._snapshots, self._state, parse_traffic_split(values), _SWITCH_SECONDS)
        return Response(200, to_json(self._status()))

    async def healthy(self, request: Request) -> Response:
        return Response(200, b'{"status":"alive"}')

    async def ready(self, request: Request) -> Response:
        """Ready only with a warm snapshot that is not too old to be shown."""
        current = self._service.live.current
        if current is None:
            refused = "; ".join(self._service.live.refused.values())
            raise HttpError(503, f"no snapshot is in use{': ' + refused if refused else ''}")
        facts = current.snapshot.manifest.facts
        age = self._service.ages.status(facts.generated_at)
        if age == "too_old":
            raise HttpError(503, f"snapshot {facts.snapshot_id} is of {facts.generated_at.isoformat()}, which is past max_age_hard_hours")
        return Response(200, to_json({"status": "ready", "snapshot_id": facts.snapshot_id, "age": age}))

    async def metrics(self, request: Request) -> Response:
        metrics.tally.flush()  # this worker's; the others' come within online.poll_ms
        text, kind = metrics.render_metrics()
        return Response(200, text, (("content-type", kind),))

    async def openapi(self, request: Request) -> Response:
        self._document = self._document or to_json(build_openapi())
        return Response(200, self._document)

    def _status(self) -> dict[str, Any]:
        known: list[dict[str, Any]] = []
        for name in repository.list_snapshots(self._snapshots):
            try:
                manifest = read_manifest(self._snapshots / name)
            except RecsysBatchError as error:
                known.append({"snapshot_id": name, "error": str(error)})
                continue
            facts = manifest.facts
            told = {"snapshot_id": name, "run_date": facts.run_date, "model_version": facts.model_version}
            known.append({**told, "generated_at": facts.generated_at, "n_users": manifest.n_users, "n_items": manifest.n_items})
        return {"current": repository.read_current(self._snapshots), "snapshots": known, "workers": read_worker_states(self._state)}


def _number(query: str, name: str | None, default: int) -> int:
    """The query's only parameter, a whole number; with no name there is none.

    Raises:
        BadRequest: another parameter, or something else.
    """
    given = parse_qs(query, keep_blank_values=True)
    unknown = sorted(set(given) - {name})
    if unknown:
        raise BadRequest(f"unknown parameter {unknown[0][:50]!r}; known: {name or 'none'}")
    text = given.get(name or "", [str(default)])[-1]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest(f"{name} is {text[:50]!r}: expected a whole number")
    return int(text)
