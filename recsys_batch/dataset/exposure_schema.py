"""Names and columns of the files that the online side logs and ``ingest --format exposures`` reads."""

import pyarrow as pa

from recsys_batch.schemas import STRING_MAP, TIMESTAMP, IdTypes

EXPOSURES, FEEDBACK = "exposures", "feedback"
"""First part of the files' names: exposures-STAMP-HOST-PID-N.parquet. A name that begins with a dot is a draft."""


def exposure_schema(ids: IdTypes) -> pa.Schema:
    """Build the schema of exposure files: a row per answered request."""
    shown = [
        pa.field("item_id", ids.item_arrow, False),
        pa.field("position", pa.int32(), False),
        pa.field("score", pa.float32()),
        pa.field("batch_score", pa.float32()),
        pa.field("candidate_rank", pa.int32()),
        pa.field("propensity", pa.float32()),
        pa.field("ranker_position", pa.int32()),
        pa.field("batch_position", pa.int32()),
        pa.field("candidate_score", pa.float32()),
    ]
    return pa.schema(
        [
            pa.field("request_id", pa.string(), False),
            pa.field("shown_at", TIMESTAMP, False),
            pa.field("user_id", ids.user_arrow, False),
            pa.field("snapshot_id", pa.string()),
            pa.field("model_version", pa.string()),
            pa.field("source", pa.string()),
            pa.field("degraded", pa.string()),
            pa.field("items", pa.list_(pa.struct(shown)), False),
            pa.field("context_ts", TIMESTAMP),
            pa.field("device", pa.string()),
            pa.field("session_item_ids", pa.list_(ids.item_arrow), False),
            pa.field("attributes", STRING_MAP, False),
            pa.field("lists", pa.string()),
            pa.field("candidates", pa.string()),
        ]
    )


def feedback_schema(ids: IdTypes) -> pa.Schema:
    """Build the schema of feedback files: a row per event."""
    return pa.schema(
        [
            pa.field("request_id", pa.string()),
            pa.field("user_id", ids.user_arrow, False),
            pa.field("item_id", ids.item_arrow, False),
            pa.field("event_ts", TIMESTAMP, False),
            pa.field("event_type", pa.string(), False),
            pa.field("weight", pa.float32(), False),
        ]
    )
