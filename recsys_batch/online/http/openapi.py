"""The OpenAPI document: one entry for each route that declares a summary, schemas from the structures that decode and encode.

Called by endpoints.py once, at the first GET /openapi.json. What a route takes and gives is declared there, not here.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from recsys_batch import __version__
from recsys_batch.online.api.messages import Bounds
from recsys_batch.online.http.router import QueryNumber, QueryText, Route

_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_PATH_PARAMETERS = {
    "user_id": "a number's digits where user ids are numbers; without a /: GET /v1/user takes any id",
    "item_id": "a number's digits where item ids are numbers; without a /: GET /v1/item takes any id",
    "snapshot_id": "as GET /v1/snapshots lists it",
}


def build_openapi(routes: Sequence[Route], bounds: Bounds) -> dict[str, Any]:
    """Build the OpenAPI 3.1 document of the routes that have a summary, with the bounds of this server."""
    described = [route for route in routes if route.summary]
    bodies = {body for route in described for body in (route.request, route.response) if body is not None}
    types = sorted(bodies, key=lambda body: body.__name__)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in described:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    security = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "recsys_batch online ranker", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**_fill_bounds(components, bounds), "Error": _ERROR}, "securitySchemes": security},
    }


def _operation(route: Route, schema_of: dict[type, dict[str, Any]]) -> dict[str, Any]:
    content = {"text/plain": {}} if route.response is str else {"application/json": {"schema": schema_of[route.response]}}
    error = {"description": "why not", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    responses = {route.status: {"description": "the answer", "content": content}, **dict.fromkeys(route.error_statuses, error)}
    operation: dict[str, Any] = {"summary": route.summary, "responses": {str(status): each for status, each in responses.items()}}
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema_of[route.request]}}}
    if parameters := _parameters(route):
        operation["parameters"] = parameters
    if route.access == "admin":
        operation["security"] = [{"bearer": []}]
    return operation


def _fill_bounds(schema: Any, bounds: Bounds) -> Any:
    """Copy a schema with numbers for the names of ``Bounds`` that stand for them."""
    if isinstance(schema, list):
        return [_fill_bounds(each, bounds) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: getattr(bounds, value) if key in ("maximum", "maxItems") and isinstance(value, str) else _fill_bounds(value, bounds)
        for key, value in schema.items()
    }


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": _PATH_PARAMETERS[name]}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    return parameters + [_query_parameter(each) for each in route.query or ()]


def _query_parameter(each: QueryNumber | QueryText) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if isinstance(each, QueryNumber):
        schema = {"type": "integer", "minimum": 1, "maximum": each.maximum, "default": each.default}
    return {"name": each.name, "in": "query", "required": "default" not in schema, "schema": schema, "description": each.description}
