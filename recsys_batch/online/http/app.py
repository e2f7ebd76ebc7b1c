"""The RSGI application: admission, tokens, bodies, and every error as a status with a sentence.

server/worker.py puts it together and Granian calls it. router.Route.error_statuses names what it can answer before a handler is called.
"""

import hmac
import logging
import time
from collections.abc import Awaitable
from typing import Any

from recsys_batch.errors import EXIT_MISSING, EXIT_USAGE, RecsysBatchError
from recsys_batch.online import metrics
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.http.router import RETRY_AFTER, HttpError, Request, Response, Route, Router, error_response
from recsys_batch.online.serving.admission import Admission, Overloaded
from recsys_batch.online.serving.ranking_service import NotReady, UnknownItem, UnknownUser
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable

logger = logging.getLogger("recsys_batch.online")

_BUSY = error_response(503, "too many requests are waiting: try again", (RETRY_AFTER,))


class App:
    """The application that Granian calls by RSGI, for one worker.

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

    def __rsgi__(self, scope: Any, proto: Any) -> Awaitable[None]:
        """Route and admit a request as it arrives; what is returned runs when its turn comes."""
        arrived = time.perf_counter()
        try:
            route, parameters = self._router.find(scope.method, scope.path)
        except HttpError as error:
            return self._send(proto, "unknown", error_response(error.status, str(error), error.headers))
        if route.admission_controlled and not self._admission.enter():
            metrics.SHED.inc()
            return self._send(proto, route.path, _BUSY)
        return self._respond(scope, proto, route, parameters, arrived)

    async def _respond(self, scope: Any, proto: Any, route: Route, parameters: dict[str, str], arrived: float) -> None:
        try:
            response = await self._dispatch(scope, proto, route, parameters, arrived)
        finally:
            if route.admission_controlled:
                self._admission.leave()
        await self._send(proto, route.path, response)

    async def _send(self, proto: Any, route: str, response: Response) -> None:
        proto.response_bytes(response.status, list(response.headers), response.body)
        metrics.tally.add("requests", route, str(response.status))

    async def _dispatch(self, scope: Any, proto: Any, route: Route, parameters: dict[str, str], arrived: float) -> Response:
        try:
            self._check_token(route, scope.headers)
            if route.max_body_bytes is not None:
                return await self._dispatch_long(scope, proto, route, parameters, arrived, route.max_body_bytes)
            body = await self._read_body(scope, proto, route)
            return await route.handler(Request(scope.method, scope.path, scope.query_string, scope.headers, body, arrived, parameters))
        except HttpError as error:
            return error_response(error.status, str(error), error.headers)
        except BadRequest as error:
            return error_response(400, str(error))
        except (UnknownUser, UnknownItem) as error:
            return error_response(404, str(error))
        except Overloaded as error:
            metrics.SHED.inc()
            return error_response(503, str(error), (RETRY_AFTER,))
        except (NotReady, StoreUnavailable) as error:
            return error_response(503, str(error), (RETRY_AFTER,))
        except RecsysBatchError as error:
            return error_response({EXIT_MISSING: 404, EXIT_USAGE: 400}.get(error.exit_code, 409), str(error))
        except Exception:
            logger.exception("a request to %s failed", route.path)
            return error_response(500, "something went wrong here; the server's log says what")

    async def _dispatch_long(
        self, scope: Any, proto: Any, route: Route, parameters: dict[str, str], arrived: float, max_bytes: int
    ) -> Response:
        """Call the handler of a route with large bodies: there is room for some, and for short ones always."""
        length = scope.headers.get("content-length") or ""
        n_bytes = int(length) if length.isdigit() else 0 if scope.method in ("GET", "HEAD") else max_bytes
        with self._large_bodies.hold(min(n_bytes, max_bytes) if n_bytes > self._max_body_bytes else 0, "bytes of requests"):
            body = await self._read_body(scope, proto, route)
            request = Request(
                scope.method, scope.path, scope.query_string, scope.headers, body, arrived, parameters, proto.client_disconnect
            )
            return await route.handler(request)

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

    async def _read_body(self, scope: Any, proto: Any, route: Route) -> bytes:
        """Read the body, up to the bound; what says that it is longer is not read at all."""
        if scope.method in ("GET", "HEAD"):
            return b""
        bound = route.max_body_bytes or self._max_body_bytes
        length = scope.headers.get("content-length")
        if length is not None and length.isdigit():
            if int(length) > bound:
                raise HttpError(413, f"the body has {length} bytes, at most {bound} are taken")
            return bytes(await proto())
        chunks, n_bytes = [], 0
        async for chunk in proto:
            n_bytes += len(chunk)
            if n_bytes > bound:
                raise HttpError(413, f"the body has more than {bound} bytes, which is the most that is taken")
            chunks.append(bytes(chunk))
        return b"".join(chunks)
