"""The protocol's model repository over HTTP: index, load and unload, for whoever has the admin's token.

server/worker.py puts ``RepositoryRoutes`` before the protocol's other routes.
"""

from collections.abc import Mapping
from typing import Any

from recsys_batch.errors import quote
from recsys_batch.online.api.decode import decode_json
from recsys_batch.online.http.router import Request, Response, Route, json_response
from recsys_batch.online.oip.model_api import InvalidRequest
from recsys_batch.online.oip.rest import answer_or_error
from recsys_batch.online.oip.snapshot_repository import SnapshotRepository


class RepositoryRoutes:
    """The model repository's endpoints of one worker."""

    def __init__(self, snapshots: SnapshotRepository) -> None:
        self._snapshots = snapshots

    def routes(self) -> list[Route]:
        """Declare the endpoints."""
        admin: dict[str, Any] = {"access": "admin", "admission_controlled": False}
        return [
            Route("POST", "/v2/repository/index", self.index, **admin),
            Route("POST", "/v2/repository/models/{name}/load", self.load, **admin),
            Route("POST", "/v2/repository/models/{name}/unload", self.unload, **admin),
        ]

    async def index(self, request: Request) -> Response:
        return await answer_or_error(self._index(request))

    async def load(self, request: Request) -> Response:
        return await answer_or_error(self._load(request))

    async def unload(self, request: Request) -> Response:
        return await answer_or_error(self._unload(request))

    async def _index(self, request: Request) -> Response:
        return json_response(self._snapshots.index(bool(_decode_object(request.body).get("ready"))))

    async def _load(self, request: Request) -> Response:
        parameters = _decode_object(request.body).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InvalidRequest(f"parameters are {quote(parameters)}: expected an object")
        await self._snapshots.load(request.parameters["name"], parameters)
        return json_response({})

    async def _unload(self, request: Request) -> Response:
        await self._snapshots.unload(request.parameters["name"])
        return json_response({})


def _decode_object(body: bytes) -> Mapping[str, Any]:
    value = decode_json(body) if body else {}
    if not isinstance(value, dict):
        raise InvalidRequest("the body is not a JSON object")
    return value
