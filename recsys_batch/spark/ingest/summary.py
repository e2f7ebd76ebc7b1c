"""What an ingest did, in numbers that add up."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.schemas import IdTypes
from recsys_batch.spark.ingest.validation import HELD_OUT, PRESENT, REASON


@dataclass
class KindSummary:
    """Rows of one kind: read == accepted + held_out + already_present + the sum of rejected."""

    read: int = 0
    accepted: int = 0
    held_out: int = 0
    already_present: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass
class IngestSummary:
    """What an ingest did, by kind (interactions, items, users), and what it wants said aloud.

    Attributes:
        n_users, n_items: distinct ones among the accepted interactions.
        first_event, last_event: span of the accepted, held out and already present interactions, UTC.
    """

    ids: IdTypes
    ingest_id: str
    kinds: dict[str, KindSummary] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    n_users: int = 0
    n_items: int = 0
    first_event: dt.datetime | None = None
    last_event: dt.datetime | None = None

    def count(self, kind: str, judged: DataFrame) -> KindSummary:
        """Enter the rows of a kind by verdict (``_reason``, ``_held_out``), and the span of events, in one pass over them."""
        stamps = F.col("event_ts") if kind == "interactions" else F.lit(None).cast("timestamp")
        groups = judged.groupBy(REASON, HELD_OUT).agg(F.count(F.lit(1)), F.min(stamps), F.max(stamps))
        summary = self.kinds[kind] = KindSummary()
        for reason, held, n, low, high in groups.collect():
            summary.read += n
            if reason is None:
                summary.held_out += n if held else 0
                summary.accepted += 0 if held else n
            elif reason == PRESENT:
                # A row that is present may also be among the newest: it stays where it is.
                summary.already_present += n
            else:
                summary.rejected[reason] = n
            if reason in (None, PRESENT) and low is not None:
                self.first_event = min(filter(None, (self.first_event, low)))
                self.last_event = max(filter(None, (self.last_event, high)))
        return summary
