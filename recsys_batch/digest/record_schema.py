"""Schema of a digest's records: as Arrow for Parquet, as JSON Schema beside JSON lines."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys_batch.schemas import IdTypes

_JSON_TYPES: dict[pa.DataType, dict[str, Any]] = {
    pa.int32(): {"type": "integer", "format": "int32"},
    pa.int64(): {"type": "integer", "format": "int64"},
    pa.float32(): {"type": "number", "format": "float"},
    pa.string(): {"type": "string"},
}
"""JSON Schema of each scalar type; the formats are OpenAPI's."""


def output_schema(ids: IdTypes) -> pa.Schema:
    """Build the schema of a digest: user_id, slots, run_id, model_version. ``because_item_id`` is the item that ``reason`` names."""
    slot = [
        pa.field("slot", pa.int32(), nullable=False),
        pa.field("item_id", ids.item_arrow, nullable=False),
        pa.field("title", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("because_item_id", ids.item_arrow),
    ]
    columns = {"user_id": ids.user_arrow, "slots": pa.list_(pa.struct(slot)), "run_id": pa.string(), "model_version": pa.string()}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def json_schema(ids: IdTypes) -> dict[str, Any]:
    """Build the JSON Schema (draft 2020-12) of a line: what a reader would otherwise guess from the ids."""
    root = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "One user's record of a digest"}
    return root | _object_schema(list(output_schema(ids)))


def json_schema_path(path: Path) -> Path:
    """Name the schema that lies beside a file of JSON lines."""
    return path.with_name(f"{path.name}.schema.json")


def json_schema_text(ids: IdTypes) -> str:
    """Write the JSON Schema as the file's text; the same ids give the same bytes."""
    return json.dumps(json_schema(ids), indent=2) + "\n"


def _object_schema(fields: list[pa.Field]) -> dict[str, Any]:
    properties = {field.name: _value_schema(field) for field in fields}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _value_schema(field: pa.Field) -> dict[str, Any]:
    if pa.types.is_list(field.type):
        return {"type": "array", "items": _object_schema(list(field.type.value_type))}
    schema = dict(_JSON_TYPES[field.type])
    if field.nullable:
        schema["type"] = [schema["type"], "null"]
    return schema
