"""HTTP as the handlers see it: a request with its body read, an answer, and the errors that stand for a status."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from recsys_batch.online.api.encode import to_json

JSON_CONTENT_TYPE = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class Request:
    """Attributes:
    path: percent-encoded, as it came. query: behind the question mark.
    arrived: time.perf_counter() when it did.
    parameters: parts of the path by name, decoded.
    """

    method: str
    path: str
    query: str
    headers: Any
    body: bytes
    arrived: float
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
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
class Route:
    """Attributes:
    name: for metrics, and of the documented path.
    path: with {names} for parts that vary; a last part "{rest*}" takes all that follows.
    access: who may: everybody, those with the client's token (where one is set), or with the admin's.
    counted: whether it takes a place in the bounded queue.
    """

    method: str
    path: str
    handler: Handler
    access: Literal["open", "client", "admin"] = "client"
    admission_controlled: bool = True
    max_body_bytes: int | None = None

    def match(self, parts: list[str]) -> dict[str, str] | None:
        """Named parts where the path fits, else None."""
        own = self.path.strip("/").split("/") if self.path != "/" else []
        if own and own[-1].endswith("*}"):
            if len(parts) < len(own) - 1 or any(a != b for a, b in zip(own[:-1], parts, strict=False)):
                return None
            return {own[-1][1:-2]: "/".join(parts[len(own) - 1 :])}
        if len(own) != len(parts):
            return None
        found = {}
        for mine, given in zip(own, parts, strict=True):
            if mine.startswith("{"):
                found[mine[1:-1]] = unquote(given, errors="replace")
            elif mine != given:
                return None
        return found


class Router:
    """All routes; fixed paths by a lookup, the few with names one by one."""

    def __init__(self, routes: list[Route]) -> None:
        self.all = routes
        self._fixed = {(route.method, route.path): route for route in routes if "{" not in route.path}
        self._named = [route for route in routes if "{" in route.path or route.method == "*"]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Raises HttpError 404 or 405."""
        fixed = self._fixed.get((method, path))
        if fixed is not None:
            return fixed, {}
        parts = path.strip("/").split("/") if path != "/" else []
        allowed = {route.method for route in self.all if route.path == path}
        for route in self._named:
            found = route.match(parts)
            if found is not None:
                if route.method in (method, "*"):
                    return route, found
                allowed.add(route.method)
        if allowed:
            raise HttpError(405, f"{path} takes {', '.join(sorted(allowed))}, not {method}", ("allow", ", ".join(sorted(allowed))))
        raise HttpError(404, f"there is no {path}; GET /openapi.json lists what there is")


def error_response(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """{"error": sentence}."""
    return Response(status, to_json({"error": message}), (JSON_CONTENT_TYPE, *headers))
