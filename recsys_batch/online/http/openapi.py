"""The OpenAPI document, its schemas from the very structures that decode and encode."""

from __future__ import annotations

from typing import Any

import msgspec

from recsys_batch import __version__
from recsys_batch.online.api.messages import Answer, Feedback, RankRequest
from recsys_batch.online.serving.inspection import ItemDetail, UserDetail, UserSample

_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def build_openapi() -> dict[str, Any]:
    """OpenAPI 3.1."""
    (request, answer, feedback, users, about, item), components = msgspec.json.schema_components(
        (RankRequest, Answer, Feedback, UserSample, UserDetail, ItemDetail), ref_template="#/components/schemas/{name}"
    )
    components["Error"] = _ERROR
    user = _parameter("user_id", "path", {"type": "string"}, "a number's digits where user ids are numbers")
    k = _parameter("k", "query", {"type": "integer", "minimum": 1, "default": 100}, "items of the list")
    limit = _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20}, "most users")
    named_item = _parameter("item_id", "path", {"type": "string"}, "a number's digits where item ids are numbers")
    snapshot = _parameter("snapshot_id", "path", {"type": "string"}, "as GET /v1/snapshots lists it")
    routes = {
        "type": "object",
        "properties": {
            "canary": {"type": ["string", "null"]},
            "weight": {"type": "number", "minimum": 0, "maximum": 1},
            "shadow": {"type": ["string", "null"]},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
        },
    }
    anything: dict[str, Any] = {"type": "object"}
    text = {"description": "text", "content": {"text/plain": {}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "recsys_batch online ranker", "version": __version__},
        "paths": {
            "/v1/rank": {"post": _operation("Rank a user's candidates for this request", answer, request, errors=(400, 401, 413, 503))},
            "/v1/feedback": {
                "post": _operation("What users did, for the next ingest", anything, feedback, status=202, errors=(400, 401, 404, 413, 503))
            },
            "/v1/users": {"get": _operation("Some users to look at", users, parameters=[limit], errors=(400, 401, 503))},
            "/v1/users/{user_id}": {
                "get": _operation("What the snapshot holds of a user", about, parameters=[user], errors=(400, 401, 404, 503))
            },
            "/v1/users/{user_id}/topk": {
                "get": _operation("The published list itself", answer, parameters=[user, k], errors=(400, 401, 404, 503))
            },
            "/v1/items/{item_id}": {
                "get": _operation("What an item is called", item, parameters=[named_item], errors=(400, 401, 404, 503))
            },
            "/v1/snapshots": {"get": _operation("Snapshots, and what each worker answers from", anything, errors=(401, 403), admin=True)},
            "/v1/snapshots/{snapshot_id}/activate": {
                "post": _operation("Go over to a snapshot", anything, parameters=[snapshot], errors=(401, 403, 404, 409), admin=True)
            },
            "/v1/snapshots/rollback": {
                "post": _operation("Go back to the snapshot before", anything, errors=(401, 403, 404, 409), admin=True)
            },
            "/v1/routes": {"put": _operation("Canary and shadow", anything, routes, errors=(400, 401, 403, 404, 409), admin=True)},
            "/healthz": {"get": _operation("Whether the process lives", anything)},
            "/readyz": {"get": _operation("Whether a warm snapshot is in use that is not too old", anything, errors=(503,))},
            "/metrics": {"get": {"summary": "Prometheus metrics", "responses": {"200": text}}},
        },
        "components": {"schemas": components, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _parameter(name: str, where: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": description}


def _operation(
    summary: str,
    answer: dict[str, Any],
    body: dict[str, Any] | None = None,
    *,
    parameters: list[dict[str, Any]] | None = None,
    status: int = 200,
    errors: tuple[int, ...] = (),
    admin: bool = False,
) -> dict[str, Any]:
    responses = {str(status): {"description": "the answer", "content": {"application/json": {"schema": answer}}}}
    problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses |= {str(status): {"description": "why not", "content": problem} for status in errors}
    found: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if parameters:
        found["parameters"] = parameters
    if admin:
        found["security"] = [{"bearer": []}]
    return found
