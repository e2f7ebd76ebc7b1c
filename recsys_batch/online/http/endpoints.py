"""The endpoints of /v1, and health."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online import metrics
from recsys_batch.online.api.decode import check_k, read_feedback, read_rank
from recsys_batch.online.api.encode import encode
from recsys_batch.online.api.messages import BadRequest, Bounds
from recsys_batch.online.http.openapi import document
from recsys_batch.online.http.router import HttpError, Request, Response, Route
from recsys_batch.online.serving import activation
from recsys_batch.online.serving.ranking_service import Service
from recsys_batch.online.serving.traffic_split import checked
from recsys_batch.online.serving.worker_state import reports
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.manifest import read_manifest

_SWITCH_SECONDS = 120.0


MOST_USERS = 1000


class Handlers:
    """Of one worker. ``snapshots`` is the folder of snapshots, ``state`` that of the server."""

    def __init__(self, service: Service, bounds: Bounds, snapshots: Path, state: Path) -> None:
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
            Route("GET", "/v1/snapshots", self.snapshots, access="admin", counted=False),
            Route("POST", "/v1/snapshots/rollback", self.roll_back, access="admin", counted=False),
            Route("POST", "/v1/snapshots/{snapshot_id}/activate", self.activate, access="admin", counted=False),
            Route("PUT", "/v1/routes", self.put_routes, access="admin", counted=False),
            Route("GET", "/healthz", self.healthy, access="open", counted=False),
            Route("GET", "/readyz", self.ready, access="open", counted=False),
            Route("GET", "/metrics", self.metrics, access="open", counted=False),
            Route("GET", "/openapi.json", self.openapi, access="open", counted=False),
        ]

    async def rank(self, request: Request) -> Response:
        query, request_id = read_rank(request.body, self._bounds, request.arrived)
        return Response(200, encode(await self._service.rank(query, request_id, request.arrived)))

    async def feedback(self, request: Request) -> Response:
        """Events of users, on their way to the next ingest."""
        if not self._service.shown.on:
            raise HttpError(404, "this server keeps no log: start it with --exposures FOLDER")
        events = read_feedback(request.body, self._bounds)
        taken = self._service.came_back(events)
        if taken < len(events):
            raise HttpError(
                503, f"{len(events) - taken} of {len(events)} events were not taken: too many wait to be written", ("retry-after", "1")
            )
        return Response(202, encode({"taken": taken}))

    async def topk(self, request: Request) -> Response:
        k = _number(request.query, "k", min(100, self._bounds.max_k))
        check_k(k, self._bounds)
        return Response(200, encode(await self._service.published(request.parameters["user_id"], k)))

    async def users(self, request: Request) -> Response:
        """Some users to look at."""
        limit = _number(request.query, "limit", 20)
        if not 1 <= limit <= MOST_USERS:
            raise BadRequest(f"limit is {limit}: expected 1 to {MOST_USERS}")
        return Response(200, encode(self._service.some_users(limit, self._bounds)))

    async def user(self, request: Request) -> Response:
        """What there is of one."""
        _number(request.query, None, 0)
        return Response(200, encode(await self._service.about(request.parameters["user_id"])))

    async def item(self, request: Request) -> Response:
        _number(request.query, None, 0)
        return Response(200, encode(self._service.item(request.parameters["item_id"])))

    async def snapshots(self, request: Request) -> Response:
        return Response(200, encode(self._status()))

    async def activate(self, request: Request) -> Response:
        name = request.parameters["snapshot_id"]
        await activation.activate(self._snapshots, self._state, name, _SWITCH_SECONDS)
        return Response(200, encode(self._status()))

    async def roll_back(self, request: Request) -> Response:
        await activation.roll_back(self._snapshots, self._state, _SWITCH_SECONDS)
        return Response(200, encode(self._status()))

    async def put_routes(self, request: Request) -> Response:
        try:
            values = msgspec.json.decode(request.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the body is not JSON: {error}") from None
        await activation.set_routes(self._snapshots, self._state, checked(values), _SWITCH_SECONDS)
        return Response(200, encode(self._status()))

    async def healthy(self, request: Request) -> Response:
        return Response(200, b'{"status":"alive"}')

    async def ready(self, request: Request) -> Response:
        """Ready only with a warm snapshot that is not too old to be shown."""
        current = self._service.live.current
        if current is None:
            refused = "; ".join(self._service.live.refused.values())
            raise HttpError(503, f"no snapshot is in use{': ' + refused if refused else ''}")
        facts = current.snapshot.manifest.facts
        age = self._service.ages.of(facts.generated_at)
        if age == "too_old":
            raise HttpError(503, f"snapshot {facts.snapshot_id} is of {facts.generated_at.isoformat()}, which is past max_age_hard_hours")
        return Response(200, encode({"status": "ready", "snapshot_id": facts.snapshot_id, "age": age}))

    async def metrics(self, request: Request) -> Response:
        metrics.tally.flush()  # this worker's; the others' come within online.poll_ms
        text, kind = metrics.page()
        return Response(200, text, (("content-type", kind),))

    async def openapi(self, request: Request) -> Response:
        self._document = self._document or encode(document())
        return Response(200, self._document)

    def _status(self) -> dict[str, Any]:
        known: list[dict[str, Any]] = []
        for name in repository.snapshots(self._snapshots):
            try:
                manifest = read_manifest(self._snapshots / name)
            except RecsysBatchError as error:
                known.append({"snapshot_id": name, "error": str(error)})
                continue
            facts = manifest.facts
            told = {"snapshot_id": name, "run_date": facts.run_date, "model_version": facts.model_version}
            known.append({**told, "generated_at": facts.generated_at, "n_users": manifest.n_users, "n_items": manifest.n_items})
        return {"current": repository.current(self._snapshots), "snapshots": known, "workers": reports(self._state)}


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
