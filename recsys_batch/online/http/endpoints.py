"""The endpoints of /v1, health, metrics and the OpenAPI document: each is declared once, in ``Endpoints.routes``.

Made by server/worker.py. A handler decodes, calls the service and encodes; errors become statuses in app.py.
"""

from pathlib import Path
from typing import Any

from recsys_batch.errors import RecsysBatchError, shorten
from recsys_batch.online import metrics
from recsys_batch.online.api.decode import decode_feedback, decode_json, decode_rank_batch, decode_rank_request
from recsys_batch.online.api.encode import to_json
from recsys_batch.online.api.messages import (
    Answer,
    BadRequest,
    Bounds,
    Feedback,
    RankBatch,
    RankBatchAnswer,
    RankFailure,
    RankRequest,
)
from recsys_batch.online.http.error_statuses import find_error_status
from recsys_batch.online.http.openapi import build_openapi
from recsys_batch.online.http.router import (
    MAX_ERROR_LENGTH,
    RETRY_AFTER,
    HttpError,
    QueryNumber,
    QueryText,
    Request,
    Response,
    Route,
    Settle,
    json_response,
)
from recsys_batch.online.serving import activation
from recsys_batch.online.serving.freshness import LiveLag
from recsys_batch.online.serving.inspection import ItemDetail, UserDetail, UserSample
from recsys_batch.online.serving.ranking_service import RankingService
from recsys_batch.online.serving.traffic_split import TrafficSplit, parse_traffic_split
from recsys_batch.online.serving.worker_state import read_worker_states
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.manifest import read_manifest

MAX_BATCH_BYTES = 4 * 2**20
"""Bytes of a batch's body, 64 KiB for each of its requests: as much JSON as the other wires take, 20 ms of an event loop to decode."""
_UNLOGGABLE = "their values cannot be written to a log"
_USER_LIMIT = QueryNumber("limit", 20, 1000, "most users")
_USER_ID, _ITEM_ID = QueryText("user_id", "any id, percent-encoded"), QueryText("item_id", "any id, percent-encoded")


class Endpoints:
    """The endpoints of one worker.

    Args:
        bounds: limits of a request.
        snapshots: folder of snapshots. state: folder in which the server's workers tell each other what they answer from.
        live_lag: None where live lists are not followed.
        max_batch_bytes: bound on the body of a batch.
    """

    def __init__(
        self,
        service: RankingService,
        bounds: Bounds,
        snapshots: Path,
        state: Path,
        live_lag: LiveLag | None = None,
        max_batch_bytes: int = MAX_BATCH_BYTES,
    ) -> None:
        self._service, self._bounds, self._snapshots, self._state, self._live_lag = service, bounds, snapshots, state, live_lag
        self._topk_k = QueryNumber("k", min(100, bounds.max_k), bounds.max_k, "items of the list")
        self._document, self._max_batch_bytes = b"", max_batch_bytes

    def routes(self) -> list[Route]:
        """Declare every endpoint: its place, who may, what it takes and gives, and which statuses."""
        admin: dict[str, Any] = {"access": "admin", "admission_controlled": False}
        open_: dict[str, Any] = {"access": "open", "admission_controlled": False}
        user: dict[str, Any] = {"summary": "What the snapshot holds of a user", "errors": (400, 404), "response": UserDetail}
        topk: dict[str, Any] = {"summary": "The published list itself", "errors": (400, 404), "response": Answer}
        rank: dict[str, Any] = {"request": RankRequest, "response": Answer}
        batch: dict[str, Any] = {"request": RankBatch, "response": RankBatchAnswer, "max_body_bytes": self._max_batch_bytes}
        item: dict[str, Any] = {"summary": "What an item is called", "errors": (400, 404), "response": ItemDetail}
        return [  # ids that hold a "/" have no path of their own, so each path with an id has a twin with a query
            Route("POST", "/v1/rank", None, "Rank a user's candidates for this request", (400,), submit=self.rank, **rank),
            Route("POST", "/v1/rank:batch", self.rank_batch, "Up to 64 rankings, each answered or failed alone", (400,), **batch),
            Route("POST", "/v1/feedback", self.feedback, "What users did, for the next ingest", (400, 404), request=Feedback, status=202),
            Route("GET", "/v1/users", self.users, "Some users to look at", (400,), response=UserSample, query=(_USER_LIMIT,)),
            Route("GET", "/v1/users/{user_id}", self.user, **user, query=()),
            Route("GET", "/v1/user", self.user, **user, query=(_USER_ID,)),
            Route("GET", "/v1/users/{user_id}/topk", self.topk, **topk, query=(self._topk_k,)),
            Route("GET", "/v1/user/topk", self.topk, **topk, query=(_USER_ID, self._topk_k)),
            Route("GET", "/v1/items/{item_id}", self.item, **item, query=()),
            Route("GET", "/v1/item", self.item, **item, query=(_ITEM_ID,)),
            Route("GET", "/v1/snapshots", self.snapshots, "Snapshots, and what each worker answers from", **admin),
            Route("POST", "/v1/snapshots/rollback", self.roll_back, "Go back to the snapshot before", (404, 409), **admin),
            Route("POST", "/v1/snapshots/{snapshot_id}/activate", self.activate, "Go over to a snapshot", (404, 409), **admin),
            Route("PUT", "/v1/routes", self.put_routes, "Canary and shadow", (400, 404, 409), **admin, request=TrafficSplit),
            Route("GET", "/healthz", self.healthy, "Whether the process lives", **open_),
            Route(
                "GET",
                "/readyz",
                self.ready,
                "Whether a warm snapshot is in use that is not too old, and others are looked for",
                (503,),
                **open_,
            ),
            Route("GET", "/metrics", self.metrics, "Prometheus metrics", **open_, response=str),
            Route("GET", "/openapi.json", self.openapi, "This document", **open_),
        ]

    def rank(self, request: Request, settle: Settle) -> None:
        query, request_id = decode_rank_request(request.body, self._bounds, request.arrived)

        def answer(outcome: Answer | Exception) -> None:
            settle(json_response(outcome) if isinstance(outcome, Answer) else outcome)

        self._service.submit(query, request_id, request.arrived, answer)

    async def rank_batch(self, request: Request) -> Response:
        decoded = decode_rank_batch(request.body, self._bounds, request.arrived)
        queries = [each for each in decoded if not isinstance(each, BadRequest)]
        ranked = iter(await self._service.rank_together(queries, request.arrived) if queries else ())
        answers = [each if isinstance(each, BadRequest) else next(ranked) for each in decoded]
        return json_response(RankBatchAnswer([each if isinstance(each, Answer) else _describe_failure(each) for each in answers]))

    async def feedback(self, request: Request) -> Response:
        if not self._service.exposures.is_enabled:
            raise HttpError(404, "this server keeps no log: start it with --exposures FOLDER")
        events = decode_feedback(request.body, self._bounds)
        n_taken = self._service.exposures.record_feedback(events)
        if n_taken is None:
            raise HttpError(503, f"none of {len(events)} events was taken: too many wait to be written", RETRY_AFTER)
        n_refused = len(events) - n_taken
        if not n_taken:
            raise HttpError(400, f"none of {n_refused} events was taken: {_UNLOGGABLE}")
        return json_response({"taken": n_taken} | ({"refused": n_refused, "why": _UNLOGGABLE} if n_refused else {}), 202)

    async def topk(self, request: Request) -> Response:
        return json_response(await self._service.published_topk(request.parameters["user_id"], request.parameters["k"]))

    async def users(self, request: Request) -> Response:
        return json_response(self._service.sample_users(request.parameters["limit"], self._bounds))

    async def user(self, request: Request) -> Response:
        return json_response(await self._service.describe_user(request.parameters["user_id"]))

    async def item(self, request: Request) -> Response:
        return json_response(self._service.describe_item(request.parameters["item_id"]))

    async def snapshots(self, request: Request) -> Response:
        rows: list[dict[str, Any]] = []
        for name in repository.list_snapshots(self._snapshots):
            try:
                manifest = read_manifest(self._snapshots / name)
            except RecsysBatchError as error:
                rows.append({"snapshot_id": name, "error": str(error)})
                continue
            facts = manifest.facts
            row = {"snapshot_id": name, "run_date": facts.run_date, "model_version": facts.model_version}
            rows.append({**row, "generated_at": facts.generated_at, "n_users": manifest.n_users, "n_items": manifest.n_items})
        workers = read_worker_states(self._state)
        current, previous = repository.read_pointers(self._snapshots)
        return json_response({"current": current, "previous": previous, "snapshots": rows, "workers": workers})

    async def activate(self, request: Request) -> Response:
        await activation.activate(self._snapshots, self._state, request.parameters["snapshot_id"], activation.SWITCH_SECONDS)
        return await self.snapshots(request)

    async def roll_back(self, request: Request) -> Response:
        await activation.roll_back(self._snapshots, self._state, activation.SWITCH_SECONDS)
        return await self.snapshots(request)

    async def put_routes(self, request: Request) -> Response:
        split = parse_traffic_split(decode_json(request.body))
        await activation.set_traffic_split(self._snapshots, self._state, split, activation.SWITCH_SECONDS)
        return await self.snapshots(request)

    async def healthy(self, request: Request) -> Response:
        return Response(200, b'{"status":"alive"}')

    async def ready(self, request: Request) -> Response:
        """Answer 200 only with a warm snapshot that is not too old to be shown, and while others are looked for.

        503, too, where the store beside it says that it has lost the users' lists. Live lists that are behind, looks that fail, a store
        that does not answer and another snapshot than CURRENT names are told, and no reason: what is served is as good as before.
        """
        manager = self._service.manager
        current = manager.current
        if current is None:
            reasons = manager.fallback or "; ".join(filter(None, [*manager.refused.values(), manager.looks.failure]))
            raise HttpError(503, f"no snapshot is in use{': ' + reasons if reasons else ''}")
        if manager.stall is not None:
            raise HttpError(503, manager.stall)
        facts = current.snapshot.facts
        age = self._service.freshness.status(facts.generated_at)
        if age == "too_old":
            raise HttpError(503, f"snapshot {facts.snapshot_id} is of {facts.generated_at.isoformat()}, which is past max_age_hard_hours")
        if current.store_status == "lost":
            raise HttpError(503, f"store_unavailable: lists of snapshot {facts.snapshot_id} are in Redis no more: export the run again")
        live = self._live_lag.status() if self._live_lag is not None else "off"
        told = {"status": "ready", "snapshot_id": facts.snapshot_id, "age": age, "live": live, "store": current.store_status}
        following = "failing" if manager.looks.failure or manager.reads.failure else "ok"
        return json_response({**told, "following": following, "fallback": manager.fallback})

    async def metrics(self, request: Request) -> Response:
        metrics.tally.flush()  # this worker's; the others' come within online.poll_ms
        text, content_type = metrics.render_metrics()
        return Response(200, text, (("content-type", content_type),))

    async def openapi(self, request: Request) -> Response:
        self._document = self._document or to_json(build_openapi(self.routes(), self._bounds))
        return Response(200, self._document)


def _describe_failure(error: BaseException) -> RankFailure:
    status, sentence, _ = find_error_status(error, "/v1/rank:batch")
    return RankFailure(shorten(sentence, MAX_ERROR_LENGTH), status)
