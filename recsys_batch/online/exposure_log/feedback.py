"""A feedback event: what a user did with an item, as POST /v1/feedback takes it, on its way to the next ingest.

Made by api/decode.py, encoded by writer_process.py. The columns are dataset/exposure_schema.py's.
"""

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from recsys_batch.ids import parse_id
from recsys_batch.online.exposure_log.arrow_columns import LogId, make_record_batch
from recsys_batch.schemas import IdTypes


class FeedbackEvent(NamedTuple):
    """An event of a user with an item.

    Attributes:
        request_id: of the answer that showed the item; None where there was none. event_ts: with its time zone.
        event_type: click, purchase, ... in the caller's words.
    """

    request_id: str | None
    user_id: LogId
    item_id: LogId
    event_ts: dt.datetime
    event_type: str
    weight: float = 1.0


def encode_feedback(rows: Sequence[FeedbackEvent], ids: IdTypes, schema: pa.Schema) -> pa.RecordBatch:
    """Encode feedback events as Arrow, ids in the warehouse's types.

    Raises:
        ValueError, TypeError, pa.ArrowException: a row does not fit the schema.
    """
    requests, users, items, when, kinds, weights = zip(*rows, strict=True)
    users = tuple(parse_id(user, ids.user) for user in users)
    items = tuple(parse_id(item, ids.item) for item in items)
    columns = (requests, users, items, when, kinds, weights)
    return make_record_batch([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)
