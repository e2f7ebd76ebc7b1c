"""The RSGI application: admission, tokens, bodies, and every error as a status with a sentence.

server/worker.py puts it together and Granian calls it. router.Route.error_statuses names what it can answer before a handler is called.
"""

import hmac
import logging
import time
from collections.abc import Awaitable
from typing import Any

from recsys_batch.online import metrics
from recsys_batch.online.http.body_reader import BodyReader, ClientGone
from recsys_batch.online.http.error_statuses import find_error_status
from recsys_batch.online.http.router import (
    RETRY_AFTER,
    HttpError,
    Request,
    Response,
    Route,
    Router,
    error_response,
    parse_query,
)
from recsys_batch.online.serving.admission import Admission

logger = logging.getLogger("recsys_batch.online")

CLIENT_GONE_STATUS = 499
"""Counted, as nginx does, where a client did not stay until its request was here: no fault of the server's."""
_NO_ROUTE_LABELS = {404: "no such path", 405: "no such method"}
"""In metrics: paths that clients make up are no labels."""
_BUSY = error_response(503, "too many requests are waiting: try again", (RETRY_AFTER,))


class App:
    """The application that Granian calls by RSGI, for one worker.

    Args:
        max_body_bytes: bound on bodies, where a route has none of its own. body_seconds: in which a body has to arrive.
        large_bodies: bytes of longer bodies that there is room for.
        admin_token: None where nobody is admin. client_token: None where clients need none.
    """

    def __init__(
        self,
        router: Router,
        admission: Admission,
        *,
        max_body_bytes: int,
        body_seconds: float,
        large_bodies: Admission,
        admin_token: str | None,
        client_token: str | None,
    ) -> None:
        self._router, self._admission, self._max_body_bytes, self._large_bodies = router, admission, max_body_bytes, large_bodies
        self._body_reader = BodyReader(body_seconds)
        self._tokens = {"admin": admin_token, "client": client_token}

    def __rsgi__(self, scope: Any, proto: Any) -> Awaitable[None]:
        """Route a request as it arrives; what is returned runs when its turn comes."""
        arrived = time.perf_counter()
        method = scope.method
        try:
            route, parameters = self._router.find(method, scope.path)
        except HttpError as error:
            return self._refuse(proto, _NO_ROUTE_LABELS[error.status], error_response(error.status, str(error), error.headers))
        if route.admission_controlled and self._admission.is_full:
            metrics.SHED.inc()
            return self._refuse(proto, route.path, _BUSY)
        if method == "HEAD":
            method = "GET"  # Granian leaves the body out, and keeps its length
        return self._respond(scope, proto, method, route, parameters, arrived)

    async def _refuse(self, proto: Any, label: str, response: Response) -> None:
        self._send(proto, label, response, response.status)

    async def _respond(self, scope: Any, proto: Any, method: str, route: Route, parameters: dict[str, Any], arrived: float) -> None:
        try:
            response = await self._dispatch(scope, proto, method, route, parameters, arrived)
        except ClientGone as gone:
            logger.debug("a client of %s went away: %s", route.path, gone)
            self._send(proto, route.path, error_response(gone.status, str(gone), gone.headers), CLIENT_GONE_STATUS)
        else:
            self._send(proto, route.path, response, response.status)

    def _send(self, proto: Any, label: str, response: Response, counted_status: int) -> None:
        """Send an answer, and count it. Who has gone away since the request was here is not noticed, and counts as answered."""
        proto.response_bytes(response.status, list(response.headers), response.body)
        metrics.tally.add("requests", label, str(counted_status))

    async def _dispatch(self, scope: Any, proto: Any, method: str, route: Route, parameters: dict[str, Any], arrived: float) -> Response:
        try:
            headers = scope.headers
            self._check_token(route, headers)
            if route.query is not None:
                parameters |= parse_query(scope.query_string, route.query)
            body = b""
            if method != "GET":
                bound = route.max_body_bytes or self._max_body_bytes
                body = await self._body_reader.read(headers, scope.http_version, proto, bound, arrived)
            if route.max_body_bytes is None:
                return await self._handle(route, Request(method, scope.path, headers, body, arrived, parameters))
            # There is room for some large bodies that are here, and for short ones always.
            with self._large_bodies.hold(len(body) if len(body) > self._max_body_bytes else 0, "bytes of requests"):
                request = Request(method, scope.path, headers, body, arrived, parameters, proto.client_disconnect)
                return await self._handle(route, request)
        except ClientGone:
            raise
        except Exception as error:
            return error_response(*find_error_status(error, route.path))

    async def _handle(self, route: Route, request: Request) -> Response:
        """Call the handler of a request that is here with its body, in a place of the queue where its route takes one."""
        if not route.admission_controlled:
            return await route.handler(request)
        if not self._admission.enter():
            metrics.SHED.inc()
            return _BUSY
        try:
            return await route.handler(request)
        finally:
            self._admission.leave()

    def _check_token(self, route: Route, headers: Any) -> None:
        if route.access == "open":
            return
        expected = self._tokens[route.access]
        if expected is None:
            if route.access == "client":
                return
            raise HttpError(403, "this server was started without an admin token (RECSYS_BATCH_ADMIN_TOKEN), so nobody is its admin")
        scheme, _, token = (headers.get("authorization") or "").partition(" ")
        accepted = [expected, self._tokens["admin"]] if route.access == "client" else [expected]
        is_accepted = any(hmac.compare_digest(token.strip().encode(), each.encode()) for each in accepted if each)
        if scheme.lower() != "bearer" or not is_accepted:
            raise HttpError(401, f"this needs the {route.access}'s token as `Authorization: Bearer TOKEN`", ("www-authenticate", "Bearer"))
