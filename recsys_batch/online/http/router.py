"""HTTP as the handlers see it: a request with its body read, an answer, an error that stands for a status, and the table of routes.

Used by app.py, which finds the route of a request; endpoints.py, static_page.py and oip/rest.py, which declare routes; and openapi.py,
which describes them. Nothing here knows what is served.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs

import msgspec

from recsys_batch.errors import quote, shorten
from recsys_batch.online.api.encode import to_json
from recsys_batch.online.api.messages import BadRequest

JSON_CONTENT_TYPE = ("content-type", "application/json")
RETRY_AFTER = ("retry-after", "1")
"""Seconds."""
MAX_ERROR_LENGTH = 1000
"""Characters."""


class Request(msgspec.Struct, frozen=True, eq=False):
    """A request whose body has been read.

    Attributes:
        method: GET for HEAD, too. path: decoded.
        arrived: time.perf_counter() when it did.
        parameters: named parts of the path, and what its route's ``query`` declares.
        client_left: returns once the client has left; None where nobody asks, as the answer is there at once.
    """

    method: str
    path: str
    headers: Any
    body: bytes
    arrived: float
    parameters: Mapping[str, Any] = msgspec.field(default_factory=dict)
    client_left: Callable[[], Awaitable[None]] | None = None


class Response(msgspec.Struct, frozen=True, gc=False):
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


class ClientGone(HttpError):
    """A client did not stay until its request was here, or answered; one that still listens is told so."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


Handler = Callable[[Request], Awaitable[Response]]
Settle = Callable[[Response | BaseException], None]
"""Takes the answer of a request, or the error that stands for it; once."""


@dataclass(frozen=True, slots=True)
class QueryNumber:
    """A whole number from 1 to ``maximum`` that a query may hold."""

    name: str
    default: int
    maximum: int
    description: str

    def parse(self, text: str | None = None) -> int:
        """Parse the parameter's text; None for the default. Raises BadRequest: no whole number, or out of bounds."""
        if text is None:
            return self.default
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise BadRequest(f"{self.name} is {quote(text)}: expected a whole number")
        if not 1 <= int(text) <= self.maximum:
            raise BadRequest(f"{self.name} is {int(text)}: expected 1 to {self.maximum}")
        return int(text)


@dataclass(frozen=True, slots=True)
class QueryText:
    """A text that a query has to hold: it may have any character, as no part of a path may."""

    name: str
    description: str

    def parse(self, text: str | None = None) -> str:
        """Take the parameter's text. Raises BadRequest: there is none."""
        if text is None:
            raise BadRequest(f"{self.name} is missing: expected ?{self.name}=ID")
        return text


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint: how it is reached, who may, what it takes and gives. openapi.py describes what is declared here.

    Attributes:
        method: GET stands for HEAD as well; "*" for every one.
        handler: answers it, in a task; None where ``submit`` does. submit: has it answered without a task, from the event loop.
        path: with {names} for parts that vary; a last part "{rest*}", or "{rest*}:END", takes all that follows. Names the route in metrics.
        summary: what it does, in a line; a route without one is left out of the document.
        errors: statuses that the handler gives instead of ``status``, besides those in ``error_statuses``.
        access: everybody, those with the client's token (where one is set), or those with the admin's.
        admission_controlled: whether it takes a place in the bounded queue.
        max_body_bytes: bound on its body; None for the server's. With one, the handler may work for long, and is told when the
            client leaves.
        request, response: types of the JSON bodies; no request for a body that is not read, ``str`` for a response in plain text.
        query: the parameters that its query may have; None where it is not looked at.
        status: of the answer that was asked for.
    """

    method: str
    path: str
    handler: Handler | None
    summary: str = ""
    errors: tuple[int, ...] = ()
    access: Literal["open", "client", "admin"] = "client"
    admission_controlled: bool = True
    max_body_bytes: int | None = None
    request: type | None = None
    response: type = dict
    query: tuple[QueryNumber | QueryText, ...] | None = None
    status: int = 200
    submit: Callable[[Request, Settle], None] | None = None

    @property
    def error_statuses(self) -> list[int]:
        """Error statuses of the handler and of what app.py does before it: tokens, bodies, admission."""
        by_access = {"open": (), "client": (401,), "admin": (401, 403)}[self.access]
        by_method = () if self.method == "GET" else (408, 413)
        return sorted({*self.errors, *by_access, *by_method, *((503,) if self.admission_controlled else ())})


class Router:
    """Finds the route of a request: fixed paths by a lookup, the few with names one by one, in their order."""

    def __init__(self, routes: list[Route]) -> None:
        self._all = routes
        self._fixed = {(route.method, route.path): route for route in routes if "{" not in route.path}
        self._named = [(route.path[1:].split("/"), route) for route in routes if "{" in route.path]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, Any]]:
        """Find the route of a request and the named parts of its path.

        Args:
            method: HEAD finds what GET does.
            path: decoded: nothing tells a "/" of the path from an encoded one.

        Raises:
            HttpError: 404, no route has this path; 405, none of those that have it takes this method.
        """
        wanted = "GET" if method == "HEAD" else method
        fixed = self._fixed.get((wanted, path))
        if fixed is not None:
            return fixed, {}
        parts = path[1:].split("/")
        allowed = {route.method for route in self._all if route.path == path}
        for patterns, route in self._named:
            parameters = match_path(patterns, parts)
            if parameters is not None:
                if route.method in (wanted, "*"):
                    return route, parameters
                allowed.add(route.method)
        if "GET" in allowed:
            allowed.add("HEAD")
        if allowed:
            methods = ", ".join(sorted(allowed))
            raise HttpError(405, f"{quote(path)} takes {methods}, not {shorten(method, 20)}", ("allow", methods))
        raise HttpError(404, f"there is no {quote(path)}; GET /openapi.json lists what there is")


def match_path(patterns: list[str], parts: list[str]) -> dict[str, Any] | None:
    """Match the parts of a path; returns the named ones, which are never empty, else None."""
    if patterns[-1].startswith("{rest*}"):
        suffix, n_fixed = patterns[-1].removeprefix("{rest*}"), len(patterns) - 1
        rest = "/".join(parts[n_fixed:])
        return {"rest": rest.removesuffix(suffix)} if parts[:n_fixed] == patterns[:-1] and rest.endswith(suffix) else None
    if len(patterns) != len(parts):
        return None
    parameters = {}
    for pattern, part in zip(patterns, parts, strict=True):
        if part and pattern.startswith("{"):
            parameters[pattern[1:-1]] = part
        elif pattern != part:
            return None
    return parameters


def parse_query(query: str, expected: Sequence[QueryNumber | QueryText]) -> dict[str, Any]:
    """Parse a query that has at most these parameters, each once; returns every one by its name.

    Raises:
        BadRequest: another parameter, one twice, one that is needed and not there, no whole number, or one out of bounds.
    """
    given = parse_qs(query, keep_blank_values=True)
    names = [each.name for each in expected]
    if unknown := sorted(set(given) - set(names)):
        raise BadRequest(f"unknown parameter {quote(unknown[0])}; known: {', '.join(names) or 'none'}")
    if repeated := [name for name, values in given.items() if len(values) > 1]:
        raise BadRequest(f"{repeated[0]} is given {len(given[repeated[0]])} times, expected once")
    return {each.name: each.parse(*given.get(each.name, ())) for each in expected}


def json_response(value: Any, status: int = 200) -> Response:
    """Make the answer that a structure or a plain value is in JSON."""
    return Response(status, to_json(value))


def error_response(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Make the answer {"error": message}; what a message repeats of a request is never long."""
    return Response(status, to_json({"error": shorten(message, MAX_ERROR_LENGTH)}), (JSON_CONTENT_TYPE, *headers))
