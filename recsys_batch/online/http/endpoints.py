"""The endpoints of /v1, health, metrics and the OpenAPI document: each is declared once, in ``Endpoints.routes``.

Made by server/worker.py. A handler decodes, calls the service and encodes; errors become statuses in app.py.
"""

from pathlib import Path
from typing import Any

import msgspec

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online import metrics
from recsys_batch.online.api.decode import decode_feedback, decode_rank_request
from recsys_batch.online.api.encode import to_json
from recsys_batch.online.api.messages import Answer, BadRequest, Bounds, Feedback, RankRequest
from recsys_batch.online.http.openapi import build_openapi
from recsys_batch.online.http.router import HttpError, QueryNumber, Request, Response, Route, parse_query
from recsys_batch.online.serving import activation
from recsys_batch.online.serving.inspection import ItemDetail, UserDetail, UserSample
from recsys_batch.online.serving.ranking_service import RankingService
from recsys_batch.online.serving.traffic_split import TrafficSplit, parse_traffic_split
from recsys_batch.online.serving.worker_state import read_worker_states
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.manifest import read_manifest

_SWITCH_SECONDS = 120.0
_USER_LIMIT = QueryNumber("limit", 20, 1000, "most users")


class Endpoints:
    """The endpoints of one worker.

    Args:
        bounds: limits of a request.
        snapshots: folder of snapshots. state: folder in which the server's workers tell each other what they answer from.
    """

    def __init__(self, service: RankingService, bounds: Bounds, snapshots: Path, state: Path) -> None:
        self._service = service
        self._bounds = bounds
        self._snapshots = snapshots
        self._state = state
        self._topk_k = QueryNumber("k", min(100, bounds.max_k), bounds.max_k, "items of the list")
        self._document = b""

    def routes(self) -> list[Route]:
        """Declare every endpoint: its place, who may, what it takes and gives, and which statuses."""
        admin: dict[str, Any] = {"access": "admin", "admission_controlled": False}
        open_: dict[str, Any] = {"access": "open", "admission_controlled": False}
        return [
            Route(
                "POST",
                "/v1/rank",
                self.rank,
                summary="Rank a user's candidates for this request",
                request=RankRequest,
                response=Answer,
                errors=(400,),
            ),
            Route(
                "POST",
                "/v1/feedback",
                self.feedback,
                summary="What users did, for the next ingest",
                request=Feedback,
                status=202,
                errors=(400, 404),
            ),
            Route("GET", "/v1/users", self.users, summary="Some users to look at", response=UserSample, query=_USER_LIMIT, errors=(400,)),
            Route(
                "GET", "/v1/users/{user_id}", self.user, summary="What the snapshot holds of a user", response=UserDetail, errors=(400, 404)
            ),
            Route(
                "GET",
                "/v1/users/{user_id}/topk",
                self.topk,
                summary="The published list itself",
                response=Answer,
                query=self._topk_k,
                errors=(400, 404),
            ),
            Route("GET", "/v1/items/{item_id}", self.item, summary="What an item is called", response=ItemDetail, errors=(400, 404)),
            Route("GET", "/v1/snapshots", self.snapshots, **admin, summary="Snapshots, and what each worker answers from"),
            Route("POST", "/v1/snapshots/rollback", self.roll_back, **admin, summary="Go back to the snapshot before", errors=(404, 409)),
            Route(
                "POST", "/v1/snapshots/{snapshot_id}/activate", self.activate, **admin, summary="Go over to a snapshot", errors=(404, 409)
            ),
            Route("PUT", "/v1/routes", self.put_routes, **admin, summary="Canary and shadow", request=TrafficSplit, errors=(400, 404, 409)),
            Route("GET", "/healthz", self.healthy, **open_, summary="Whether the process lives"),
            Route("GET", "/readyz", self.ready, **open_, summary="Whether a warm snapshot is in use that is not too old", errors=(503,)),
            Route("GET", "/metrics", self.metrics, **open_, summary="Prometheus metrics", response=str),
            Route("GET", "/openapi.json", self.openapi, **open_, summary="This document"),
        ]

    async def rank(self, request: Request) -> Response:
        query, request_id = decode_rank_request(request.body, self._bounds, request.arrived)
        return Response(200, to_json(await self._service.rank(query, request_id, request.arrived)))

    async def feedback(self, request: Request) -> Response:
        if not self._service.exposures.is_enabled:
            raise HttpError(404, "this server keeps no log: start it with --exposures FOLDER")
        events = decode_feedback(request.body, self._bounds)
        taken = self._service.record_feedback(events)
        if taken < len(events):
            raise HttpError(
                503, f"{len(events) - taken} of {len(events)} events were not taken: too many wait to be written", ("retry-after", "1")
            )
        return Response(202, to_json({"taken": taken}))

    async def topk(self, request: Request) -> Response:
        k = parse_query(request.query, self._topk_k)
        return Response(200, to_json(await self._service.published_topk(request.parameters["user_id"], k)))

    async def users(self, request: Request) -> Response:
        limit = parse_query(request.query, _USER_LIMIT)
        return Response(200, to_json(self._service.sample_users(limit, self._bounds)))

    async def user(self, request: Request) -> Response:
        parse_query(request.query, None)
        return Response(200, to_json(await self._service.describe_user(request.parameters["user_id"])))

    async def item(self, request: Request) -> Response:
        parse_query(request.query, None)
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
        """Answer 200 only with a warm snapshot that is not too old to be shown."""
        current = self._service.manager.current
        if current is None:
            reasons = "; ".join(self._service.manager.refused.values())
            raise HttpError(503, f"no snapshot is in use{': ' + reasons if reasons else ''}")
        facts = current.snapshot.facts
        age = self._service.freshness.status(facts.generated_at)
        if age == "too_old":
            raise HttpError(503, f"snapshot {facts.snapshot_id} is of {facts.generated_at.isoformat()}, which is past max_age_hard_hours")
        return Response(200, to_json({"status": "ready", "snapshot_id": facts.snapshot_id, "age": age}))

    async def metrics(self, request: Request) -> Response:
        metrics.tally.flush()  # this worker's; the others' come within online.poll_ms
        text, content_type = metrics.render_metrics()
        return Response(200, text, (("content-type", content_type),))

    async def openapi(self, request: Request) -> Response:
        self._document = self._document or to_json(build_openapi(self.routes()))
        return Response(200, self._document)

    def _status(self) -> dict[str, Any]:
        snapshots: list[dict[str, Any]] = []
        for name in repository.list_snapshots(self._snapshots):
            try:
                manifest = read_manifest(self._snapshots / name)
            except RecsysBatchError as error:
                snapshots.append({"snapshot_id": name, "error": str(error)})
                continue
            facts = manifest.facts
            row = {"snapshot_id": name, "run_date": facts.run_date, "model_version": facts.model_version}
            snapshots.append({**row, "generated_at": facts.generated_at, "n_users": manifest.n_users, "n_items": manifest.n_items})
        return {"current": repository.read_current(self._snapshots), "snapshots": snapshots, "workers": read_worker_states(self._state)}
