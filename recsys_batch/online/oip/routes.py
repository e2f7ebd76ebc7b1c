"""The protocol's place among the server's routes."""

from __future__ import annotations

from recsys_batch.online.http.router import Request, Response, Route
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.model_api import ModelRepository
from recsys_batch.online.oip.rest import MAX_BODY_BYTES, handle


class OipRoutes:
    """/v2 of one worker."""

    def __init__(self, models: ModelRepository, batching: DynamicBatcher) -> None:
        self._models, self._batching = models, batching

    def routes(self) -> list[Route]:
        """Health is open, as /healthz and /readyz are."""
        health = [Route("GET", f"/v2/health/{name}", self.answer, access="open", admission_controlled=False) for name in ("live", "ready")]
        rest = [Route("*", path, self.answer, max_body_bytes=MAX_BODY_BYTES) for path in ("/v2", "/v2/{rest*}")]
        return [*health, *rest]

    async def answer(self, request: Request) -> Response:
        return await handle(request.method, request.path, request.headers, request.body, self._models, self._batching)
