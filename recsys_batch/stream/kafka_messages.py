"""Messages of a Kafka topic as rows of interactions, validated by ingest's own rules, and as rejected rows with their reason. No Spark."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.sources import verdicts
from recsys_batch.sources.json_rows import spell_value
from recsys_batch.sources.raw_rows import RawRows
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.sources.typed_rows import FILE, POSITION, REASON, ROW, ParseSettings, parse_rows

_FIELDS = ("user_id", "item_id", "event_ts", "event_type", "weight")


def parse_messages(messages: pa.Table, ids: IdTypes) -> pa.Table:
    """Parse messages (topic, partition, offset, value) into the columns of interactions, with ``_row`` and ``_reason``.

    ``_row`` is JSON of where the message stands and its text. A message without a weight weighs 1, and its time is read by itself.
    """
    rows = messages.to_pylist()
    texts = [(row["value"] or b"").decode("utf-8", errors="replace") for row in rows]
    objects = [_read_object(row["value"]) for row in rows]
    fields = {name: pa.array([spell_value((found or {}).get(name)) for found in objects], pa.string()) for name in _FIELDS}
    fields["weight"] = pc.fill_null(fields["weight"], "1")
    malformed = pa.array([text if found is None else None for text, found in zip(texts, objects, strict=True)], pa.string())
    raw = RawRows(np.arange(len(rows)), fields, malformed)
    parsed = parse_rows(raw, ParseSettings("interactions", SourceFormat(kind="jsonl"), ids))
    spelt = [
        json.dumps({**{name: row[name] for name in ("topic", "partition", "offset")}, "value": text}, ensure_ascii=False)
        for row, text in zip(rows, texts, strict=True)
    ]
    numbers = pa.repeat(pa.scalar(0, pa.int32()), len(rows))
    return (
        parsed.append_column(FILE, numbers)
        .append_column(POSITION, pa.array(raw.positions))
        .append_column(ROW, pa.array(spelt, pa.string()))
    )


def split_by_validity(rows: pa.Table, known_items: pa.Array | None) -> tuple[pa.Table, pa.Table]:
    """Split a batch's parsed rows into (usable rows in the columns of interactions, rejected rows with ``_row`` and ``_reason``).

    Args:
        known_items: item_ids that may come; None where any may.
    """
    rows = verdicts.mark_duplicates(rows)
    reasons = rows[REASON]
    if known_items is not None:
        is_unknown = pc.invert(pc.is_in(rows["item_id"], value_set=known_items))
        reasons = pc.coalesce(reasons, pc.if_else(is_unknown, verdicts.UNKNOWN_ITEM, pa.scalar(None, pa.string())))
        rows = rows.set_column(rows.column_names.index(REASON), REASON, reasons)
    usable = rows.filter(pc.is_null(reasons)).select([column.name for column in TABLES["interactions"].columns])
    return usable, rows.filter(pc.is_valid(reasons))


def _read_object(value: bytes | None) -> dict[str, Any] | None:
    """Parse a message as a JSON object of text that UTF-8 can hold; None for anything else."""
    try:
        found = json.loads((value or b"").decode("utf-8"))
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
