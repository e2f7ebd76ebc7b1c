"""Sentences about an ingest for who runs it: what was decided for him, and what is missing."""

from collections.abc import Mapping, Sequence

from recsys_batch.schemas import IdTypes
from recsys_batch.sources.column_mapping import map_columns
from recsys_batch.sources.survey import count_missing, describe_clock
from recsys_batch.sources.typed_rows import MAX_FUTURE_DAYS
from recsys_batch.spark.ingest.holdout import MIN_POSITIVES_TO_HOLD_OUT
from recsys_batch.spark.ingest.opened_source import OpenedSource
from recsys_batch.spark.ingest.sources import IngestRequest
from recsys_batch.spark.ingest.summary import IngestSummary

NOTHING_HELD_OUT = (
    f"nothing was held out: no user has {MIN_POSITIVES_TO_HOLD_OUT} positive interactions or more in two sessions or more, "
    "or the rows were ingested before without a hold-out and stay where they are"
)
_MAX_FILES, _MAX_TYPES = 3, 10

Sources = Mapping[str, Sequence[OpenedSource]]


def describe_sources(sources: Sources, ids: IdTypes) -> list[str]:
    """Say by which clocks sources were read, which of their files lack a column that others have, and why ids are STRING."""
    notes = [note for kind, opened in sources.items() for source in opened for note in _describe_source(source, kind, len(opened))]
    surveys = [source.survey for opened in sources.values() for source in opened]
    for name, id_type in (("user_id", ids.user), ("item_id", ids.item)):
        n_string, n = sum(survey.n_string[name] for survey in surveys), sum(survey.n_present[name] for survey in surveys)
        if id_type == "STRING" and 0 < n_string < n:
            notes.append(f"{name} is STRING: {n_string:,} of {n:,} values are no BIGINT")
    return notes


def describe_outcome(summary: IngestSummary, request: IngestRequest, sources: Sources) -> list[str]:
    """Say what interactions lack, and what can be done about lines and events that were rejected."""
    notes: list[str] = []
    malformed = sum(kind.rejected.get("malformed_line", 0) for kind in summary.kinds.values())
    if malformed and request.format.kind == "csv":
        notes.append(
            f"{malformed:,} lines are malformed: they have too few or too many fields, or open a quote that they do not close "
            "(--multiline where quoted fields hold line ends, --quote none where quotes are ordinary characters)"
        )
    if "interactions" not in sources:
        return notes
    columns = {ours for source in sources["interactions"] for ours in list_our_columns(source)}
    if "event_ts" not in columns:
        notes.append("event_ts is missing: the order of events is unknown, so validation and hold-out are at random instead of by time")
    if "weight" not in columns and not request.format.weights:
        notes.append("weight is missing: every interaction weighs 1")
    future = summary.kinds["interactions"].rejected.get("future_event_ts", 0)
    if future:
        notes.append(f"{future:,} events lie more than {MAX_FUTURE_DAYS} day in the future and were rejected: nobody did them yet")
    return notes


def list_our_columns(source: OpenedSource) -> list[str]:
    """List our columns that some file of a source has; unmapped ones of items and users count as attributes."""
    return [*map_columns(source.survey.columns, source.kind, source.how.columns), "attributes"]


def _describe_source(source: OpenedSource, kind: str, n_sources: int) -> list[str]:
    prefix = f"{source.path}: " if n_sources > 1 or kind != "interactions" else ""
    notes = [f"{prefix}{describe_clock(name, clock, source.survey)}" for name, clock in source.clocks.items()]
    for name, files in count_missing(source.survey, kind, source.how, source.file_names).items():
        shown = ", ".join(files[:_MAX_FILES]) + (", ..." if len(files) > _MAX_FILES else "")
        notes.append(f"{prefix}{name} is missing in {len(files)} of {source.n_files} files, only there: {shown}")
    unknown = {name: n for name, n in source.survey.event_types.items() if name not in source.how.weights}
    if unknown:
        shown = ", ".join(f"{name} ({n:,})" for name, n in sorted(unknown.items(), key=lambda pair: -pair[1])[:_MAX_TYPES])
        notes.append(f"{prefix}event types without a weight in --weights were rejected: {shown}")
    return notes
