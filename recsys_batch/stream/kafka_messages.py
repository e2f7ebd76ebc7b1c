"""Messages of a Kafka topic as rows of interactions, validated by ingest's own rules, and as rejected rows with their reason."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.ingest import validation
from recsys_batch.spark.ingest.raw_source import CORRUPT, RAW_ROW
from recsys_batch.spark.ingest.validation import REASON

_FIELDS = ("user_id", "item_id", "event_ts", "event_type", "weight")


def parse_messages(messages: DataFrame, ids: IdTypes) -> DataFrame:
    """Parse messages (topic, partition, offset, value) into the columns of interactions, with ``_row`` and ``_reason``.

    ``_row`` is JSON of where the message stands and its text. A message without a weight weighs 1. Applied to the stream once: to build
    these expressions for each batch takes the driver a quarter of a second.
    """
    return validation.parse_interactions(_split_fields(messages), ids)


def split_by_validity(rows: pa.Table, known_items: pa.Array | None) -> tuple[pa.Table, pa.Table]:
    """Split a batch's parsed rows into (usable rows in the columns of interactions, rejected rows with ``_row`` and ``_reason``).

    Args:
        known_items: item_ids that may come; None where any may.
    """
    reasons = pc.coalesce(rows[REASON], _mark_if(_repeats_usable_row(rows), validation.DUPLICATE))
    if known_items is not None:
        reasons = pc.coalesce(reasons, _mark_if(pc.invert(pc.is_in(rows["item_id"], value_set=known_items)), validation.UNKNOWN_ITEM))
    rows = rows.set_column(rows.schema.get_field_index(REASON), REASON, reasons)
    usable = rows.filter(pc.is_null(reasons)).select([column.name for column in TABLES["interactions"].columns])
    return usable, rows.filter(pc.is_valid(reasons))


def _repeats_usable_row(rows: pa.Table) -> pa.Array:
    """Mark the rows whose event a usable row before them is, too."""
    places = pa.array(np.arange(len(rows)))
    weight = pc.add(rows["weight"], pa.scalar(0.0, pa.float32()))  # -0.0 is 0.0
    keys = rows.select(validation.EVENT_KEY).set_column(validation.EVENT_KEY.index("weight"), "weight", weight)
    usable = keys.append_column("place", places).filter(pc.is_null(rows[REASON]))
    first = usable.group_by(validation.EVENT_KEY).aggregate([("place", "min")])["place_min"]
    return pc.invert(pc.is_in(places, value_set=first.combine_chunks()))


def _mark_if(condition: pa.Array, reason: str) -> pa.Array:
    return pc.if_else(condition, pa.scalar(reason), pa.scalar(None, pa.string()))


def _split_fields(messages: DataFrame) -> DataFrame:
    """Split messages into the raw columns of ingest; ``_corrupt`` is the text of one that is no JSON object."""
    text = F.col("value").cast("string")
    schema = ", ".join(f"`{name}` STRING" for name in (*_FIELDS, CORRUPT))
    parsed = F.from_json(text, schema, {"columnNameOfCorruptRecord": CORRUPT})
    is_object = F.coalesce(F.ltrim(text).startswith("{"), F.lit(False))
    position = F.struct("topic", "partition", "offset", text.alias("value"))
    rows = messages.select(parsed.alias("fields"), F.to_json(position).alias(RAW_ROW), text.alias("text"), is_object.alias("is_object"))
    corrupt = F.when(~F.col("is_object") | F.col(f"fields.{CORRUPT}").isNotNull(), F.coalesce("text", F.lit(""))).alias(CORRUPT)
    columns = {name: F.col(f"fields.{name}") for name in _FIELDS}
    columns["weight"] = F.coalesce(columns["weight"], F.lit("1"))
    return rows.select(*(column.alias(name) for name, column in columns.items()), corrupt, RAW_ROW)
