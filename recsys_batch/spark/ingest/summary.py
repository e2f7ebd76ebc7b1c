"""Counts of an ingest, which add up."""

import datetime as dt
from dataclasses import dataclass, field

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.schemas import IdTypes
from recsys_batch.sources.typed_rows import FILE, POSITION, REASON
from recsys_batch.sources.verdicts import ALREADY_PRESENT, SUPERSEDED
from recsys_batch.spark.ingest.holdout import HELD_OUT


@dataclass
class KindSummary:
    """Row counts of one kind: read == accepted + held_out + already_present + superseded + the sum of rejected."""

    read: int = 0
    accepted: int = 0
    held_out: int = 0
    already_present: int = 0
    superseded: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass
class IngestSummary:
    """Row counts of an ingest by kind (interactions, items, users, exposures), and notes for the user.

    Attributes:
        notes: sentences that the command prints.
        n_users, n_items: distinct users and items of the accepted interactions; n_categories: of the items that were read.
        first_event, last_event: span of the accepted, held out and already present interactions, UTC.
    """

    ids: IdTypes
    ingest_id: str
    kinds: dict[str, KindSummary] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    n_users: int = 0
    n_items: int = 0
    n_categories: int = 0
    first_event: dt.datetime | None = None
    last_event: dt.datetime | None = None

    def count_rows(self, kind: str, validated: DataFrame) -> dict[str, tuple[int, int]]:
        """Count the rows of a kind by ``_reason`` and ``_held_out``, and extend the event span, in one pass.

        Returns the file and position of one row of each reason to reject.
        """
        event_ts = F.col("event_ts") if kind == "interactions" else F.lit(None).cast("timestamp")
        place = F.min(F.struct(FILE, POSITION))
        groups = validated.groupBy(REASON, HELD_OUT).agg(F.count(F.lit(1)), F.min(event_ts), F.max(event_ts), place)
        summary, examples = KindSummary(), dict[str, tuple[int, int]]()
        self.kinds[kind] = summary
        for reason, is_held_out, n, first, last, example in groups.collect():
            summary.read += n
            if reason is None:
                summary.held_out += n if is_held_out else 0
                summary.accepted += 0 if is_held_out else n
            elif reason == ALREADY_PRESENT:
                # A present row may also be marked as held out: it stays in its table.
                summary.already_present += n
            elif reason == SUPERSEDED:
                summary.superseded += n
            else:
                summary.rejected[reason] = summary.rejected.get(reason, 0) + n
                examples[reason] = (example[0], example[1])
            if reason in (None, ALREADY_PRESENT) and first is not None:
                self.first_event = min(filter(None, (self.first_event, first)))
                self.last_event = max(filter(None, (self.last_event, last)))
        return examples
