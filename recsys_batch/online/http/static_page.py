"""The explorer page: the files of ``page``, served from memory. server/worker.py adds the routes where a page is wanted."""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from recsys_batch.online.http.router import Request, Response, Route

INDEX = "index.html"
_CONTENT_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),  # kept, and asked for again: the answer is 304 until a release changes it
)


def page_routes() -> list[Route]:
    """Make a route for each file: the page at /, what it loads at /page/NAME. Nothing else of the disk can be named."""
    routes = []
    for entry in sorted(files("recsys_batch.online.http").joinpath("page").iterdir(), key=lambda entry: entry.name):
        content_type = _CONTENT_TYPES.get(entry.name.rpartition(".")[2])
        if content_type is None:
            continue
        path = "/" if entry.name == INDEX else f"/page/{entry.name}"
        handler = _make_handler(entry.read_bytes(), content_type)
        routes.append(Route("GET", path, handler, access="open", admission_controlled=False))
    return routes


def _make_handler(body: bytes, content_type: str) -> Callable[[Request], Awaitable[Response]]:
    etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    headers = (("content-type", content_type), ("etag", etag), *_HEADERS)

    async def serve(request: Request) -> Response:
        cached = {tag.strip().removeprefix("W/") for tag in (request.headers.get("if-none-match") or "").split(",")}
        if cached & {etag, "*"}:
            return Response(304, b"", headers)
        return Response(200, body, headers)

    return serve
