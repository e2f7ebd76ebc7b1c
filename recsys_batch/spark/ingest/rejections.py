"""Rejected rows with their source's text: read again from their files, since rows in work do not carry it."""

from collections.abc import Collection, Mapping, Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.errors import SourceError
from recsys_batch.sources.typed_rows import FILE, POSITION, ROW
from recsys_batch.spark.ingest.opened_source import OpenedSource
from recsys_batch.spark.ingest.summary import KindSummary
from recsys_batch.tables.tombstones import ERASED

_MAX_SHIPPED = 1_000_000  # positions that travel to executors; more are joined
_MAX_EXAMPLE = 300
HARMLESS = ("duplicate", "duplicate_item_id", "duplicate_user_id", ERASED)
"""Reasons that say nothing against a source: overlapping files repeat rows, old ones have users who were erased since."""
HARMLESS_IN_LOGS = (*HARMLESS, "bad_user_id")
"""Likewise of the online side's log, whose columns are known: guests may have other ids than users, and be many."""


def spell_rejected(rejected: DataFrame, n_rejected: int, sources: Sequence[OpenedSource]) -> DataFrame:
    """Add ``_row`` and ``source`` to rejected rows (``_file``, ``_position``, ``_reason``, ``_row`` or null)."""
    wanted: dict[int, np.ndarray] | None = None
    numbers = [row[0] for row in rejected.select(FILE).distinct().collect()]
    if n_rejected <= _MAX_SHIPPED:
        places = rejected.select(FILE, POSITION).toArrow()
        files, positions = np.asarray(places[FILE]), np.asarray(places[POSITION])
        wanted = {number: np.sort(positions[files == number]) for number in numbers}
    spelt = [texts for source in sources if (texts := source.spell_rows(numbers, wanted)) is not None]
    if spelt:
        texts = reduce(DataFrame.unionByName, spelt).withColumnRenamed(ROW, "_text")
        rejected = rejected.join(texts, [FILE, POSITION], "left").withColumn(ROW, F.coalesce(ROW, "_text")).drop("_text")
    named = F.coalesce(*(F.when(F.col(FILE) < source.first_number + source.n_files, F.lit(source.path)) for source in sources))
    return rejected.withColumn("source", named)


def check_rejected_share(
    kind: str,
    summary: KindSummary,
    examples: Mapping[str, tuple[int, int]],
    sources: Sequence[OpenedSource],
    most: float,
    harmless: Collection[str] = HARMLESS,
) -> None:
    """Refuse a kind of which too large a share was rejected; rows with a ``harmless`` reason do not count.

    Raises SourceError with the three commonest reasons and an example of each.
    """
    reasons = {reason: n for reason, n in summary.rejected.items() if reason not in harmless}
    share = sum(reasons.values()) / max(summary.read, 1)
    if share <= most:
        return
    commonest = sorted(reasons, key=lambda reason: (-reasons[reason], reason))[:3]
    shown = [f"{reason} ({reasons[reason]:,} rows, for example {_example(examples[reason], sources)})" for reason in commonest]
    paths = ", ".join(dict.fromkeys(source.path for source in sources))
    hint = " Times in another spelling are read with --time-format." if commonest[0].startswith("bad_event_ts") else ""
    hint += " Ids must be as in the catalogue." if commonest[0] == "unknown_item" else ""
    raise SourceError(
        f"{paths}: {share:.0%} of the {summary.read:,} {kind} cannot be used, more than --max-rejected-share {most:g}; nothing was "
        f"written. Commonest: {'; '.join(shown)}.{hint}"
    )


def _example(place: tuple[int, int], sources: Sequence[OpenedSource]) -> str:
    file, position = place
    for source in sources:
        if source.frame is None and source.first_number <= file < source.first_number + source.n_files:
            texts = source.spell_rows([file], {file: np.array([position])})
            found: pa.Table | None = None if texts is None else texts.toArrow()
            if found is not None and found.num_rows:
                text = str(found[ROW][0])
                return f"{text[:_MAX_EXAMPLE]} in {source.file_names[file]}"
    return f"row {position} of {sources[0].path}"
