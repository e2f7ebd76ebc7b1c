"""The explorer page: a few files, served from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from recsys_batch.online.http.router import Request, Response, Route

INDEX = "index.html"
_KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
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
    """GET and HEAD of each file: the page at /, what it loads at /page/NAME. Nothing else of the disk can be named."""
    found = []
    for entry in sorted(files("recsys_batch.online.http").joinpath("page").iterdir(), key=lambda entry: entry.name):
        kind = _KINDS.get(entry.name.rpartition(".")[2])
        if kind is None:
            continue
        path = "/" if entry.name == INDEX else f"/page/{entry.name}"
        handler = _serving(entry.read_bytes(), kind)
        found += [Route(method, path, handler, access="open", admission_controlled=False) for method in ("GET", "HEAD")]
    return found


def _serving(body: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    headers = (("content-type", kind), ("etag", tag), *_HEADERS)

    async def serve(request: Request) -> Response:
        known = {one.strip().removeprefix("W/") for one in (request.headers.get("if-none-match") or "").split(",")}
        if known & {tag, "*"}:
            return Response(304, b"", headers)
        return Response(200, body, headers)

    return serve
