"""Counts of an ingest, which add up."""

import datetime as dt
from dataclasses import dataclass, field

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.schemas import IdTypes
from recsys_batch.spark.ingest.validation import ALREADY_PRESENT, HELD_OUT, REASON


@dataclass
class KindSummary:
    """Row counts of one kind: read == accepted + held_out + already_present + the sum of rejected."""

    read: int = 0
    accepted: int = 0
    held_out: int = 0
    already_present: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass
class IngestSummary:
    """Row counts of an ingest by kind (interactions, items, users, exposures), and notes for the user.

    Attributes:
        notes: sentences that the command prints.
        n_users, n_items: distinct users and items of the accepted interactions.
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

    def count_rows(self, kind: str, validated: DataFrame) -> KindSummary:
        """Count the rows of a kind by ``_reason`` and ``_held_out``, and extend the event span, in one pass."""
        event_ts = F.col("event_ts") if kind == "interactions" else F.lit(None).cast("timestamp")
        groups = validated.groupBy(REASON, HELD_OUT).agg(F.count(F.lit(1)), F.min(event_ts), F.max(event_ts))
        summary = self.kinds[kind] = KindSummary()
        for reason, is_held_out, n, first, last in groups.collect():
            summary.read += n
            if reason is None:
                summary.held_out += n if is_held_out else 0
                summary.accepted += 0 if is_held_out else n
            elif reason == ALREADY_PRESENT:
                # A present row may also be marked as held out: it stays in its table.
                summary.already_present += n
            else:
                summary.rejected[reason] = n
            if reason in (None, ALREADY_PRESENT) and first is not None:
                self.first_event = min(filter(None, (self.first_event, first)))
                self.last_event = max(filter(None, (self.last_event, last)))
        return summary
