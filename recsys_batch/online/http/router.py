"""HTTP as the handlers see it: a request with its body read, an answer, an error that stands for a status, and the table of routes.

Used by app.py, which finds the route of a request; endpoints.py, static_page.py and oip/rest.py, which declare routes; and openapi.py,
which describes them. Nothing here knows what is served.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, unquote

from recsys_batch.online.api.encode import to_json
from recsys_batch.online.api.messages import BadRequest

JSON_CONTENT_TYPE = ("content-type", "application/json")
RETRY_AFTER = ("retry-after", "1")
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose body has been read.

    Attributes:
        path: percent-encoded, as it came. query: behind the question mark.
        arrived: time.perf_counter() when it did.
        parameters: parts of the path by name, decoded.
        client_left: returns once the client has left; None where nobody asks, as the answer is there at once.
    """

    method: str
    path: str
    query: str
    headers: Any
    body: bytes
    arrived: float
    parameters: Mapping[str, str] = field(default_factory=dict)
    client_left: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: status, body, and headers in lower case."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (JSON_CONTENT_TYPE,)


class HttpError(Exception):
    """An answer that is not the one asked for: status, sentence, further headers."""

    def __init__(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class QueryNumber:
    """A whole number from 1 to ``maximum`` that a query may hold."""

    name: str
    default: int
    maximum: int
    description: str


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint: how it is reached, who may, what it takes and gives. openapi.py describes what is declared here.

    Attributes:
        path: with {names} for parts that vary; a last part "{rest*}" takes all that follows. Names the route in metrics.
        summary: what it does, in a line; a route without one is left out of the document.
        errors: statuses that the handler gives instead of ``status``, besides those in ``error_statuses``.
        access: everybody, those with the client's token (where one is set), or those with the admin's.
        admission_controlled: whether it takes a place in the bounded queue.
        max_body_bytes: bound on its body; None for the server's. With one, the handler may work for long, and is told when the
            client leaves.
        request, response: types of the JSON bodies; no request for a body that is not read, ``str`` for a response in plain text.
        query: the only parameter that its query may have.
        status: of the answer that was asked for.
    """

    method: str
    path: str
    handler: Handler
    summary: str = ""
    errors: tuple[int, ...] = ()
    access: Literal["open", "client", "admin"] = "client"
    admission_controlled: bool = True
    max_body_bytes: int | None = None
    request: type | None = None
    response: type = dict
    query: QueryNumber | None = None
    status: int = 200

    @property
    def error_statuses(self) -> list[int]:
        """Error statuses of the handler and of what app.py does before it: tokens, bodies, admission."""
        by_access = {"open": (), "client": (401,), "admin": (401, 403)}[self.access]
        by_method = () if self.method in ("GET", "HEAD") else (413,)
        return sorted({*self.errors, *by_access, *by_method, *((503,) if self.admission_controlled else ())})

    def match(self, parts: list[str]) -> dict[str, str] | None:
        """Return the named parts of a path that fits, else None."""
        patterns = self.path.strip("/").split("/") if self.path != "/" else []
        if patterns and patterns[-1].endswith("*}"):
            if len(parts) < len(patterns) - 1 or any(a != b for a, b in zip(patterns[:-1], parts, strict=False)):
                return None
            return {patterns[-1][1:-2]: "/".join(parts[len(patterns) - 1 :])}
        if len(patterns) != len(parts):
            return None
        parameters = {}
        for pattern, part in zip(patterns, parts, strict=True):
            if pattern.startswith("{"):
                parameters[pattern[1:-1]] = unquote(part, errors="replace")
            elif pattern != part:
                return None
        return parameters


class Router:
    """Finds the route of a request: fixed paths by a lookup, the few with names one by one."""

    def __init__(self, routes: list[Route]) -> None:
        self._all = routes
        self._fixed = {(route.method, route.path): route for route in routes if "{" not in route.path}
        self._named = [route for route in routes if "{" in route.path or route.method == "*"]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Find the route of a request and the named parts of its path.

        Raises:
            HttpError: 404, no route has this path; 405, none of those that have it takes this method.
        """
        fixed = self._fixed.get((method, path))
        if fixed is not None:
            return fixed, {}
        parts = path.strip("/").split("/") if path != "/" else []
        allowed = {route.method for route in self._all if route.path == path}
        for route in self._named:
            parameters = route.match(parts)
            if parameters is not None:
                if route.method in (method, "*"):
                    return route, parameters
                allowed.add(route.method)
        if allowed:
            raise HttpError(405, f"{path} takes {', '.join(sorted(allowed))}, not {method}", ("allow", ", ".join(sorted(allowed))))
        raise HttpError(404, f"there is no {path}; GET /openapi.json lists what there is")


def parse_query(query: str, number: QueryNumber | None) -> int:
    """Parse a query that may hold one number; without ``number`` it must be empty, and 0 is returned.

    Raises:
        BadRequest: another parameter, no whole number, or one out of bounds.
    """
    parameters = parse_qs(query, keep_blank_values=True)
    name = number.name if number is not None else None
    if unknown := sorted(set(parameters) - {name}):
        raise BadRequest(f"unknown parameter {unknown[0][:50]!r}; known: {name or 'none'}")
    if number is None:
        return 0
    text = parameters.get(number.name, [str(number.default)])[-1]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest(f"{name} is {text[:50]!r}: expected a whole number")
    if not 1 <= int(text) <= number.maximum:
        raise BadRequest(f"{name} is {int(text)}: expected 1 to {number.maximum}")
    return int(text)


def json_response(value: Any, status: int = 200) -> Response:
    """Make the answer that a structure or a plain value is in JSON."""
    return Response(status, to_json(value))


def error_response(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Make the answer {"error": message}."""
    return Response(status, to_json({"error": message}), (JSON_CONTENT_TYPE, *headers))
