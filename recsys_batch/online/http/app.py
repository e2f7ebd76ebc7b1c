"""The HTTP application of a worker: routes, tokens, admission, and every error as a status with a sentence.

connection.py shows it each request twice: ``receive`` when its head is here, ``answer`` when its body is. router.Route.error_statuses names
what it can answer before a handler is called.
"""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from recsys_batch.online import metrics
from recsys_batch.online.http.error_statuses import find_error_status
from recsys_batch.online.http.headers import Headers, split_target
from recsys_batch.online.http.router import (
    RETRY_AFTER,
    ClientGone,
    Handler,
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
"""Counted, as nginx does, where a client did not stay: no fault of the server's."""
_NO_ROUTE_LABELS = {400: "no path", 404: "no such path", 405: "no such method"}
"""In metrics: paths that clients make up are no labels."""
_BUSY = error_response(503, "too many requests are waiting: try again", (RETRY_AFTER,))


class Call(msgspec.Struct, eq=False):
    """A request whose head is here, and what has become of it.

    Attributes:
        label: of its route, for metrics. path: decoded. parameters: of the path and the query.
        length: bytes that its body is said to have; None where it does not say.
        max_body_bytes: that are taken.
        refusal: the answer where it is decided before the body is here; the body is of no matter then.
        counted_status: where that is not the answer's.
        stays: whether the client wants the connection to stay open. is_http_1_0: whose clients have to be told that it does.
    """

    method: str
    headers: Headers
    arrived: float
    length: int | None
    label: str = ""
    path: str = ""
    route: Route | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    max_body_bytes: int = 0
    refusal: Response | None = None
    counted_status: int | None = None
    stays: bool = True
    is_http_1_0: bool = False

    def refuse(self, error: HttpError, counted_status: int | None = None) -> None:
        """Decide the answer."""
        self.refusal, self.counted_status = error_response(error.status, str(error), error.headers), counted_status

    def count(self, status: int) -> None:
        """Count the request in metrics, once, with the status that it was answered with."""
        metrics.tally.add("requests", self.label, str(self.counted_status or status))


class App:
    """Answers the requests of one worker.

    Args:
        max_body_bytes: bound on bodies, where a route has none of its own.
        large_bodies: bytes of longer bodies that there is room for.
        admin_token: None where nobody is admin. client_token: None where clients need none.
    """

    def __init__(
        self,
        router: Router,
        admission: Admission,
        *,
        max_body_bytes: int,
        large_bodies: Admission,
        admin_token: str | None,
        client_token: str | None,
    ) -> None:
        self._router, self._admission, self._max_body_bytes, self._large_bodies = router, admission, max_body_bytes, large_bodies
        self._tokens = {"admin": admin_token, "client": client_token}

    def receive(self, method: str, target: bytes, headers: Headers, arrived: float) -> Call:
        """Find the route of a request whose head is here, and refuse at once what its head alone decides.

        Args:
            arrived: time.perf_counter() when it did.
        """
        call = Call(method, headers, arrived, headers.content_length)
        try:
            call.path, query = split_target(target)
            call.route, call.parameters = self._router.find(method, call.path)
        except HttpError as error:
            call.label = _NO_ROUTE_LABELS[error.status]
            call.refuse(error)
            return call
        call.label, call.max_body_bytes = call.route.path, call.route.max_body_bytes or self._max_body_bytes
        try:
            if call.route.admission_controlled and self._admission.is_full:
                metrics.SHED.inc()
                call.refusal = _BUSY
            else:
                self._check_head(call, query)
        except Exception as error:
            call.refusal = error_response(*find_error_status(error, call.label))
        return call

    def answer(self, call: Call, body: bytes, client_left: Callable[[], Awaitable[None]], send: Callable[[Call, Response], None]) -> None:
        """Have a request answered that is here with its body, in a place of the queue where its route takes one.

        Args:
            client_left: returns once the client has left; for handlers that may work for long.
            send: called with the answer, once, now or later.
        """
        route = call.route
        assert route is not None
        method = "GET" if call.method == "HEAD" else call.method  # the connection leaves the body out, and keeps its length
        is_large = route.max_body_bytes is not None and len(body) > self._max_body_bytes
        request = Request(
            method, call.path, call.headers, body, call.arrived, call.parameters, None if route.max_body_bytes is None else client_left
        )
        has_place = route.admission_controlled
        if has_place and not self._admission.enter():
            metrics.SHED.inc()
            send(call, _BUSY)
            return

        def settle(outcome: Response | BaseException) -> None:
            if has_place:
                self._admission.leave()
            send(call, outcome if isinstance(outcome, Response) else _describe_error(call, outcome))

        if route.submit is not None:
            try:
                route.submit(request, settle)
            except Exception as error:
                settle(error)
            return
        assert route.handler is not None
        answering = self._answer_large(route.handler, request) if is_large else route.handler(request)
        asyncio.ensure_future(answering).add_done_callback(lambda answered: settle(_take_outcome(answered)))

    async def _answer_large(self, handler: Handler, request: Request) -> Response:
        """Call a handler with a long body: there is room for some that are here, and for short ones always."""
        with self._large_bodies.hold(len(request.body), "bytes of requests"):
            return await handler(request)

    def _check_head(self, call: Call, query: str) -> None:
        """Check token, query and length. Raises HttpError, BadRequest."""
        route = call.route
        assert route is not None
        if route.access != "open":
            self._check_token(route.access, call.headers)
        if route.query is not None:
            call.parameters |= parse_query(query, route.query)
        if call.length is not None and call.length > call.max_body_bytes:
            raise HttpError(413, f"the body has {call.length} bytes, at most {call.max_body_bytes} are taken")

    def _check_token(self, access: str, headers: Headers) -> None:
        expected = self._tokens[access]
        if expected is None:
            if access == "client":
                return
            raise HttpError(403, "this server was started without an admin token (RECSYS_BATCH_ADMIN_TOKEN), so nobody is its admin")
        scheme, _, token = (headers.get("authorization") or "").partition(" ")
        accepted = [expected, self._tokens["admin"]] if access == "client" else [expected]
        is_accepted = any(hmac.compare_digest(token.strip().encode(), each.encode()) for each in accepted if each)
        if scheme.lower() != "bearer" or not is_accepted:
            raise HttpError(401, f"this needs the {access}'s token as `Authorization: Bearer TOKEN`", ("www-authenticate", "Bearer"))


def _take_outcome(answered: asyncio.Future[Response]) -> Response | BaseException:
    """Take what a handler's future ended with; one that is cancelled ends with the server."""
    if answered.cancelled():
        return HttpError(503, "the server ends: try again", RETRY_AFTER)
    return answered.exception() or answered.result()


def _describe_error(call: Call, error: BaseException) -> Response:
    """Make the answer of a request that failed."""
    if isinstance(error, ClientGone):
        logger.debug("a client of %s went away: %s", call.label, error)
        call.counted_status = CLIENT_GONE_STATUS
    return error_response(*find_error_status(error, call.label))
